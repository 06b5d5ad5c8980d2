"""Who stopped a run, and why: the `Stop` actions that came back from the device."""

import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxcb._src.core.actions.utils import fill
from jaxcb._src.writers.run_handle import Record

TERMINATED = 143  # the exit status of a process that SIGTERM ended, as shells count it


class Interrupted(BaseException):
    """A signal has asked the run to end. Never leaves the loop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Takes SIGTERM and Ctrl-C while a run trains; a second Ctrl-C is immediate.

    A signal is taken only where it does what it does by default. One that is ignored (as SIGINT is in what a script
    puts in the background), or that somebody else handles, stays as it is. A handler that is set during the run stays,
    too. Handlers belong to a process's main thread: a run in another thread takes no signal.

    Args:
        sigterm: whether SIGTERM is taken; not where JAX's own notice takes it.

    Attributes:
        asked: the signal that came, None before one did.
        waiting: whether the run waits for its data with nothing under way, and can be told at once.
    """

    def __init__(self, *, sigterm: bool = True) -> None:
        self._taken = (signal.SIGTERM, signal.SIGINT) if sigterm else (signal.SIGINT,)
        self.asked: int | None = None
        self.waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in self._taken:
                known = signal.getsignal(signum)  # None is a handler that was not set in Python: a cluster's own notice
                is_ours = getattr(known, "__func__", None) is Signals._take  # of a run that this one is a part of
                if is_ours or known in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[signum] = signal.signal(signum, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            if signal.getsignal(signum) == self._take:  # else a callback has set another one, which stays
                signal.signal(signum, handler)
        before, self._before = self._before, {}
        outer: Any = before.get(self.asked or 0)
        if self.asked is not None and getattr(outer, "__func__", None) is Signals._take:
            outer(self.asked, None)  # the run that this one is a part of is asked, too

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signum
        if self.waiting:
            raise Interrupted(signum)


class StopRecord(NamedTuple):
    """A `Stop` that fired: who asked, why, where, and for which member of a population."""

    owner: str
    reason: str
    step: int
    epoch: int
    member: int | None = None


def stops_of(record: Record) -> Iterable[StopRecord]:
    """Returns the stops of a record, one a member for which it fires."""
    when = np.asarray(record.action.when)
    for member in np.flatnonzero(when) if when.ndim else (None,):
        own = record.action if member is None else jax.tree.map(lambda x, m=member: x[m], record.action)
        reason = fill(own, step=record.step, epoch=record.epoch, batch=record.batch)
        yield StopRecord(own.owner, reason, record.step, record.epoch, None if member is None else int(member))


def check_text(action: Any, members: int | None) -> None:
    """Fills an action's text with zeros, so that one that cannot be filled is found before the first step."""
    if not action.template:
        return
    axes = 0 if members is None else 1
    zeros = jax.tree.map(lambda s: np.zeros(s.shape[axes:], s.dtype), action)
    try:
        fill(zeros)
    except Exception as error:
        text = getattr(action, action.template)
        raise ValueError(
            f"{action.owner}: the text of its {type(action).__name__}, {text!r}, cannot be filled: {error}"
        ) from None
