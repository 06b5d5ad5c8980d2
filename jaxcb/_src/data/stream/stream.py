"""A stream of batches: its plan, the composition of its stages, and its feed."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxcb._src.data.feed import NOT_READY, Chunk, Feed, NotReady
from jaxcb._src.data.inputs import DataConfig, as_arrays
from jaxcb._src.data.progress import UNBOUNDED, FeedStart, Progress, StreamLimits, is_over
from jaxcb._src.data.sources import Source
from jaxcb._src.data.spec import BatchLayout, DataSpec
from jaxcb._src.data.stream.batch_spec import MOST, BatchValidator, CheckedBatches
from jaxcb._src.data.stream.chunking import ChunkBuilder, ChunkLimit, Chunks, FlushTimer, JoinedEpochs
from jaxcb._src.data.stream.epoch_ends import CutEpochs, LookAhead
from jaxcb._src.data.stream.epochs import EpochControls, EpochIterator, Epochs
from jaxcb._src.data.stream.prefetch import PlacedChunks, Prefetch
from jaxcb._src.data.stream.source_checks import SourceChecks
from jaxcb._src.data.stream.staging import StagedBatches, StagingPool
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.storage.fingerprint import batch_fingerprint
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.pytree import dtype_on_device

MAX_BATCHES_MULTIPROCESS = 16  # batches per chunk with several processes, whose chunks must be equal
FLUSH_AFTER_S = 0.25  # seconds after which a chunk is dispatched without waiting for more batches


@dataclass(frozen=True)
class StreamPlan:
    """A stream of batches whose first batch was pulled, and is trained on.

    Attributes:
        spec: what programs know of it.
        source: where the batches come from.
        first: the epoch in which the run starts, opened.
        validator: compares batches with the first one.
        limits: where epochs and run end.
        start: where the run starts, with the position of the source.
        controls: the controls with which epochs begin; None if the data does not depend on them.
        checks: what else is checked of the source; None for nothing.
    """

    spec: DataSpec
    source: Source
    first: EpochIterator
    validator: BatchValidator
    limits: StreamLimits
    start: FeedStart
    controls: EpochControls | None
    checks: SourceChecks | None = None


def plan_stream(
    source: Source,
    config: DataConfig,
    *,
    steps_per_epoch: int | None,
    processes: int,
    controls: Mapping[str, Any] | None = None,
    start: FeedStart | None = None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> StreamPlan:
    """Opens a source and pulls its first batch.

    Args:
        source: where the batches come from; iterated again each epoch unless `steps_per_epoch` cuts it.
        config: how the data becomes batches.
        steps_per_epoch: batches of an epoch; None if the source ends each epoch.
        processes: number of processes that provide different rows of a batch.
        controls: the controls before the first step.
        start: position to resume at; None for a new run.
        say: prints a line.
        warn: reports a source that gives other batches than it should; None for no check.

    Raises:
        DataError: if the source has no batch, or if a run that writes checkpoints could not restore its iterator.
    """
    start = start or FeedStart()
    position = _first_position(start, source)
    floats = {name: float(value) for name, value in (controls or {}).items()} | position.pop("controls", {})
    limits = StreamLimits(
        epoch_len=steps_per_epoch or source.batches or UNBOUNDED,
        steps_per_epoch=steps_per_epoch,
        end_epoch=UNBOUNDED if config.epochs is None else config.epochs,
        end_step=UNBOUNDED if config.steps is None else config.steps,
        ends_with_pass=steps_per_epoch is None and not source.is_generator,
    )
    checks = None
    if warn is not None:
        checks = SourceChecks(source, warn, resumes=config.resumes, saved=start.position and position)
    first = EpochIterator(source, position["pass"], floats, checks)
    pulled = first.peek()
    if pulled is None:
        raise DataError(f"{source.what} ({source.kind}) is empty: it gave no batch.")
    batch, rows = as_arrays(pulled[0], f"the first batch of {source.what}")
    needs_data = start.step < limits.end_step and not is_over(start.at, limits)
    if say is not None and needs_data and first.must_replay_to(position):
        say(
            f"jaxcb: {source.describe(first.number)} starts again and {position['batches']} batches are skipped, since "
            "its iterator has no state. An iterator with get_state and set_state resumes where it stopped."
        )
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((processes * x.shape[0], *x.shape[1:]), dtype_on_device(x)), batch
    )
    layout = BatchLayout("stacked", 0, processes * rows, False, not config.drop_remainder)
    return StreamPlan(
        DataSpec(example, layout, limits.epoch_len),
        source,
        first,
        BatchValidator(source.what, batch, config.steps_per_execution),
        limits,
        start._replace(position=position),
        EpochControls(start.epoch, floats, midway=start.cursor > 0) if source.per_epoch else None,
        checks,
    )


def _first_position(start: FeedStart, source: Source) -> dict[str, Any]:
    """Returns the position of the source at the start."""
    epoch, cursor, step, position = start
    if position is not None and (position["pass"] == epoch or not source.per_epoch):
        return dict(position)
    # the checkpoint is of resident data, which has no position: count batches as if each epoch were one iteration
    return {"pass": 0, "batches": step} if source.is_generator else {"pass": epoch, "batches": cursor}


def chunks_of(
    plan: StreamPlan, placement: Placement, pool: StagingPool | None, limit: ChunkLimit, *, alike: bool
) -> PlacedChunks:
    """Returns the chunks of a stream: all stages but the prefetching.

    Args:
        plan: the opened stream.
        placement: shardings of the batches.
        pool: the memory of stacked chunks; None for chunks that are lists of batches.
        limit: the maximum number of batches of a chunk.
        alike: whether several processes must cut equal chunks. If so, the time that batches take is ignored.
    """
    source, limits, validator = plan.source, plan.limits, plan.validator
    timer = FlushTimer(math.inf if alike else FLUSH_AFTER_S)
    epochs = Epochs(source, plan.first, plan.controls, plan.checks)
    checked = CheckedBatches(epochs, validator, source, train_remainder=plan.spec.layout.train_remainder)
    staged = StagedBatches(checked, pool)
    if limits.steps_per_epoch is None:
        batches = LookAhead(staged, limits.end_step)
    else:
        batches = CutEpochs(staged, limits.steps_per_epoch)
    builder = ChunkBuilder(limits, limit, timer)
    chunks = Chunks(batches, builder, limits, source)
    joins = pool is not None and not source.per_epoch and not source.is_generator
    joined = JoinedEpochs(chunks, timer, limits, joins=joins)
    return PlacedChunks(joined, validator, pool, placement)


class Stream(Feed):
    """Prefetches the chunks of a source, and keeps them until the run has consumed them.

    If the data depends on the controls, an epoch begins only after the previous one was closed and read.

    The position for a checkpoint is that of the last confirmed step, and not that of the thread, which is ahead.

    Args:
        plan: the opened stream.
        placement: shardings of the batches.
        stacked: whether a chunk is one stack of batches (looped executor) or a list of batches (stepped).
        alike: whether several processes must cut equal chunks. If so, only counts decide how, since timing differs.
    """

    def __init__(self, plan: StreamPlan, placement: Placement, *, stacked: bool, alike: bool) -> None:
        self.epoch_len = plan.limits.epoch_len
        self._limits, self._controls, self._start = plan.limits, plan.controls, plan.start
        self._epoch = plan.start.epoch  # last confirmed epoch
        self._position: dict[str, Any] = plan.start.position or {}  # position after the last confirmed step
        self._limit = ChunkLimit(MAX_BATCHES_MULTIPROCESS if alike else MOST, fixed=alike)
        self._pool = StagingPool() if stacked else None
        chunks = chunks_of(plan, placement, self._pool, self._limit, alike=alike)
        self._prefetch = Prefetch(chunks, plan.limits)
        self._prefetch.set_state(plan.start._asdict())
        self._unconfirmed: deque[Chunk] = deque()
        self._dispatched = 0  # how many of these were returned by `next`
        self._checks = plan.checks
        self._last: tuple[Chunk, int] | None = None  # the chunk of the last confirmed step, and the step in it

    def next(self, most: int, *, wait: bool) -> Chunk | Literal[NotReady.NOT_READY] | None:
        self._limit.set(most)
        if self._dispatched == len(self._unconfirmed):
            if self._controls is not None:
                self._controls.begin()
            chunk = self._prefetch.next(wait=wait)
            if chunk is None or chunk is NOT_READY:
                return chunk
            self._unconfirmed.append(chunk)
        self._dispatched += 1
        return self._unconfirmed[self._dispatched - 1]

    def confirm(self, status: Progress, *, again: bool = False) -> int:
        epoch, step = int(status.epoch), int(status.step)
        if self._controls is not None:
            self._controls.reach(epoch, status.controls)
        for chunk in self._unconfirmed:
            if 0 < step - chunk.step <= len(chunk.positions):
                self._position = chunk.positions[step - chunk.step - 1].as_json()
                self._keep(chunk, step - chunk.step - 1)
        if epoch > self._epoch and int(status.cursor) == 0:
            self._position = self._limits.after_epoch(self._position)
        self._epoch = epoch
        while self._unconfirmed and self._unconfirmed[0].consumed(status):
            chunk = self._unconfirmed.popleft()
            self._dispatched -= 1
            if self._last is None or chunk.memory is not self._last[0].memory:
                self._release(chunk)
        if again:
            self._dispatched = 0
        return self._unconfirmed[0].epoch_len if self._unconfirmed else self.epoch_len

    def get_state(self) -> dict[str, Any]:
        state = dict(self._position)
        if self._controls is not None:
            state["controls"] = self._controls.current
        if self._checks is not None and "iterator" not in state:
            state |= self._checks.get_state(state["pass"], state["batches"])
            if self._last is not None and state["batches"]:
                state["checksum"] = batch_fingerprint(_leaves_of(*self._last))
        return state

    def _keep(self, chunk: Chunk, index: int) -> None:
        """Keeps the batch that was trained on last, until there is a later one: a checkpoint has its checksum."""
        if self._checks is None or not self._checks.resumes:
            return
        before = self._last
        if chunk.batches is None:
            self._last = chunk._replace(data=None), index
        else:
            self._last = chunk._replace(data=None, batches=[chunk.batches[index]]), 0
        # the chunk before it, unless it still waits, and is released when it is consumed
        if before is not None and all(before[0].memory is not other.memory for other in self._unconfirmed):
            self._release(before[0])

    def _release(self, chunk: Chunk) -> None:
        if self._pool is not None and chunk.memory is not None:
            self._pool.release(chunk.memory)

    def close(self) -> None:
        if self._controls is not None:
            self._controls.end()
        self._prefetch.close()


def _leaves_of(chunk: Chunk, index: int) -> list[Any]:
    """Returns the arrays of a batch of a chunk."""
    if chunk.batches is not None:
        return jax.tree.leaves(chunk.batches[index])
    return [leaf[index] for leaf in chunk.memory.leaves]
