"""Which writer performs which action."""

import importlib
from collections.abc import Callable
from typing import TypeVar

from jaxcb._actions import (
    Action,
    Call,
    Checkpoint,
    HandOver,
    JSONLine,
    MLflowLog,
    Post,
    Print,
    Profile,
    Progress,
    Remember,
    Row,
    Summarize,
    TensorBoardAction,
    WandbLog,
)
from jaxcb.writers._writer import Writer

W = TypeVar("W", bound=type[Writer])

# built-in ones by name, so that what they import loads when it is used
_BUILT_IN = {
    Row: "jaxcb.writers.csv:CSVWriter",
    Remember: "jaxcb.writers.history:HistoryWriter",
    HandOver: "jaxcb.writers.log_to:HandOverWriter",
    JSONLine: "jaxcb.writers.json_lines:JSONLinesWriter",
    Post: "jaxcb.writers.http:PostWriter",
    WandbLog: "jaxcb.writers.wandb:WandbWriter",
    MLflowLog: "jaxcb.writers.mlflow:MLflowWriter",
    Progress: "jaxcb.writers.progress:ProgressWriter",
    Print: "jaxcb.writers.progress:ProgressWriter",
    TensorBoardAction: "jaxcb.writers.tensorboard:TensorBoardWriter",
    Call: "jaxcb.writers.call:CallWriter",
    Checkpoint: "jaxcb.writers.orbax:CheckpointWriter",
    Summarize: "jaxcb.writers.summary:SummaryWriter",
    Profile: "jaxcb.writers.profile:ProfileWriter",
}
_OWN: dict[type[Action], type[Writer]] = {}


def writer(*actions: type[Action]) -> Callable[[W], W]:
    """Registers a class as the writer of one or more kinds of action.

    Args:
        *actions: action classes.

    Returns:
        A decorator that gives the class back.

    Example:
        >>> import jaxcb as jc
        >>> class Beep(jc.LogAction):
        ...     times: int = jc.static(default=1)
        >>> @jc.writer(Beep)
        ... class Beeper(jc.Writer):
        ...     def write(self, record):
        ...         print("beep " * record.action.times)
        >>> jc.writers.writer_for(Beep) is Beeper
        True
    """
    for action in actions:
        if not (isinstance(action, type) and issubclass(action, Action)):
            raise TypeError(f"writer takes action classes, got {action!r}.")

    def register(cls: W) -> W:
        _OWN.update(dict.fromkeys(actions, cls))
        return cls

    return register


def writer_for(action: type[Action]) -> type[Writer]:
    """Returns the writer of a kind of action.

    Raises:
        LookupError: where nobody performs it.
    """
    for kind in action.__mro__:
        if kind in _OWN:
            return _OWN[kind]
        if kind in _BUILT_IN:
            module, name = _BUILT_IN[kind].split(":")
            return getattr(importlib.import_module(module), name)
    raise LookupError(
        f"nothing performs the action {action.__name__}. Register a writer for it: @jc.writer({action.__name__})."
    )
