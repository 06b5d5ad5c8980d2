"""What the host decides and dispatches next, how much of it, and what is in flight."""

import math
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from jaxcb._src.data.feed import Chunk, NotReady
from jaxcb._src.loop.compiled.executor import Output
from jaxcb._src.utils.errors import DataError


class HostDecision(NamedTuple):
    """The next thing that the host does. Process 0 decides it and broadcasts it.

    It contains everything that devices cannot decide identically on every process.

    Attributes:
        signum: a signal that requests the end of the run.
        save: whether to write a checkpoint.
        pack: whether to compact a population into a smaller program.
        length: limit of steps for the next dispatch.
        host: host metrics for the next dispatch; None for no dispatch.
        data: `chunk_key` of the data of the next dispatch.
    """

    signum: int | None = None
    save: bool = False
    pack: bool = False
    length: int = 0
    host: np.ndarray | None = None
    data: tuple[int, ...] = ()

    @property
    def needs_idle_device(self) -> bool:
        """Whether there is something to do that needs all dispatches to be finished."""
        return self.signum is not None or self.save or self.pack


def chunk_key(chunk: Chunk) -> tuple[int, ...]:
    """Returns the position and size of a chunk, which must be equal on all processes."""
    return chunk.epoch, chunk.base, chunk.size, chunk.epoch_len, int(chunk.closes), chunk.epochs


def check_same_chunk(chunk: Chunk | NotReady | None, wanted: tuple[int, ...], index: int) -> Chunk:
    """Returns the chunk of this process.

    Raises:
        DataError: if it does not cover the same steps as the chunk of process 0.
    """
    if isinstance(chunk, Chunk) and chunk_key(chunk) == wanted:
        return chunk
    got = _shown(chunk_key(chunk)) if isinstance(chunk, Chunk) else "no more batches"
    raise DataError(
        f"process {index} has other data than process 0: {got}; process 0 has {_shown(wanted)}. Each process "
        "must provide the same number of batches per epoch, with the same number of rows."
    )


def _shown(place: tuple[int, ...]) -> str:
    epoch, base, size, _, closes, _ = place
    return f"batches {base + 1} to {base + size} from epoch {epoch + 1} on" + (", the last ones" if closes else "")


class PendingDispatch(NamedTuple):
    """A dispatch whose result was not read yet."""

    chunk: Chunk
    output: Output
    host: np.ndarray  # the host metrics that were passed to it


_IN_FLIGHT = 2  # dispatches in flight


class DispatchQueue:
    """The dispatches in flight, oldest first.

    There are two, so that the device works while the host handles records. This is safe, since a program that must not
    run returns its state unchanged: after a stop, a host action or a due host validation, the queued dispatches are
    no-ops. They then only have to be read.
    """

    def __init__(self) -> None:
        self._pending: deque[PendingDispatch] = deque()

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether the oldest dispatch has to be read before the next one."""
        return len(self._pending) >= _IN_FLIGHT

    @property
    def may_wait(self) -> bool:
        """Whether the host may have to act after the last dispatch, before further steps are useful."""
        return bool(self._pending) and self._pending[-1].output.may_wait

    def push(self, dispatch: PendingDispatch) -> None:
        """Appends a dispatch."""
        self._pending.append(dispatch)

    def pop(self) -> PendingDispatch:
        """Removes the oldest dispatch."""
        return self._pending.popleft()


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
