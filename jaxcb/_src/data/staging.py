"""Stacks: the host's memory in which batches become chunks."""

from collections import deque
from typing import Any

import numpy as np

from jaxcb._src.data.batch_spec import BatchSpec

_ALIGNED = 64  # bytes; a CPU device takes memory that is so aligned as its own


class StagingBuffer:
    """Room for a chunk of batches of one form."""

    def __init__(self, form: BatchSpec) -> None:
        self.form, self.count = form, 0
        self.leaves = [_aligned((form.most, *shape), dtype) for shape, dtype in form.leaves]

    def add(self, leaves: list[Any]) -> None:
        """Copies a batch behind the last one."""
        count = self.count
        for room, leaf in zip(self.leaves, leaves, strict=True):
            room[count] = leaf
        self.count = count + 1

    def extend(self, other: "StagingBuffer", start: int) -> None:
        """Copies what another one holds from `start` on."""
        end = self.count + other.count - start
        for room, leaf in zip(self.leaves, other.leaves, strict=True):
            room[self.count : end] = leaf[start : other.count]
        self.count = end


class StagingPool:
    """Copies each batch once, to where it travels from: a loader may use its buffer for the next one.

    Memory goes round: what a run is done with, and has given back, is written anew. So it is neither cleared nor taken
    from the system for each chunk, which would cost as much as the copies.
    """

    def __init__(self) -> None:
        self._filling: deque[StagingBuffer] = deque()  # in the order of their batches
        self._last: StagingBuffer | None = None  # of them
        self._free: deque[StagingBuffer] = deque()

    def add(self, leaves: list[Any], form: BatchSpec) -> None:
        """Copies a batch behind the last one, or into another stack where that one is full or of another form."""
        last = self._last
        if last is None or last.form is not form or last.count == form.most:
            last = self._last = self._new(form)
            self._filling.append(last)
        last.add(leaves)

    def cut(self, count: int) -> StagingBuffer:
        """Takes the first batches out, all of one form; those behind them move on to another stack."""
        first = self._filling.popleft()
        if count < first.count:
            rest = self._new(first.form)
            rest.extend(first, count)
            while self._filling and self._filling[0].form is first.form:
                behind = self._filling.popleft()
                rest.extend(behind, 0)
                self._free.append(behind)
            self._filling.appendleft(rest)
        self._last = self._filling[-1] if self._filling else None
        return first

    def release(self, stack: StagingBuffer) -> None:
        """Lets the memory be written again; no device may read it any more. From any thread."""
        self._free.append(stack)

    def _new(self, form: BatchSpec) -> StagingBuffer:
        while self._free:
            stack = self._free.popleft()
            if stack.form is form:
                stack.count = 0
                return stack
        return StagingBuffer(form)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros, whose first byte lies where devices want it."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(nbytes + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + nbytes].view(dtype).reshape(shape)
