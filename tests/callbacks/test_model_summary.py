"""ModelSummary: asks once, at the beginning, for the table."""

import pytest

import jaxcb as jc


@pytest.mark.parametrize("callback", [jc.callbacks.ModelSummary(), jc.callbacks.ModelSummary(2.0, verbose=0)])
def test_asks_once_at_the_beginning(callback):
    assert callback.hooks() == {"on_train_begin"}
    _, action = callback.on_train_begin(callback.init(), jc.Metrics({}))
    assert (action.when, action.depth, action.verbose) == (True, callback.depth, callback.verbose)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="depth must be a whole number of at least 1, got 0"):
        jc.callbacks.ModelSummary(depth=0)
    with pytest.raises(ValueError, match="verbose must be one of 0, 1, got 2"):
        jc.callbacks.ModelSummary(verbose=2)
