"""The check of batches: which are left out, and when one is looked at again."""

import itertools

import numpy as np
import pytest
from data.stream._stages import Passes, batch, shown, stages

import jaxcb as jc
from jaxcb._src.data.stream.batch_spec import BatchValidator


def items(data, count=99, **config):
    return [*itertools.islice(stages(data, **config)["checked"], count)]


def test_the_end_of_an_epoch_has_no_spec():
    found = items(Passes([2, 1]), 5)
    assert [spec is None for _, spec, _ in found] == [False, False, True, False, True]
    assert shown(found[2][0]) == {"pass": 1, "batches": 0}


@pytest.mark.parametrize("drop", [False, True])
def test_a_smaller_batch_may_be_left_out(drop):
    found = items(Passes([3], smaller_last=True), 3, drop_remainder=drop)
    assert [spec.smaller for _, spec, _ in found if spec is not None] == [False, False, *([] if drop else [True])]


def test_an_epoch_without_a_batch_is_an_error_but_for_a_resumed_one():
    checked = stages(Passes([2, 0]))["checked"]
    with pytest.raises(jc.errors.DataError, match=r"pass 2 over train_data \(Passes\) gave no batch when it was"):
        list(checked)
    resumed = stages(Passes([2]))["checked"]
    resumed.set_state({"pass": 0, "batches": 2})
    assert next(resumed)[1] is None


def test_equal_specs_are_one_object_and_one_of_the_previous_batch_is_not_made_again(monkeypatch):
    made = []
    monkeypatch.setattr(BatchValidator, "_validate_fully", lambda *a, own=BatchValidator._validate_fully: (
        made.append(a) or own(*a)))  # fmt: skip
    validator = BatchValidator("train_data", batch(0), None)
    full, smaller, again = (validator.validate(x, 1, False)[1] for x in (batch(0), batch(1, rows=1), batch(2)))
    assert validator.validate(batch(3), 1, False)[1] is full
    assert again is full
    assert smaller.smaller
    assert len(made) == 3


def test_what_is_one_dtype_on_the_device_has_a_spec_for_each_of_the_host():
    validator = BatchValidator("train_data", batch(0), None)
    narrow, wide = (validator.validate(batch(0).astype(dtype), 1, False)[1] for dtype in (np.float32, np.float64))
    assert narrow is not wide
    assert narrow != wide
