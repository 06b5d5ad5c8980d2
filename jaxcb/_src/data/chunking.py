"""`Chunker`: groups the batches of a source into chunks, in the background thread of a stream."""

import itertools
import queue
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from jaxcb._src.data.batch_spec import MOST, BatchSpec, BatchValidator
from jaxcb._src.data.feed import Chunk
from jaxcb._src.data.inputs import copied
from jaxcb._src.data.iterator import EpochIterator, Position, Pulled
from jaxcb._src.data.sources import Source
from jaxcb._src.data.staging import StagingBuffer, StagingPool
from jaxcb._src.sharding.placement import ONE_DEVICE
from jaxcb._src.utils.errors import DataError


class ChunkDraft:
    """Batches of a chunk to be: of one epoch, or of several complete epochs."""

    def __init__(self, epoch: int, base: int, step: int, epoch_len: int) -> None:
        self.epoch, self.base, self.step, self.epoch_len = epoch, base, step, epoch_len
        self.positions: list[Position] = []  # position of the iterator after each batch
        self.leaves: list[Any] = []  # arrays of each batch; None if they are in a staging buffer
        self.epochs, self.closes = 1, False

    def __len__(self) -> int:
        return len(self.positions)

    def merged(self, other: Self) -> Self:
        """Appends another complete epoch."""
        self.positions += other.positions
        self.leaves += other.leaves
        self.epochs += other.epochs
        return self

    def chunk(self, data: Any = None, batches: list[Any] | None = None, memory: Any = None) -> Chunk:
        """Makes the chunk.

        Args:
            data: stacked batches on the devices.
            batches: list of batches on the devices.
            memory: the staging buffer that `data` may alias.
        """
        return Chunk(
            data,
            batches,
            epoch=self.epoch,
            base=self.base,
            size=len(self),
            epoch_len=self.epoch_len,
            closes=self.closes,
            step=self.step,
            positions=self.positions,
            epochs=self.epochs,
            memory=memory,
        )


MAX_BATCHES_MULTIPROCESS = 16  # batches per chunk with several processes, whose chunks must be equal
FLUSH_AFTER_S = 0.25  # seconds after which a chunk is dispatched without waiting for more batches

ValidatedBatch = tuple[Position, BatchSpec, list[Any] | None]  # a validated batch: position after it, spec, arrays
_EXHAUSTED = None, None


class DataRange(NamedTuple):
    """The part of a stream that a run needs.

    Attributes:
        epoch: first epoch.
        cursor: steps of that epoch that are already done.
        step: updates that are already done.
        epoch_len: steps of an epoch, UNBOUNDED if unknown.
        steps_per_epoch: the same if a stream is cut into epochs; None if the source ends each epoch.
        end_epoch: the run needs no data for this epoch and later ones.
        end_step: the run needs no data after this many steps.
    """

    epoch: int
    cursor: int
    step: int
    epoch_len: int
    steps_per_epoch: int | None
    end_epoch: int
    end_step: int

    def is_over(self, epoch: int, cursor: int, step: int) -> bool:
        """Returns whether a run at this position needs no more batches."""
        return step >= self.end_step or (cursor == 0 and epoch >= self.end_epoch)


class Chunker:
    """Groups batches into chunks: a part of an epoch, or several complete epochs of one length.

    Short epochs are merged, since otherwise the devices would wait for the host after each epoch. The work per batch
    must be short, since it takes as long as a small step.

    Args:
        source: where the batches come from.
        span: the part of the data that the run needs.
        forms: validates the batches.
        train_remainder: whether to train on a smaller last batch.
        alike: whether several processes must cut equal chunks. If so, the time that batches take is ignored.

    Attributes:
        stacks: the staging buffers of stacked chunks.
        stacked: whether a chunk is one stack of batches, or a list of batches.
        placement: shardings of the batches.
        wanted: maximum number of batches per chunk.
    """

    def __init__(
        self, source: Source, span: DataRange, forms: BatchValidator, *, train_remainder: bool, alike: bool
    ) -> None:
        self._source, self._span, self._forms = source, span, forms
        self._train_remainder, self._alike = train_remainder, alike
        self.stacks, self.stacked, self.placement = StagingPool(), True, ONE_DEVICE
        self.wanted = MAX_BATCHES_MULTIPROCESS if alike else MOST
        self._begins: queue.Queue[dict[str, float] | None] = queue.Queue()  # controls of the epochs that may begin

    def begin(self, controls: dict[str, float] | None) -> None:
        """Allows an epoch to begin whose data depends on the controls; None ends the stream. Thread-safe."""
        self._begins.put(controls)

    def chunks(self, first: EpochIterator, taken: list[Pulled], start_position: dict[str, Any]) -> Iterator[Chunk]:  # noqa: C901, PLR0915
        """Yields the chunks.

        Two drafts are open at a time: `current` collects batches of the current epoch, `complete_epochs` the epochs
        before it that may be merged. After each batch, one of four cases applies:

        1. Nothing is due: collect more batches.
        2. The current epoch does not match the length of those in `complete_epochs`: emit `complete_epochs`.
        3. The epoch is complete and may be merged: move `current` into `complete_epochs`.
        4. The chunk must be emitted (epoch ends, maximum size, smaller batch, or batches arrive slowly): emit both
        drafts in order.

        Args:
            first: iterator of the epoch in which the run begins.
            taken: batches that were already taken from it, to infer shapes.
            start_position: position of the source at the start of the run.

        Raises:
            DataError: for invalid batches, or if the source ends early.
        """
        span = self._span
        epoch, cursor, step = span.epoch, span.cursor, span.step
        # The run was resumed after the last step of an epoch and before its end. No batch is left, but the epoch has to
        # be closed, which takes an empty chunk.
        if cursor > 0 and (step >= span.end_step or cursor >= span.epoch_len):
            yield self._closing(epoch, cursor, step, span.epoch_len)
            epoch, cursor = epoch + 1, 0
        complete_epochs: ChunkDraft | None = None  # complete epochs of one length
        # batches of the current epoch, after those in `complete_epochs`
        current = ChunkDraft(epoch, cursor, step, span.epoch_len)
        ragged, started_at, collected = False, 0.0, None
        batches = self._batches(self._epochs(first, taken, start_position))
        done = span.is_over(epoch, cursor, step)
        while not done:
            try:
                batch, ends = next(batches, _EXHAUSTED)
                if ends is None:
                    raise DataError(
                        f"{self._source.what} is a {self._source.kind} that was used up after {step} batches, in epoch "
                        f"{epoch + 1}. Pass something that can be iterated again, or request fewer steps."
                    )
            except Exception:
                # train on the batches before the error, as an unbuffered loop would
                yield from self._flush(complete_epochs, current)
                raise
            if batch is None:  # the resumed epoch has no batch left; its length was not known in advance
                if cursor > 0:
                    yield self._closing(epoch, cursor, step, cursor)
                    epoch, cursor = epoch + 1, 0
                    current = ChunkDraft(epoch, cursor, step, span.epoch_len)
                    done = span.is_over(epoch, cursor, step)
                continue
            position, form, leaves = batch
            if ragged and position.batches > 1:
                raise DataError(
                    f"ragged batches: batch {step} of {self._source.what} is smaller than the first one, which has "
                    f"{self._forms.rows} rows. Only the last batch of a pass or of an epoch may be smaller."
                )
            smaller = form.smaller
            if form is not collected:  # it does not fit into the stack: emit what is before it
                collected = form
                yield from self._flush(complete_epochs, current)
                complete_epochs, current = None, ChunkDraft(epoch, cursor, step, span.epoch_len)
            if complete_epochs is None and not current.positions:
                started_at = time.monotonic()
            current.positions.append(position)
            current.leaves.append(leaves)
            cursor, step = cursor + 1, step + 1
            # The epoch ends (`ends`), or the run ends within the epoch (`closes` alone). A smaller batch is only valid
            # at an end, which the next batch shows; hence `ragged`.
            ends = ends or cursor == span.steps_per_epoch
            ragged = smaller and not ends
            max_batches = min(form.most, self.wanted)
            closes = ends or step == span.end_step
            # with several processes time must not matter, since their chunks must be equal
            due = smaller or (time.monotonic() - started_at > FLUSH_AFTER_S and not self._alike)
            if not (
                closes
                or due
                or len(current.positions) >= max_batches
                or (complete_epochs and cursor == complete_epochs.epoch_len)
            ):
                continue
            if closes:
                current.epoch_len, current.closes = cursor if ends else span.epoch_len, True
            # The merged epochs are longer or shorter than this one, and a chunk can only hold epochs of one length.
            # Emit them now; this epoch starts a new draft.
            if complete_epochs and ends != (cursor == complete_epochs.epoch_len):
                yield self._chunk(complete_epochs)
                complete_epochs = None
            if ends and current.base == 0 and self._can_merge_epochs:
                complete_epochs = complete_epochs.merged(current) if complete_epochs else current
                current = ChunkDraft(epoch + 1, 0, step, span.epoch_len)
                # Another epoch of this length would not fit.
                if due or len(complete_epochs) + cursor > max_batches:
                    yield self._chunk(complete_epochs)
                    complete_epochs = None
            elif closes or due or len(current) >= max_batches:
                yield from self._flush(complete_epochs, current)
                complete_epochs, current = None, ChunkDraft(epoch + ends, 0 if ends else cursor, step, span.epoch_len)
            if ends:
                epoch, cursor = epoch + 1, 0
            # after the position moved, so that the end of an epoch counts as the begin of the next
            done = closes and span.is_over(epoch, cursor, step)
        yield from self._flush(complete_epochs)

    @property
    def _can_merge_epochs(self) -> bool:
        """Whether complete epochs may wait for later ones to form a chunk.

        Not if the data of an epoch depends on the controls after the previous epoch, and not for a live stream, whose
        next batch may take any time.
        """
        return self.stacked and not self._source.per_epoch and not self._source.is_generator

    def _epochs(
        self, first: EpochIterator, taken: list[Pulled], start_position: dict[str, Any]
    ) -> Iterator[tuple[int, bool, Iterator[Pulled]]]:
        """Yields each epoch: number, whether it was resumed in the middle, and its batches.

        If the data depends on the controls, it waits until the run has reached the epoch.
        """
        number, resumed = first.number, start_position["batches"] > 0
        if resumed:
            first.seek(start_position)
            taken = []
        yield number, resumed, itertools.chain(taken, first)
        del taken, first  # free their buffers before the next epoch begins
        if self._source.is_generator:
            return
        for later in itertools.count(number + 1):
            controls = self._begins.get() if self._source.per_epoch else {}
            if controls is None:
                return
            yield later, False, EpochIterator(self._source, later, controls)

    def _batches(
        self, passes: Iterator[tuple[int, bool, Iterator[Pulled]]]
    ) -> Iterator[tuple[ValidatedBatch | None, bool | None]]:
        """Yields batches, each with a flag whether it is the last one of its epoch.

        The flag needs a look-ahead of one batch. It is only done if the source ends the epoch: with `steps_per_epoch`
        the end is known, and a live stream must not be pulled in advance. A resumed epoch without batches
        yields None once.
        """
        span, given = self._span, self._span.step
        for number, resumed, batches in passes:
            validated = self._validated(batches)
            following = next(validated, None)
            if following is None and not resumed:
                again = "" if self._source.per_epoch else " when it was iterated again"
                raise DataError(f"{self._source.describe(number)} gave no batch{again}.")
            # if ahead
            if span.steps_per_epoch is not None:
                if following is not None:
                    yield following, False
                for batch in validated:
                    yield batch, False
                continue
            if following is None:
                yield None, False
            while following is not None:
                batch, given = following, given + 1
                if given == span.end_step:  # the last step of the run: do not pull a batch that it does not need
                    yield batch, False
                    return
                try:
                    following = next(validated, None)
                except Exception:  # the error belongs to the next batch; this one is valid
                    yield batch, False
                    raise
                yield batch, following is None

    def _validated(self, batches: Iterator[Pulled]) -> Iterator[ValidatedBatch]:
        """Yields the validated batches of an epoch, copied since the source may reuse its buffers for the next batch.

        Leaves out smaller batches if they are not trained on.
        """
        take, add, follows = self._forms.validate, self.stacks.add, self._source.per_epoch
        for batch, position in batches:
            # data that depends on the controls may have new shapes each epoch
            leaves, form = take(batch, position.batches, follows and position.batches == 1)
            if form.smaller and not self._train_remainder:
                continue
            if self.stacked:
                add(leaves, form)
                yield position, form, None
            else:
                yield position, form, copied(leaves)

    def _flush(self, *drafts: ChunkDraft | None) -> Iterator[Chunk]:
        """Yields the chunks of all drafts that are not empty."""
        for draft in drafts:
            if draft and len(draft):
                yield self._chunk(draft)

    def _chunk(self, draft: ChunkDraft) -> Chunk:
        if not self.stacked:
            return draft.chunk(batches=[self._placed(leaves) for leaves in draft.leaves])
        stack = self.stacks.take_first(len(draft))
        return draft.chunk(self._placed(stack.leaves), memory=stack)

    def _placed(self, leaves: Any) -> Any:
        return self._forms.tree.unflatten(self.placement.put_batch(leaves, axis=int(self.stacked)))

    def _closing(self, epoch: int, cursor: int, step: int, epoch_len: int) -> Chunk:
        """Returns a chunk without batches, for a run that was resumed between the last step of an epoch and its end."""
        data = None
        if self.stacked:
            data = self._placed(StagingBuffer(self._forms.placeholder()).leaves)
        return Chunk(data, None if self.stacked else [], epoch, cursor, 0, epoch_len, True, step)
