"""Classes are known in checkpoints by public keys."""

import pytest

import jaxcb as jc
from jaxcb._src.utils.names import class_key, entry_of, is_key_of
from jaxcb._src.writers.csv import CSVWriter
from jaxcb.testing import builtin_examples


class EarlyStopping(jc.Callback):
    """A user's own, under a name that the library has, too."""


def test_keys_of_the_library_hold_no_module():
    classes = {type(callback) for callback in builtin_examples()} | {CSVWriter}
    keys = [class_key(cls) for cls in classes]
    assert len(set(keys)) == len(keys)
    assert all(key == f"jaxcb.{cls.__qualname__}" for key, cls in zip(keys, classes, strict=True))


@pytest.mark.parametrize(
    ("saved", "cls", "same"),
    [
        ("jaxcb.EarlyStopping", jc.EarlyStopping, True),
        ("jaxcb.callbacks._early_stopping.EarlyStopping", jc.EarlyStopping, True),  # before keys were public names
        ("mine.callbacks.EarlyStopping", jc.EarlyStopping, False),
        ("EarlyStopping", jc.EarlyStopping, False),
        ("EarlyStopping", EarlyStopping, True),
        ("mine.callbacks.EarlyStopping", EarlyStopping, True),  # its module may move
        ("jaxcb.EarlyStopping", EarlyStopping, False),
        ("jaxcb.callbacks._timer.Timer", jc.EarlyStopping, False),
        ("MyEarlyStopping", EarlyStopping, False),
    ],
)
def test_a_key_is_of_one_class(saved, cls, same):
    assert is_key_of(saved, cls) == same


def test_what_a_checkpoint_holds_for_a_class_is_found_under_old_and_new_keys():
    assert entry_of({"jaxcb.writers.csv.CSVWriter": 1}, CSVWriter) == 1
    assert entry_of({"jaxcb.CSVWriter": 2}, CSVWriter) == 2
    assert entry_of({"jaxcb.HistoryWriter": 2}, CSVWriter) is None
