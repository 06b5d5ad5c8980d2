"""The last stages of a stream: chunks are put on the devices, and prefetched in a background thread."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax

from jaxcb._src.data.feed import NOT_READY, Chunk, NotReady
from jaxcb._src.data.progress import StreamLimits
from jaxcb._src.data.stream.batch_spec import BatchValidator
from jaxcb._src.data.stream.chunking import ChunkDraft, JoinedEpochs, state_after
from jaxcb._src.data.stream.staging import StagingBuffer, StagingPool
from jaxcb._src.sharding.placement import Placement

_AHEAD = 2  # chunks that are prefetched
# seconds of one wait for a chunk: a signal that comes just before a wait begins, or in another thread, does not end it
_WAIT_SECONDS = 0.1
# seconds to wait for the thread at the end; a thread that blocks in the user's iterator is abandoned
_JOIN_SECONDS = 5.0


class PlacedChunks(Iterator[Chunk]):
    """Transfers the batches of each draft: as one stack for a looped dispatch, or one by one for stepped dispatches.

    Args:
        drafts: the chunks to be.
        validator: knows the structure of a batch.
        pool: has the batches of stacked chunks; None for chunks that are lists of batches.
        placement: shardings of the batches.
    """

    def __init__(
        self, drafts: JoinedEpochs, validator: BatchValidator, pool: StagingPool | None, placement: Placement
    ) -> None:
        self._drafts, self._validator, self._pool, self._placement = drafts, validator, pool, placement

    def __next__(self) -> Chunk:
        draft = next(self._drafts)
        if self._pool is None:
            return self._chunk(draft, batches=[self._placed(leaves, 0) for leaves in draft.take_leaves()])
        if not len(draft):  # as a full one, so that no program is compiled for it
            empty = StagingBuffer(self._validator.placeholder())
            return self._chunk(draft, data=self._placed(empty.leaves, 1))
        buffer = self._pool.take_first(len(draft))
        return self._chunk(draft, data=self._placed(buffer.leaves, 1), memory=buffer)

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last chunk: a `FeedStart` as JSON."""
        return self._drafts.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._drafts.set_state(state)

    def _placed(self, leaves: Any, axis: int) -> Any:
        return self._validator.tree.unflatten(self._placement.put_batch(leaves, axis=axis))

    def _chunk(self, draft: ChunkDraft, *, data: Any = None, batches: Any = None, memory: Any = None) -> Chunk:
        return Chunk(
            data,
            batches,
            epoch=draft.epoch,
            base=draft.base,
            size=len(draft),
            epoch_len=draft.epoch_len,
            closes=draft.closes,
            step=draft.step,
            positions=draft.positions,
            epochs=draft.epochs,
            memory=memory,
        )


class Prefetch:
    """Takes chunks ahead in a background thread, which begins at the first call of `next`.

    Args:
        chunks: the chunks; only the thread uses them from then on.
        limits: where epochs end.
    """

    def __init__(self, chunks: PlacedChunks, limits: StreamLimits) -> None:
        self._chunks, self._limits = chunks, limits
        self._start: Mapping[str, Any] = chunks.get_state()
        self._last: Chunk | None = None  # the last chunk returned, without its data
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._end: BaseException | None = None  # what ended the chunks: an error, or StopIteration

    def next(self, *, wait: bool) -> Chunk | Literal[NotReady.NOT_READY] | None:
        """Returns the next chunk; None at the end. See `Feed.next`."""
        if self._thread is None:
            arguments = (self._chunks, _settings())
            self._thread = threading.Thread(target=self._work, args=arguments, name="jaxcb-data", daemon=True)
            self._thread.start()
        if self._end is None:
            item = self._take(wait=wait)
            if item is NOT_READY:
                return NOT_READY
            if isinstance(item, Chunk):
                self._last = item._replace(data=None, batches=None, memory=None)
                return item
            self._end = item
        end = self._end
        if end is None or not wait:
            return NOT_READY
        if isinstance(end, StopIteration):
            return None
        raise end

    def _take(self, *, wait: bool) -> Any:
        """Returns what the thread has put: a chunk, or what ended the chunks."""
        while True:
            try:
                return self._queue.get(block=wait, timeout=_WAIT_SECONDS)
            except queue.Empty:
                if not wait:
                    return NOT_READY

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last chunk: a `FeedStart` as JSON."""
        return state_after(self._last, self._start, self._limits)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position, where the thread begins.

        Raises:
            RuntimeError: if it has begun.
        """
        if self._thread is not None:
            raise RuntimeError("the thread has begun, and takes chunks from another position")
        self._start = state
        self._chunks.set_state(state)

    def close(self) -> None:
        """Ends the thread, unless it waits in the user's iterator for too long."""
        self._closed.set()
        deadline = time.monotonic() + _JOIN_SECONDS
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.01)
            self._thread.join(timeout=0.01)

    # In the background thread

    def _work(self, chunks: PlacedChunks, settings: list[Any]) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for setting in settings:
                    stack.enter_context(setting)
                while self._put(next(chunks)):
                    pass
        except BaseException as error:  # raised again in the main thread
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _settings() -> list[Any]:
    """Returns context managers for the thread-local settings of JAX, to be entered in the background thread."""
    config: Any = jax.config
    return [jax.default_device(config.jax_default_device), jax.enable_x64(config.jax_enable_x64)]
