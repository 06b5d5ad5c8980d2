"""`RunHistory`: rows by name, and what was not reported."""

import numpy as np
import pytest

from jaxcb._src.history.history import RunHistory


@pytest.fixture
def history():
    history = RunHistory()
    history.declare(["loss", "val_loss"])
    history.add(2, 0, {"loss": np.float32(9.0), "val_loss": np.float32(0.5)}, {"loss": False, "val_loss": True})
    history.add(3, 0, {"loss": np.float32(1.0), "val_loss": np.float32(0.5)}, {"loss": True, "val_loss": False})
    history.add(6, 1, {"loss": np.float32(np.nan), "val_loss": np.float32(0.25)}, {"loss": True, "val_loss": True})
    return history


def test_a_row_is_what_was_reported_then(history):
    np.testing.assert_array_equal(history["loss"], [np.nan, 1.0, np.nan])
    np.testing.assert_array_equal(history["val_loss"], [0.5, np.nan, 0.25])
    assert history["loss"].dtype == np.float32


def test_a_nan_that_was_reported_is_told_from_no_report(history):
    assert history.reported("loss").tolist() == [False, True, True]
    assert history.reported("val_loss").tolist() == [True, False, True]


def test_positions(history):
    assert history.step.tolist() == [2, 3, 6]
    assert history.epoch.tolist() == [0, 0, 1]
    assert history.step.dtype == history.epoch.dtype == np.int64


def test_it_is_a_mapping(history):
    assert dict(history).keys() == {"loss", "val_loss"}
    assert len(history) == 2
    assert "accuracy" not in history
    assert history.get("accuracy") is None
    assert repr(history) == "RunHistory(3 rows of loss, val_loss)"


@pytest.mark.parametrize("read", [lambda h: h["val_los"], lambda h: h.reported("val_los"), lambda h: h.best("val_los")])
def test_an_unknown_name_lists_what_was_recorded(history, read):
    says = r"'val_los' is no recorded metric; recorded: loss, val_loss\. Did you mean 'val_loss'\?"
    with pytest.raises(KeyError, match=says):
        read(history)


def test_a_table_is_made_of_its_columns(history):
    """Of a mapping that is no dict, pandas makes a table of its names."""
    assert {name: len(column) for name, column in history.columns().items()} == dict.fromkeys(
        ("step", "epoch", "loss", "val_loss"), 3
    )
    with pytest.raises(TypeError, match=r"pandas\.DataFrame\(history\.columns\(\)\)"):
        np.asarray(history)


def test_before_the_first_row_there_are_names_and_no_values():
    history = RunHistory()
    history.declare(["loss"])
    assert history["loss"].shape == (0,)
    assert list(history) == ["loss"]


def test_integers_that_were_not_reported_are_nan_too():
    history = RunHistory()
    history.add(1, 0, {"n": np.int32(3)}, {"n": False})
    assert np.isnan(history["n"]).all()


def test_members_have_a_column_each():
    history = RunHistory()
    for step in (1, 2):
        history.add(step, 0, {"loss": np.arange(3.0, dtype=np.float32)}, {"loss": np.ones(3, bool)})
    assert history["loss"].shape == (2, 3)
