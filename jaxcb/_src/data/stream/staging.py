"""Host memory in which batches are stacked into chunks: how they get into it, and from there onto the devices."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxcb._src.data.inputs import copied
from jaxcb._src.data.stream.batch_spec import BatchSpec, CheckedBatch, CheckedBatches

_ALIGNED = 64  # bytes; a CPU device can alias memory with this alignment


class StagingBuffer:
    """Memory for a chunk of batches of one spec."""

    def __init__(self, form: BatchSpec) -> None:
        self.form, self.count = form, 0
        self.leaves = [_aligned((form.most, *shape), dtype) for shape, dtype in form.leaves]

    def add(self, leaves: list[Any]) -> None:
        """Appends a copy of a batch."""
        count = self.count
        for memory, leaf in zip(self.leaves, leaves, strict=True):
            memory[count] = leaf
        self.count = count + 1

    def extend(self, other: "StagingBuffer", start: int) -> None:
        """Appends copies of the batches of another buffer, from `start` on."""
        end = self.count + other.count - start
        for memory, leaf in zip(self.leaves, other.leaves, strict=True):
            memory[self.count : end] = leaf[start : other.count]
        self.count = end


class StagingPool:
    """Copies each batch once, into the memory that is transferred, since a loader may reuse its buffers.

    Released buffers are reused without clearing them. Allocating memory for each chunk would take as long as the
    copies.
    """

    def __init__(self) -> None:
        self._filling: deque[StagingBuffer] = deque()  # in the order of the batches
        self._last: StagingBuffer | None = None  # the last one of these
        self._free: deque[StagingBuffer] = deque()

    def add(self, leaves: list[Any], form: BatchSpec) -> None:
        """Appends a batch, to a new buffer if the last one is full or of another spec."""
        last = self._last
        if last is None or last.form is not form or last.count == form.most:
            last = self._last = self._new(form)
            self._filling.append(last)
        last.add(leaves)

    def take_first(self, count: int) -> StagingBuffer:
        """Removes the first batches, all of one spec. Batches after them move to another buffer."""
        first = self._filling.popleft()
        if count < first.count:
            rest = self._new(first.form)
            rest.extend(first, count)
            while self._filling and self._filling[0].form is first.form:
                later = self._filling.popleft()
                rest.extend(later, 0)
                self._free.append(later)
            self._filling.appendleft(rest)
        self._last = self._filling[-1] if self._filling else None
        return first

    def clear(self) -> None:
        """Drops the batches that were not taken."""
        self._free.extend(self._filling)
        self._filling.clear()
        self._last = None

    def release(self, stack: StagingBuffer) -> None:
        """Returns a buffer to the pool. No device may read it any more. Callable from any thread."""
        self._free.append(stack)

    def _new(self, form: BatchSpec) -> StagingBuffer:
        while self._free:
            stack = self._free.popleft()
            if stack.form is form:
                stack.count = 0
                return stack
        return StagingBuffer(form)


class StagedBatches(Iterator[CheckedBatch]):
    """Copies each batch, since the source may reuse its buffers for the next batch.

    Args:
        batches: checked batches.
        pool: the memory for stacked batches, which then leave the items; None to copy each batch into new memory.
    """

    def __init__(self, batches: CheckedBatches, pool: StagingPool | None) -> None:
        self._batches, self._take, self._pool = batches, batches.__next__, pool

    def __next__(self) -> CheckedBatch:
        position, spec, leaves = self._take()
        if spec is None or leaves is None:
            return position, None, None
        if self._pool is None:
            return position, spec, copied(leaves)
        self._pool.add(leaves, spec)
        return position, spec, None

    def get_state(self) -> Mapping[str, Any]:
        """Returns the position after the last batch, as JSON."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        if self._pool is not None:
            self._pool.clear()
        self._batches.set_state(state)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros with the alignment that lets CPU devices alias them."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(nbytes + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + nbytes].view(dtype).reshape(shape)
