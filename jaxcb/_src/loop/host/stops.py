"""Reasons for the end of a run: `Stop` actions and signals."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxcb._src.core.actions.utils import fill
from jaxcb._src.writers.run_handle import Record

TERMINATED = 143  # exit status after SIGTERM, by the convention of shells


class Interrupted(BaseException):
    """A signal has requested the end of the run. Never leaves the loop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Handles SIGTERM and Ctrl-C during training; a second Ctrl-C raises KeyboardInterrupt at once.

    A signal is only handled if its current handler is the default one. Ignored signals (such as SIGINT in a script's
    background job) and custom handlers are left alone, also those that are set during the run. Only the main thread can
    set handlers: a run in another thread handles no signals.

    Args:
        sigterm: whether to handle SIGTERM; False if JAX's preemption notice handles it.

    Attributes:
        received: the signal received, or None.
        waiting: whether the run waits with nothing pending, and can be interrupted at once.
    """

    def __init__(self, *, sigterm: bool = True) -> None:
        self._taken = (signal.SIGTERM, signal.SIGINT) if sigterm else (signal.SIGINT,)
        self.received: int | None = None
        self.waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in self._taken:
                known = signal.getsignal(signum)  # None: a handler that was not set from Python
                is_ours = getattr(known, "__func__", None) is Signals._take  # of an enclosing run
                if is_ours or known in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[signum] = signal.signal(signum, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            if signal.getsignal(signum) == self._take:  # a handler that a callback has set meanwhile stays
                signal.signal(signum, handler)
        before, self._before = self._before, {}
        outer: Any = before.get(self.received or 0)
        if self.received is not None and getattr(outer, "__func__", None) is Signals._take:
            outer(self.received, None)  # the enclosing run ends, too

    def receive(self, signum: int) -> None:
        """Notes a signal that another part has received."""
        self.received = signum

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raises `Interrupted` in the body as soon as a signal arrives: nothing is pending, and the body may wait.

        The body must run Python code from time to time, as a signal is only handled there.
        """
        self.waiting = True
        try:
            if self.received is not None:  # since the caller last looked
                raise Interrupted(self.received)
            yield
        finally:
            self.waiting = False

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self.waiting:
            raise Interrupted(signum)


class StopRecord(NamedTuple):
    """A `Stop` that fired: its callback, reason, position, and member of a population."""

    owner: str
    reason: str
    step: int
    epoch: int
    member: int | None = None


def stops_of(record: Record) -> Iterable[StopRecord]:
    """Yields the stops of a record, one per member for which it fires."""
    when = np.asarray(record.action.when)
    for member in np.flatnonzero(when) if when.ndim else (None,):
        action = record.action if member is None else jax.tree.map(lambda x, m=member: x[m], record.action)
        reason = fill(action, step=record.step, epoch=record.epoch, batch=record.batch)
        yield StopRecord(action.owner, reason, record.step, record.epoch, None if member is None else int(member))


def check_text(action: Any, members: int | None) -> None:
    """Formats an action's text with zeros, to find an invalid template before the first step.

    Raises:
        ValueError: for a template that cannot be formatted.
    """
    if not action.template or callable(getattr(action, action.template)):
        return
    axes = 0 if members is None else 1
    zeros = jax.tree.map(lambda s: np.zeros(s.shape[axes:], s.dtype), action)
    try:
        fill(zeros)
    except Exception as error:
        text = getattr(action, action.template)
        raise ValueError(
            f"{action.owner}: the text of its {type(action).__name__}, {text!r}, cannot be formatted: {error}"
        ) from None
