"""Signals: a run that is asked to end is told between two stretches of work."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

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
