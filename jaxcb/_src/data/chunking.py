"""`Chunker`: makes chunks of a source's batches; all that a stream's background thread does."""

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
    """Batches that are to be a chunk: of one epoch, or of several whole ones."""

    def __init__(self, epoch: int, base: int, step: int, epoch_len: int) -> None:
        self.epoch, self.base, self.step, self.epoch_len = epoch, base, step, epoch_len
        self.positions: list[Position] = []  # where their pass stands behind each
        self.leaves: list[Any] = []  # of each batch; None where it lies in a stack
        self.epochs, self.closes = 1, False

    def __len__(self) -> int:
        return len(self.positions)

    def merged(self, other: Self) -> Self:
        """Takes another whole epoch behind these."""
        self.positions += other.positions
        self.leaves += other.leaves
        self.epochs += other.epochs
        return self

    def chunk(self, data: Any = None, batches: list[Any] | None = None, memory: Any = None) -> Chunk:
        """Makes the chunk, of the same batches on the devices."""
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


MAX_BATCHES_MULTIPROCESS = 16  # batches in a chunk of several processes, which all have to cut alike
FLUSH_AFTER_S = 0.25  # seconds after which batches that came slowly travel without waiting for more

Kept = tuple[
    Position, BatchSpec, list[Any] | None
]  # a batch: where its pass stands behind it, its form, and its arrays
_USED_UP = None, None


class DataRange(NamedTuple):
    """What a run needs of a stream.

    Attributes:
        epoch: where it starts.
        cursor: steps of that epoch that were done before.
        step: updates that were done before.
        epoch_len: steps of an epoch, FOREVER where that is not known.
        steps_per_epoch: the same where a stream is cut into epochs; None where an epoch is a pass.
        end_epoch: nothing is needed for this epoch and later ones.
        end_step: nor beyond this many steps.
    """

    epoch: int
    cursor: int
    step: int
    epoch_len: int
    steps_per_epoch: int | None
    end_epoch: int
    end_step: int

    def is_over(self, epoch: int, cursor: int, step: int) -> bool:
        """Whether a run that stands there needs no more batches."""
        return step >= self.end_step or (cursor == 0 and epoch >= self.end_epoch)


class Chunker:
    """Makes chunks: a part of an epoch each, or several whole epochs of one length.

    The latter where epochs are so short that the devices would wait for the host after each. What is done for each
    batch is kept short: it takes as long as a small step.

    Args:
        source: where the batches come from.
        span: what is needed of them.
        forms: of the batches.
        train_remainder: whether a smaller last batch is trained on.
        alike: whether several processes must cut the same chunks, so that it does not count how fast batches come.

    Attributes:
        stacks: the memory of the chunks that are stacked.
        stacked: whether a chunk is one stack of batches, or a list of them.
        placement: where they are put.
        wanted: batches of a chunk, at most.
    """

    def __init__(
        self, source: Source, span: DataRange, forms: BatchValidator, *, train_remainder: bool, alike: bool
    ) -> None:
        self._source, self._span, self._forms = source, span, forms
        self._train_remainder, self._alike = train_remainder, alike
        self.stacks, self.stacked, self.placement = StagingPool(), True, ONE_DEVICE
        self.wanted = MAX_BATCHES_MULTIPROCESS if alike else MOST
        self._begins: queue.Queue[dict[str, float] | None] = queue.Queue()  # controls of the epochs that begin

    def begin(self, controls: dict[str, float] | None) -> None:
        """Lets an epoch begin whose source follows the run; None where no more will. From any thread."""
        self._begins.put(controls)

    def chunks(self, first: EpochIterator, pulled: list[Pulled], behind: dict[str, Any]) -> Iterator[Chunk]:
        """Gives the chunks.

        Args:
            first: the pass that the run begins in.
            pulled: what was pulled of it already.
            behind: where the source stood when the run began.

        Raises:
            DataError: for batches that are not alike, and for a source that ends too early.
        """
        span = self._span
        epoch, cursor, step = span.epoch, span.cursor, span.step
        if cursor > 0 and (step >= span.end_step or cursor >= span.epoch_len):
            yield self._closing(epoch, cursor, step, span.epoch_len)
            epoch, cursor = epoch + 1, 0
        whole: ChunkDraft | None = None  # epochs
        part = ChunkDraft(epoch, cursor, step, span.epoch_len)  # of the one behind them
        ragged, began = False, 0.0
        batches = self._batches(self._passes(first, pulled, behind))
        over = span.is_over(epoch, cursor, step)
        while not over:
            try:
                batch, ends = next(batches, _USED_UP)
                if ends is None:
                    raise DataError(
                        f"{self._source.what} is a {self._source.kind} that was used up after {step} batches, in epoch "
                        f"{epoch + 1}. Pass something that can be iterated again, or ask for fewer steps."
                    )
            except Exception:
                yield from self._flush(whole, part)  # what was pulled before the error is trained on
                raise
            if batch is None:  # nothing is left of the pass in which the run was cut short
                if cursor > 0:
                    yield self._closing(epoch, cursor, step, cursor)
                    epoch, cursor = epoch + 1, 0
                    part = ChunkDraft(epoch, cursor, step, span.epoch_len)
                    over = span.is_over(epoch, cursor, step)
                continue
            position, form, leaves = batch
            if ragged and position.batches > 1:
                raise DataError(
                    f"ragged batches: batch {step} of {self._source.what} is smaller than the first one, which has "
                    f"{self._forms.rows} rows. Only the last batch of a pass or of an epoch may be smaller."
                )
            smaller = form.smaller
            if smaller:  # travels alone
                yield from self._flush(whole, part)
                whole, part = None, ChunkDraft(epoch, cursor, step, span.epoch_len)
            if whole is None and not part.positions:
                began = time.monotonic()
            part.positions.append(position)
            part.leaves.append(leaves)
            cursor, step = cursor + 1, step + 1
            ends = ends or cursor == span.steps_per_epoch
            ragged = smaller and not ends
            most = min(form.most, self.wanted)
            closes = ends or step == span.end_step
            due = smaller or (time.monotonic() - began > FLUSH_AFTER_S and not self._alike)
            if not (closes or due or len(part.positions) >= most or (whole and cursor == whole.epoch_len)):
                continue
            if closes:
                part.epoch_len, part.closes = cursor if ends else span.epoch_len, True
            if whole and ends != (cursor == whole.epoch_len):  # this epoch has another length
                yield self._chunk(whole)
                whole = None
            if ends and part.base == 0 and self._can_merge_epochs:
                whole = whole.merged(part) if whole else part
                part = ChunkDraft(epoch + 1, 0, step, span.epoch_len)
                if due or len(whole) + cursor > most:
                    yield self._chunk(whole)
                    whole = None
            elif closes or due or len(part) >= most:
                yield from self._flush(whole, part)
                whole, part = None, ChunkDraft(epoch + ends, 0 if ends else cursor, step, span.epoch_len)
            if ends:
                epoch, cursor = epoch + 1, 0
            over = closes and span.is_over(epoch, cursor, step)
        yield from self._flush(whole)

    @property
    def _can_merge_epochs(self) -> bool:
        """Whether epochs may travel together: not where one that has ended may be kept waiting for the next one's data.

        That is what follows the controls, and a live stream.
        """
        return self.stacked and not self._source.per_epoch and not self._source.is_generator

    def _passes(
        self, first: EpochIterator, pulled: list[Pulled], behind: dict[str, Any]
    ) -> Iterator[tuple[int, bool, Iterator[Pulled]]]:
        """Gives each pass: its number, whether a part of it was done before, and its batches.

        Waits where the source follows the run until its data is there.
        """
        number, resumed = first.number, behind["batches"] > 0
        if resumed:
            first.go_to(behind)
            pulled = []
        yield number, resumed, itertools.chain(pulled, first)
        del pulled, first  # frees what they hold before the next pass begins
        if self._source.is_generator:
            return
        for later in itertools.count(number + 1):
            controls = self._begins.get() if self._source.per_epoch else {}
            if controls is None:
                return
            yield later, False, EpochIterator(self._source, later, controls)

    def _batches(
        self, passes: Iterator[tuple[int, bool, Iterator[Pulled]]]
    ) -> Iterator[tuple[Kept | None, bool | None]]:
        """Gives batches, and whether each is the last one of a pass; no batch for a pass of which nothing is left.

        The last one is known by looking ahead. That is done only where the end of a pass is the end of an epoch, so
        that a live stream is never waited for in vain.
        """
        span, given = self._span, self._span.step
        for number, resumed, pulls in passes:
            kept = self._validated(pulls)
            ahead = next(kept, None)
            if ahead is None and not resumed:
                again = "" if self._source.per_epoch else " when it was walked again"
                raise DataError(f"{self._source.describe(number)} gave no batch{again}.")
            if span.steps_per_epoch is not None:
                if ahead is not None:
                    yield ahead, False
                for batch in kept:
                    yield batch, False
                continue
            if ahead is None:
                yield None, False
            while ahead is not None:
                batch, given = ahead, given + 1
                if given == span.end_step:  # the run needs no other one
                    yield batch, False
                    return
                try:
                    ahead = next(kept, None)
                except Exception:  # belongs to the next batch; this one is good
                    yield batch, False
                    raise
                yield batch, ahead is None

    def _validated(self, pulls: Iterator[Pulled]) -> Iterator[Kept]:
        """Gives a pass's batches. Each is copied, since the next one is pulled before this one is trained on.

        Drops the smaller ones where that was asked for.
        """
        take, add, follows = self._forms.validate, self.stacks.add, self._source.per_epoch
        for batch, position in pulls:
            # each epoch of data that follows the run may have shapes of its own
            leaves, form = take(batch, position.batches, follows and position.batches == 1)
            if form.smaller and not self._train_remainder:
                continue
            if self.stacked:
                add(leaves, form)
                yield position, form, None
            else:
                yield position, form, copied(leaves)

    def _flush(self, *drafts: ChunkDraft | None) -> Iterator[Chunk]:
        """Makes chunks of what there is."""
        for draft in drafts:
            if draft and len(draft):
                yield self._chunk(draft)

    def _chunk(self, draft: ChunkDraft) -> Chunk:
        if not self.stacked:
            return draft.chunk(batches=[self._placed(leaves) for leaves in draft.leaves])
        stack = self.stacks.cut(len(draft))
        return draft.chunk(self._placed(stack.leaves), memory=stack)

    def _placed(self, leaves: Any) -> Any:
        return self._forms.tree.unflatten(self.placement.put_batch(leaves, axis=int(self.stacked)))

    def _closing(self, epoch: int, cursor: int, step: int, epoch_len: int) -> Chunk:
        """Makes a chunk without a batch, for a run that was resumed between an epoch's last step and its end."""
        data = None
        if self.stacked:
            data = self._placed(StagingBuffer(self._forms.blank()).leaves)
        return Chunk(data, None if self.stacked else [], epoch, cursor, 0, epoch_len, True, step)
