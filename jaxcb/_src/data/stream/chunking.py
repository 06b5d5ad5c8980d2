"""Groups the batches of a source into drafts of chunks, each a part of one epoch, and joins short epochs."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from jaxcb._src.data.feed import Chunk
from jaxcb._src.data.progress import FeedStart, Position, StreamLimits, is_over, must_close
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.batch_spec import BatchSpec, CheckedBatch
from jaxcb._src.data.stream.epoch_ends import EpochEnds
from jaxcb._src.data.stream.epochs import SourcePosition
from jaxcb._src.utils.errors import DataError


class ChunkDraft:
    """Batches of a chunk to be: of one epoch, or of several complete epochs.

    Attributes:
        epoch: first epoch.
        base: cursor of the first batch.
        step: updates done before it.
        epoch_len: steps of the epoch, UNBOUNDED if not yet known.
        spec: of the batches; None if there is none.
        positions: position of the source after each batch.
        leaves: arrays of each batch; None if they are in a staging buffer.
        epochs: number of epochs.
        closes: whether its last epoch ends with it.
        is_complete: whether it has all batches of its epochs.
        most: maximum number of batches when it was emitted.
        is_late: whether it was emitted since its batches have waited for too long.
    """

    def __init__(self, epoch: int, base: int, step: int, epoch_len: int) -> None:
        self.epoch, self.base, self.step, self.epoch_len = epoch, base, step, epoch_len
        self.spec: BatchSpec | None = None
        self.positions: list[SourcePosition] = []
        self.leaves: list[Any] = []
        self.epochs, self.closes, self.is_complete = 1, False, False
        self.most, self.is_late = 0, False

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, position: SourcePosition, spec: BatchSpec, leaves: list[Any] | None) -> None:
        """Appends a batch."""
        self.spec = spec
        self.positions.append(position)
        self.leaves.append(leaves)

    def close(self, epoch_len: int, *, is_complete: bool) -> None:
        """Notes that the epoch ends with the last batch."""
        self.closes, self.epoch_len, self.is_complete = True, epoch_len, is_complete

    def emit(self, most: int, *, is_late: bool) -> None:
        """Notes with which limit it is emitted, and whether since its batches have waited for too long."""
        self.most, self.is_late = most, is_late

    def take_leaves(self) -> list[Any]:
        """Returns the arrays of each batch, and frees them."""
        leaves, self.leaves = self.leaves, []
        return leaves

    def merged(self, other: Self) -> Self:
        """Appends another complete epoch."""
        self.positions += other.positions
        self.leaves += other.leaves
        self.epochs += other.epochs
        return self


def state_after(chunk: ChunkDraft | Chunk | None, start: Mapping[str, Any], limits: StreamLimits) -> dict[str, Any]:
    """Returns a `FeedStart` as JSON: the position after a chunk.

    Args:
        chunk: the last chunk; None if there was none.
        start: the position at the start.
        limits: where epochs end.
    """
    if chunk is None:
        return dict(start)
    position = chunk.positions[-1].as_json() if chunk.positions else start["position"]
    size = len(chunk.positions)
    state = {"epoch": chunk.epoch, "cursor": chunk.base + size, "step": chunk.step + size, "position": position}
    if chunk.closes:
        state |= {"epoch": chunk.epoch + chunk.epochs, "cursor": 0, "position": limits.after_epoch(position)}
    return state


class ChunkLimit:
    """The maximum number of batches of a chunk, which the run changes while the thread makes chunks.

    Args:
        most: the number.
        fixed: whether it stays the same.
    """

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self.most, self._fixed = most, fixed

    def set(self, most: int) -> None:
        """Sets the number for the chunks that are not emitted yet. Callable from any thread."""
        if not self._fixed:
            self.most = most


class FlushTimer:
    """Measures how long batches have waited to be emitted. The stages that hold batches share it.

    Args:
        seconds: after which a chunk is dispatched without waiting for more batches.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Notes that there is a batch that waits."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Notes that all batches were emitted."""
        self._since = None

    @property
    def is_over(self) -> bool:
        """Whether the first batch that waits has waited for too long."""
        return self._since is not None and time.monotonic() - self._since > self._seconds


Drafts = Sequence[ChunkDraft | None]  # see `Chunks`


class ChunkBuilder:
    """Collects batches in a draft, and says when it is to be emitted. Counts epochs and steps.

    The work per batch must be short, since it takes as long as a small step.

    Args:
        limits: where epochs and run end.
        limit: the maximum number of batches of a chunk.
        timer: how long batches have waited.

    Attributes:
        is_over: whether the run needs no more batches.
    """

    def __init__(self, limits: StreamLimits, limit: ChunkLimit, timer: FlushTimer) -> None:
        self._limits, self._limit, self._timer = limits, limit, timer
        self.begin_at(FeedStart())

    def begin_at(self, start: FeedStart) -> Drafts:
        """Drops the batches so far and continues at a position. Returns the drafts to emit.

        A run may be resumed between the last step of an epoch and its end. No batch is left then, but the epoch has to
        be closed.
        """
        self.epoch, self.cursor, self.step = start.epoch, start.cursor, start.step
        self._length_before = 0  # steps of the previous epoch; 0 if they are unknown
        self._begin_draft()
        return self._close_without_batches(self._limits.epoch_len) if must_close(self._at, self._limits) else ()

    def add(self, batch: CheckedBatch, is_last: bool) -> Drafts:
        """Adds a batch. Returns the drafts to emit.

        Args:
            batch: the batch. One without a spec is the end of an epoch that has no batch left.
            is_last: whether it is the last one of its epoch.
        """
        position, spec, leaves = batch
        if spec is None:  # the length of the resumed epoch was not known in advance
            return self._close_without_batches(self.cursor) if self.cursor else ()
        before: Drafts = ()
        if spec is not self._draft.spec:  # also for the first batch of a draft
            before = self.take()
            self._timer.start()
        self._draft.add(position, spec, leaves)
        self.cursor, self.step = self.cursor + 1, self.step + 1
        if is_last or self._is_last_of_run() or self._is_full(spec) or self._timer.is_over:
            return (*before, self._emit(is_last, spec))
        return (*before, None) if self._outlasts_previous_epoch() else before

    def take(self) -> Drafts:
        """Returns the draft of the batches so far, if there are any."""
        draft = self._draft
        if not draft.positions:
            return ()
        self._begin_draft()
        return (draft,)

    def _is_last_of_run(self) -> bool:
        """Returns whether the run ends with the last batch, and with it its epoch."""
        return self.step == self._limits.end_step

    def _is_full(self, spec: BatchSpec) -> bool:
        """Returns whether the draft may have no more batches. A smaller batch is a chunk of its own."""
        size = len(self._draft.positions)
        return size >= spec.most or size >= self._limit.most

    def _outlasts_previous_epoch(self) -> bool:
        """Returns whether this epoch turns out to be longer than the previous one."""
        return self.cursor == self._length_before

    def _emit(self, is_last: bool, spec: BatchSpec) -> ChunkDraft:
        """Returns the draft, after the last batch was added."""
        draft = self._draft
        draft.emit(min(spec.most, self._limit.most), is_late=self._timer.is_over)
        if is_last:
            draft.close(self.cursor, is_complete=draft.base == 0)
            self._begin_epoch(length_before=self.cursor)
        elif self._is_last_of_run():
            draft.close(self._limits.epoch_len, is_complete=False)
            self._begin_epoch(length_before=0)
        else:
            self._begin_draft()
        return draft

    def _close_without_batches(self, epoch_len: int) -> Drafts:
        """Returns an empty draft that closes the epoch, since only a chunk has the length of an epoch."""
        draft = self._draft
        draft.close(epoch_len, is_complete=False)
        self._begin_epoch(length_before=0)
        return (draft,)

    def _begin_epoch(self, *, length_before: int) -> None:
        self.epoch, self.cursor, self._length_before = self.epoch + 1, 0, length_before
        self._begin_draft()

    def _begin_draft(self) -> None:
        self._draft = ChunkDraft(self.epoch, self.cursor, self.step, self._limits.epoch_len)
        self.is_over: bool = is_over(self._at, self._limits)

    @property
    def _at(self) -> Position:
        return Position(self.step, self.epoch, self.cursor)


class Chunks(Iterator[ChunkDraft | None]):
    """Groups batches into drafts of chunks.

    None among the drafts says that the current epoch is longer than the previous one, so that they cannot be joined.

    An error of the data comes after the batches before it, as in an unbuffered loop.

    Args:
        batches: the batches, each with a mark whether it is the last one of its epoch.
        builder: collects them.
        limits: where epochs and run end.
        source: where the batches come from.
    """

    def __init__(self, batches: EpochEnds, builder: ChunkBuilder, limits: StreamLimits, source: Source) -> None:
        self._batches, self._builder, self._limits, self._source = batches, builder, limits, source
        self._take = batches.__next__
        self._ready: deque[ChunkDraft | None] = deque()
        self._error: Exception | None = None
        self._last: ChunkDraft | None = None  # the last draft returned
        self._start: Mapping[str, Any] = FeedStart(position=batches.get_state()["position"])._asdict()

    def __next__(self) -> ChunkDraft | None:
        ready, builder = self._ready, self._builder
        while not ready:
            if self._error is not None:
                raise self._error
            if builder.is_over:
                raise StopIteration
            try:
                batch, is_last = self._take()
            except Exception as error:
                self._error = self._used_up() if isinstance(error, StopIteration) else error
                ready.extend(builder.take())
            else:
                ready.extend(builder.add(batch, is_last))
        draft = ready.popleft()
        if draft is not None:
            self._last = draft
        return draft

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last draft: a `FeedStart` as JSON."""
        return state_after(self._last, self._start, self._limits)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._batches.set_state(state)
        self._start, self._last, self._error = state, None, None
        self._ready = deque(self._builder.begin_at(FeedStart(**state)))

    def _used_up(self) -> DataError:
        return DataError(
            f"{self._source.what} is a {self._source.kind} that was used up after {self._builder.step} batches, in "
            f"epoch {self._builder.epoch + 1}. Pass something that can be iterated again, or request fewer steps."
        )


class JoinedEpochs(Iterator[ChunkDraft]):
    """Joins drafts of complete epochs of one length.

    Args:
        drafts: drafts, each of a part of one epoch.
        timer: how long batches have waited.
        limits: where epochs end.
        joins: whether complete epochs may wait for later ones. Not if the data of an epoch depends on the controls
            after the previous epoch, and not for a live stream, whose next batch may take any time.
    """

    def __init__(self, drafts: Chunks, timer: FlushTimer, limits: StreamLimits, *, joins: bool) -> None:
        self._drafts, self._timer, self._limits, self._joins = drafts, timer, limits, joins
        self._ready: deque[ChunkDraft] = deque()
        self._held: ChunkDraft | None = None  # complete epochs, to be joined with later ones
        self._error: Exception | None = None
        self._last: ChunkDraft | None = None  # the last draft returned
        self._start: Mapping[str, Any] = drafts.get_state()

    def __next__(self) -> ChunkDraft:
        while not self._ready:
            if self._error is not None:
                raise self._error
            try:
                draft = next(self._drafts)
            except Exception as error:  # also at the end: first what is held
                self._error = error
                self._release()
            else:
                self._add(draft)
        self._last = self._ready.popleft()
        return self._last

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last draft: a `FeedStart` as JSON."""
        return state_after(self._last, self._start, self._limits)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._drafts.set_state(state)
        self._start, self._last = FeedStart(**state)._asdict(), None
        self._held, self._error = None, None
        self._ready.clear()
        self._timer.stop()

    def _add(self, draft: ChunkDraft | None) -> None:
        if not self._fits(draft):
            self._release()
        if draft is None:
            return
        if self._joins and draft.is_complete:
            self._held = draft if self._held is None else self._held.merged(draft)
            if draft.is_late or not self._has_room(draft):
                self._release()
        else:
            self._ready.append(draft)
        if self._held is None:
            self._timer.stop()

    def _fits(self, draft: ChunkDraft | None) -> bool:
        """Returns whether a draft can be joined with the epochs that are held: a chunk has epochs of one length."""
        held = self._held
        if held is None or draft is None:
            return False
        return draft.is_complete and draft.epoch_len == held.epoch_len and draft.spec is held.spec

    def _has_room(self, draft: ChunkDraft) -> bool:
        """Returns whether another epoch like this one would fit into the chunk."""
        return self._held is not None and len(self._held) + len(draft) <= draft.most

    def _release(self) -> None:
        if self._held is not None:
            self._ready.append(self._held)
            self._held = None
