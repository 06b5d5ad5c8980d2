"""Feeds: provide the batches of a run in chunks."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.data.inputs import rows_of
from jaxcb._src.data.iterator import Position
from jaxcb._src.data.sources import draw
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.sharding.placement import Placement

_MAX_FRACTION = 0.5  # fraction of a device's free memory that data may use


def fits_on_device(
    arrays: Any,
    what: str,
    requested: bool | None,
    *,
    placement: Placement,
    processes: Processes,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Returns whether to keep arrays on the devices, replicated.

    Args:
        arrays: a pytree of arrays.
        what: name of the data in messages.
        requested: True or False as the user requested, or None.
        placement: the devices.
        processes: of the run; process 0 decides.
        say: prints a line.
    """
    if isinstance(requested, bool):
        return requested
    # arrays that are already on the single device take no further memory
    new = [x for x in jax.tree.leaves(arrays) if placement.mesh is not None or not isinstance(x, jax.Array)]
    needed = sum(x.nbytes for x in new)
    free = processes.broadcast_from_primary(lambda: free_bytes(placement.own_devices))
    if needed <= _MAX_FRACTION * free:
        return True
    if say is not None:
        say(
            f"jaxcb: {what} has {needed / 1e9:.3g} GB, a device has {free / 1e9:.3g} GB free: it stays on the host, "
            "which gathers each batch. Execution(resident=True) keeps it on the devices."
        )
    return False


def free_bytes(devices: list[Any]) -> int:
    """Returns the minimum of the free bytes of some devices; for CPU devices, their share of the machine's memory."""
    per_device = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in per_device):
        return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in per_device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


UNBOUNDED = np.iinfo(np.int32).max  # a number of steps that is unknown or unlimited


class BatchLayout(NamedTuple):
    """How batches are found in data: gathered from resident rows, indexed in a stack, or given one by one."""

    kind: str  # "resident", "stacked" or "single"
    rows: int  # rows of resident data; 0 otherwise
    batch_size: int  # rows of a full batch
    shuffle: bool
    train_remainder: bool

    @property
    def full(self) -> int:
        """Full batches in an epoch of resident rows."""
        return self.rows // self.batch_size

    @property
    def remainder(self) -> int:
        """Rows of the smaller last batch; 0 if there is none."""
        return self.rows % self.batch_size if self.train_remainder and self.kind == "resident" else 0

    def new_order(self, key: Any, epoch: Any) -> Any:
        """Returns the order of resident rows in an epoch, a function of key (or keys) and epoch. Traced."""
        if self.kind != "resident" or not self.shuffle:
            return None

        def one(key: Array) -> Array:
            return draw(key, epoch, self.rows)

        return jax.vmap(one)(key) if jnp.ndim(key) else one(key)


def rows_in(batch: Any) -> int:
    """Returns the rows of a batch."""
    return jax.tree.leaves(batch)[0].shape[0]


class Progress(Protocol):
    """Position of a run, as a feed needs it. `Status` implements it."""

    @property
    def step(self) -> Any: ...
    @property
    def epoch(self) -> Any: ...
    @property
    def cursor(self) -> Any: ...
    @property
    def over(self) -> Any: ...
    @property
    def controls(self) -> Any: ...


class Chunk(NamedTuple):
    """Consecutive batches, and their position in the run.

    Attributes:
        data: input of a looped dispatch.
        batches: inputs of a stepped dispatch, one per step; None if the data is resident.
        epoch: first epoch; -1 for any epoch.
        base: cursor of the first batch.
        size: number of batches.
        epoch_len: steps of its epoch, UNBOUNDED if not yet known.
        closes: whether its last epoch ends with it.
        step: updates done before its first batch; only set if it has positions.
        positions: position of the source after each batch.
        epochs: number of epochs; if more than one, all are complete and have `epoch_len` steps.
        memory: host buffer that the devices may read from until the chunk is consumed.
    """

    data: Any
    batches: list[Any] | None
    epoch: int
    base: int
    size: int
    epoch_len: int
    closes: bool = False
    step: int = 0
    positions: Sequence[Position] = ()
    epochs: int = 1
    memory: Any = None

    def left(self, epoch: int, cursor: int) -> list[Any] | None:
        """Returns the batches that a run at this position still needs; None for a looped dispatch."""
        return self.batches and self.batches[max(cursor - self.base if epoch == self.epoch else 0, 0) :]

    def consumed(self, status: Progress) -> bool:
        """Returns whether a run at this position needs nothing of the chunk any more.

        The last chunk of an epoch is needed until the epoch is closed, since only this chunk has the length of the
        epoch.
        """
        if self.epoch < 0 or bool(status.over):
            return True
        if not self.epoch <= int(status.epoch) < self.epoch + self.epochs:
            return int(status.epoch) > self.epoch
        return not self.closes and int(status.cursor) >= self.base + self.size


class FeedStart(NamedTuple):
    """Position at which to resume a feed.

    Attributes:
        epoch: the epoch.
        cursor: steps done in the epoch.
        step: updates done.
        position: `Feed.position()` at that point.
    """

    epoch: int = 0
    cursor: int = 0
    step: int = 0
    position: dict[str, Any] | None = None


class Feed:
    """Base class of feeds."""

    layout: BatchLayout
    epoch_len: int = UNBOUNDED
    key: Array | None = None
    example: Any = None  # a batch or its shapes
    data: Any = None  # data that is the same for every dispatch

    def ready(self) -> bool:
        """Returns whether `next` returns without waiting."""
        return True

    def next(self) -> Chunk | None:
        """Returns the next chunk; None at the end of the data."""
        raise NotImplementedError

    def pace(self, steps: int) -> None:
        """Sets the maximum number of steps per chunk."""

    def choose(self, *, stacked: bool) -> None:
        """Selects the form of chunks before the first one: stacked (looped executor) or lists (stepped)."""

    def place(self, placement: Placement) -> None:
        """Sets the shardings of the data, before the first chunk."""

    def confirm(self, status: Progress) -> None:
        """Releases the chunks that the run has consumed."""

    def position(self) -> dict[str, Any] | None:
        """Returns the position of the source after the last confirmed step, as JSON.

        None if it is a function of epoch and cursor.
        """
        return None

    def rewind(self) -> int:
        """Returns to the first chunk that is not consumed. Returns the steps of its epoch."""
        return self.epoch_len

    def close(self) -> None:
        """Ends threads."""


class Resident(Feed):
    """Arrays on the devices, in an order that the device draws for each epoch.

    Args:
        arrays: a pytree of arrays with a common leading axis.
        batch_size: rows of a batch, at most the rows of the arrays.
        shuffle: whether each epoch has its own order.
        key: PRNG key of the orders.
        epoch_len: batches of an epoch.
        train_remainder: whether to train on the smaller last batch.
    """

    def __init__(
        self,
        arrays: Any,
        *,
        batch_size: int,
        shuffle: bool,
        key: Array,
        epoch_len: int,
        train_remainder: bool,
    ) -> None:
        rows = rows_of(arrays, "train_data")
        self.layout = BatchLayout("resident", rows, batch_size, shuffle, train_remainder)
        self.epoch_len = epoch_len
        self.data = jax.tree.map(jnp.asarray, arrays)
        self.key = key
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), self.data)

    def place(self, placement: Placement) -> None:
        # replicated: the indices are sharded, so that gathering rows needs no communication
        self.data = placement.put_everywhere(self.data)

    def next(self) -> Chunk:
        return Chunk(self.data, None, -1, 0, UNBOUNDED, self.epoch_len)
