"""`ChunkSizer`: chooses the number of steps per dispatch such that it takes about a quarter of a second."""

import math
import time
from typing import NamedTuple

import numpy as np

_TARGET = 0.25  # seconds per dispatch: short enough for a live progress display and a quick response to signals
_FIRST = 16  # steps of the first dispatch, before any measurement


class Timing(NamedTuple):
    """Duration of a dispatch.

    Attributes:
        seconds: since the previous result was read; 0 for the first dispatch of a program.
        to_build: seconds of the first dispatch of a program, most of them compile time; None for the others.
    """

    seconds: float
    to_build: float | None


class ChunkSizer:
    """Measures dispatches and sizes the next ones.

    Args:
        fixed: steps per dispatch; None to measure.

    Attributes:
        length: steps of the next dispatch.
        speed: steps per second; NaN before the first measurement.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self.length, self.speed = fixed or _FIRST, math.nan
        self._began: float | None = None  # time of the first dispatch of a program, until it is read
        self._last: tuple[float, int] | None = None  # time and step of the last result

    def dispatched(self) -> None:
        """Notes a dispatch."""
        if self._last is None and self._began is None:
            self._began = time.monotonic()

    def read(self, step: int) -> Timing:
        """Notes a result after `step` updates, and returns its duration."""
        now = time.monotonic()
        if self._last is None:
            timing = Timing(0.0, None if self._began is None else now - self._began)
            self._began = None
        else:
            timing = Timing(now - self._last[0], None)
            self._size(timing.seconds, step - self._last[1])
        self._last = (now, step)
        return timing

    def _size(self, seconds: float, steps: int) -> None:
        if steps <= 0 or seconds <= 0:
            return
        self.speed = steps / seconds
        if self._fixed is None:
            self.length = int(np.clip(_TARGET * self.speed, max(1, self.length // 4), self.length * 4))

    def exclude_host_time(self, step: int) -> None:
        """Excludes the time since the last result from the measurement."""
        if self._last is not None:
            self._last = (time.monotonic(), step)

    def reset(self) -> None:
        """Restarts the measurement for another program."""
        self._last = None
