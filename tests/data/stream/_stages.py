"""A stream taken apart: all its stages over numbered batches, each of which can be iterated alone."""

import json
from typing import Any

import jax
import numpy as np

from jaxcb._src.data.feed import NOT_READY, Chunk
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.batch_spec import CheckedBatches
from jaxcb._src.data.stream.chunking import ChunkBuilder, ChunkDraft, ChunkLimit, Chunks, FlushTimer, JoinedEpochs
from jaxcb._src.data.stream.epoch_ends import CutEpochs, LookAhead
from jaxcb._src.data.stream.epochs import END, Epochs, SourcePosition
from jaxcb._src.data.stream.prefetch import PlacedChunks, Prefetch
from jaxcb._src.data.stream.staging import StagedBatches, StagingPool
from jaxcb._src.data.stream.stream import plan_stream
from jaxcb._src.sharding.placement import ONE_DEVICE

FOREVER = 1e9  # seconds


def batch(number: float, rows: int = 2) -> np.ndarray:
    return np.full((rows, 1), number, np.float32)


class Passes:
    """Iteration e (counted from 0, as `set_epoch` says) has `lengths[e]` batches: 100 * e, 100 * e + 1, ..."""

    def __init__(self, lengths: list[int], *, smaller_last: bool = False) -> None:
        self.lengths, self.smaller_last = lengths, smaller_last
        self.at, self.pulled, self.walks = -1, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.at = epoch - 1

    def __iter__(self) -> Any:
        self.at, self.walks = self.at + 1, self.walks + 1
        return self.walk(self.at, self.lengths[self.at % len(self.lengths)])

    def walk(self, at: int, length: int) -> Any:
        for i in range(length):
            self.pulled += 1
            yield batch(100 * at + i, 1 if self.smaller_last and 0 < i == length - 1 else 2)


class PassesWithState(Passes):
    """The same, by iterators with a state."""

    def walk(self, at: int, length: int) -> Any:
        return Walk(self, at, length)


class Walk:
    def __init__(self, passes: Passes, at: int, length: int) -> None:
        self.passes, self.epoch, self.length, self.next = passes, at, length, 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> np.ndarray:
        if self.next == self.length:
            raise StopIteration
        self.next += 1
        self.passes.pulled += 1
        return batch(100 * self.epoch + self.next - 1)

    def get_state(self) -> bytes:
        return str(self.next).encode()

    def set_state(self, state: bytes) -> None:
        self.next = int(state)


def stages(
    data: Any, *, steps_per_epoch: int | None = None, stacked: bool = True, most: int = 4, **config: Any
) -> dict[str, Any]:
    """The stages of one stream by name. Only one of them may be used, since it uses those before it."""
    source = Source(data, "train_data")
    plan = plan_stream(
        source, DataConfig(**{"epochs": 4, **config}), steps_per_epoch=steps_per_epoch, processes=1, controls={}
    )
    limits, pool, timer = plan.limits, StagingPool() if stacked else None, FlushTimer(FOREVER)
    epochs = Epochs(source, plan.first, plan.controls)
    checked = CheckedBatches(epochs, plan.validator, source, train_remainder=plan.spec.layout.train_remainder)
    staged = StagedBatches(checked, pool)
    ends = LookAhead(staged, limits.end_step) if steps_per_epoch is None else CutEpochs(staged, steps_per_epoch)
    builder = ChunkBuilder(limits, ChunkLimit(most), timer)
    chunks = Chunks(ends, builder, limits, source)
    joined = JoinedEpochs(chunks, timer, limits, joins=stacked and not source.is_generator)
    placed = PlacedChunks(joined, plan.validator, pool, ONE_DEVICE)
    return {
        "epoch": plan.first,
        "epochs": epochs,
        "checked": checked,
        "staged": staged,
        "ends": ends,
        "chunks": chunks,
        "joined": joined,
        "placed": placed,
        "prefetched": Taken(Prefetch(placed, limits)),
    }


_opened: list[Prefetch] = []


def close_all() -> None:
    """Ends all threads."""
    while _opened:
        _opened.pop().close()


class Taken:
    """A `Prefetch` as an iterator."""

    def __init__(self, prefetch: Prefetch) -> None:
        _opened.append(prefetch)
        self.prefetch, self.get_state, self.set_state = prefetch, prefetch.get_state, prefetch.set_state

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Chunk:
        chunk = self.prefetch.next(wait=True)
        assert chunk is not NOT_READY
        if chunk is None:
            raise StopIteration
        return chunk


def shown(item: Any) -> Any:
    """What an item of any stage is, as lists and numbers that can be compared."""
    if isinstance(item, Chunk):
        data = [jax.device_get(item.data)[: item.size]] if item.batches is None else item.batches
        return [*chunk_shown(item), item.size, np.ravel([np.asarray(x)[..., 0, 0] for x in data]).tolist()]
    if isinstance(item, ChunkDraft):
        return chunk_shown(item)
    if isinstance(item, SourcePosition):
        return item.as_json()
    if isinstance(item, np.ndarray):
        return item.ravel().tolist()
    if isinstance(item, tuple | list):
        return [*map(shown, item)]
    return "END" if item is END else item


def chunk_shown(chunk: Any) -> list[Any]:
    positions = [position.as_json() for position in chunk.positions]
    return [chunk.epoch, chunk.base, chunk.epoch_len, chunk.closes, chunk.step, chunk.epochs, positions]


def as_stored(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    return json.loads(json.dumps(state))
