"""`ChunkSizer`: how many steps a stretch of work has, so that it lasts about a quarter of a second."""

import math
import time
from typing import NamedTuple

import numpy as np

_TARGET = 0.25  # seconds of work in one: progress feels live, and a signal is answered in time
_FIRST = 16  # steps of the first one, before anything is measured


class Timing(NamedTuple):
    """What a stretch took.

    Attributes:
        seconds: since the one before was read; 0 for the first one of a program.
        to_build: seconds that the first one of a program took, most of which made it; None for the others.
    """

    seconds: float
    to_build: float | None


class ChunkSizer:
    """Measures stretches, and sizes the next ones by them.

    Args:
        fixed: steps of each; None measures.

    Attributes:
        length: steps of the next one.
        speed: steps a second; NaN before anything is measured.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self.length, self.speed = fixed or _FIRST, math.nan
        self._began: float | None = None  # when the first dispatch of a program was made, until it was read
        self._last: tuple[float, int] | None = None  # when one was read, and where the run stood

    def dispatched(self) -> None:
        """Says that a stretch was begun."""
        if self._last is None and self._began is None:
            self._began = time.monotonic()

    def read(self, step: int) -> Timing:
        """Says that a stretch was read, with so many updates done."""
        now = time.monotonic()
        if self._last is None:
            lap = Timing(0.0, None if self._began is None else now - self._began)
            self._began = None
        else:
            lap = Timing(now - self._last[0], None)
            self._size(lap.seconds, step - self._last[1])
        self._last = (now, step)
        return lap

    def _size(self, seconds: float, steps: int) -> None:
        if steps <= 0 or seconds <= 0:
            return
        self.speed = steps / seconds
        if self._fixed is None:
            self.length = int(np.clip(_TARGET * self.speed, max(1, self.length // 4), self.length * 4))

    def exclude_host_time(self, step: int) -> None:
        """Says that the time since the last reading is none of the steps'."""
        if self._last is not None:
            self._last = (time.monotonic(), step)

    def reset(self) -> None:
        """Says that another program follows."""
        self._last = None
