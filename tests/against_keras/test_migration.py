"""The page on migrating leaves out no callback, hook or argument of Keras, and names nothing that is not here."""

import inspect
import re
from pathlib import Path

import keras
import pytest

import jaxcb as jc

PAGE = (Path(__file__).parent.parent.parent / "docs" / "migrating_from_keras.md").read_text()
OURS = {"EarlyStopping", "ReduceLROnPlateau", "LearningRateScheduler", "ModelCheckpoint", "SwapEMAWeights"}
OURS |= {"TerminateOnNaN", "CSVLogger", "RemoteMonitor", "LambdaCallback", "BackupAndRestore"}
LEFT_OUT = {"double_checkpoint", "delete_checkpoint"}  # the page says why


def column(heading: str, index: int) -> set[str]:
    """The names in code in one column of the tables below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith(("| `", "| none"))]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[index])}


def test_every_callback_of_keras_has_a_row():
    kinds = {n for n, kind in vars(keras.callbacks).items() if isinstance(kind, type)}
    assert kinds == column("Callbacks", 0)


def test_every_hook_of_both_has_a_row():
    theirs = {n for n in vars(keras.callbacks.Callback) if n.startswith(("on_", "set_"))}
    assert theirs <= column("Hooks", 0)
    assert set(jc.callbacks.HOOKS) <= column("Hooks", 1)
    host = {n for n in vars(jc.HostCallback) if n.startswith("on_")} - {"on_batch_begin", "on_batch_end"}
    assert host <= column("Hooks", 2)


def test_every_argument_of_fit_has_a_row():
    theirs = set(inspect.signature(keras.Model.fit).parameters) - {"self", "x", "y"}
    assert theirs <= column("Arguments of fit", 0)


def test_what_the_page_names_is_here():
    names = set(re.findall(r"\bjc\.(\w+)", PAGE))
    assert names
    assert not [name for name in names if not hasattr(jc, name)]


@pytest.mark.parametrize("name", sorted(OURS))
def test_arguments_of_keras_come_first_with_the_same_defaults(name):
    """In the same order, so that a positional argument means the same."""
    theirs = [
        p
        for p in inspect.signature(getattr(keras.callbacks, name)).parameters.values()
        if p.kind is not p.VAR_KEYWORD and p.name not in LEFT_OUT
    ]
    ours = list(inspect.signature(getattr(jc, name)).parameters.values())
    for their, our in zip(theirs, ours, strict=False):
        assert their.name == our.name
        assert their.default == our.default
    assert len(ours) >= len(theirs)
