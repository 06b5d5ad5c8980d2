"""CSVLogger: one row an epoch, and one a validation in its middle."""

from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxcb as jc
from jaxcb._src.core.metric_names import as_text, row_text


def test_a_row_at_each_epoch_and_each_validation_in_its_middle():
    callback = jc.CSVLogger("log.csv")
    for closes in (True, False):
        metrics = jc.Metrics({"loss": 0.5}, closes_epoch=closes)
        _, row = callback.on_eval_end((), metrics)
        assert bool(row.when) is not closes  # the epoch's end writes its own
    assert bool(callback.on_epoch_end((), metrics)[1].when)


def test_what_was_not_reported_is_na_and_arrays_stay_out():
    metrics = jc.Metrics({"loss": 0.1, "val_loss": None, "confusion": jnp.zeros((2, 2))})
    _, row = jc.CSVLogger(Path("log.csv"), separator=";", append=True).on_epoch_end((), metrics)
    assert row_text(row.values, row.fresh) == {"loss": "0.1", "val_loss": "NA"}
    assert (row.path, row.separator, row.append) == ("log.csv", ";", True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(jnp.float32(0.1), "0.1"), (jnp.int32(7), "7"), (True, "1"), (jnp.bfloat16(0.1), "0.100097656"), (jnp.nan, "nan")],
)
def test_numbers_are_the_shortest_that_read_back(value, text):
    assert as_text(value) == text


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="filename must be a path, got 3"):
        jc.CSVLogger(3)
    with pytest.raises(TypeError, match=r"separator must be one character.*got ''"):
        jc.CSVLogger("a.csv", separator="")
