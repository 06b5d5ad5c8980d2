"""Feeds: where a run's batches come from."""

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

_SHARE = 0.5  # of a device's free memory that arrays may take; the rest is the model's


def fits_on_device(
    arrays: Any,
    what: str,
    asked: bool | None,
    *,
    placement: Placement,
    processes: Processes,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Whether arrays are kept on the devices, whole on each.

    Args:
        arrays: a pytree of arrays.
        what: its name in what is said.
        asked: True or False as the user has said, or None.
        placement: the devices.
        processes: of the run; process 0 decides for all.
        say: takes a line for the user.
    """
    if isinstance(asked, bool):
        return asked
    # what one device holds already is not moved
    new = [x for x in jax.tree.leaves(arrays) if placement.mesh is not None or not isinstance(x, jax.Array)]
    needed = sum(x.nbytes for x in new)
    free = processes.broadcast_from_primary(lambda: free_bytes(placement.own_devices))
    if needed <= _SHARE * free:
        return True
    if say is not None:
        say(
            f"jaxcb: {what} has {needed / 1e9:.3g} GB, and a device {free / 1e9:.3g} GB left: it stays with the host, "
            "which gathers each batch. Execution(resident=True) keeps it on the devices."
        )
    return False


def free_bytes(devices: list[Any]) -> int:
    """Bytes that each of some devices has left; of the machine's memory, which CPU devices share, all that there is."""
    told = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in told):
        return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in told)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


UNBOUNDED = np.iinfo(np.int32).max  # a number of steps that is not known, or has no limit


class BatchLayout(NamedTuple):
    """How batches are found. Resident rows are gathered; stacked batches are indexed; single ones given."""

    kind: str  # "resident", "stacked" or "single"
    rows: int  # rows of resident data
    batch_size: int  # rows of a full batch
    shuffle: bool
    train_remainder: bool

    @property
    def full(self) -> int:
        """Full batches in an epoch of resident rows."""
        return self.rows // self.batch_size

    @property
    def remainder(self) -> int:
        """Rows of the smaller last batch, 0 for none."""
        return self.rows % self.batch_size if self.train_remainder and self.kind == "resident" else 0

    def new_order(self, key: Any, epoch: Any) -> Any:
        """This epoch's order of the resident rows: a function of the data's key, or keys, and the epoch; traced."""
        if self.kind != "resident" or not self.shuffle:
            return None

        def one(key: Array) -> Array:
            return draw(key, epoch, self.rows)

        return jax.vmap(one)(key) if jnp.ndim(key) else one(key)


def rows_in(batch: Any) -> int:
    """Returns the rows of a batch."""
    return jax.tree.leaves(batch)[0].shape[0]


class Progress(Protocol):
    """How far a run has come, as a feed needs to know it; `Status` is one."""

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
    """A stretch of batches, and where it belongs.

    Attributes:
        data: what a looped dispatch is given.
        batches: what a stepped one is given, one a step; None where the data is resident.
        epoch: its epoch, or its first one; -1 for any.
        base: the cursor of its first batch.
        size: how many batches.
        epoch_len: steps of its epoch, FOREVER where that is not yet known.
        closes: whether its last epoch ends with it.
        step: updates that a run has done before its first batch, where it has positions.
        positions: where the data stands behind each batch.
        epochs: how many it holds; more than one are whole ones, each of `epoch_len`.
        memory: of the host, from which the devices may read until the run is done with it.
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
        """The batches that a run which stands there still needs; None where they are not given one a step."""
        return self.batches and self.batches[max(cursor - self.base if epoch == self.epoch else 0, 0) :]

    def consumed(self, status: Progress) -> bool:
        """Whether a run that stands there needs nothing of it any more.

        An epoch's last chunk is needed until the epoch is closed: it alone knows where the epoch ends.
        """
        if self.epoch < 0 or bool(status.over):
            return True
        if not self.epoch <= int(status.epoch) < self.epoch + self.epochs:
            return int(status.epoch) > self.epoch
        return not self.closes and int(status.cursor) >= self.base + self.size


class FeedStart(NamedTuple):
    """Where a run stood that is to be resumed.

    Attributes:
        epoch: its epoch.
        cursor: steps done in it.
        step: updates done.
        position: what its feed's `position` was.
    """

    epoch: int = 0
    cursor: int = 0
    step: int = 0
    position: dict[str, Any] | None = None


class Feed:
    """Base of feeds."""

    layout: BatchLayout
    epoch_len: int = UNBOUNDED
    key: Array | None = None
    example: Any = None  # a batch, or its shapes
    data: Any = None  # what every dispatch is given alike

    def ready(self) -> bool:
        """Whether `next` has something to give without waiting."""
        return True

    def next(self) -> Chunk | None:
        """Returns the next chunk to dispatch, None where there is no more."""
        raise NotImplementedError

    def pace(self, steps: int) -> None:
        """Asks for chunks of at most so many steps, which is as long as the host is to be away."""

    def choose(self, *, stacked: bool) -> None:
        """Fixes how batches travel, before the first one does: stacked for the looped executor, or one by one."""

    def place(self, placement: Placement) -> None:
        """Fixes where the data lies, before the first batch travels."""

    def confirm(self, status: Progress) -> None:
        """Lets go of what the run has passed."""

    def position(self) -> dict[str, Any] | None:
        """Where the data stands behind the last step that was confirmed, as JSON keeps it.

        None where that is a function of epoch and cursor.
        """
        return None

    def rewind(self) -> int:
        """Starts again at the first chunk that was not let go; returns the steps of its epoch."""
        return self.epoch_len

    def close(self) -> None:
        """Frees threads."""


class Resident(Feed):
    """Arrays that stay on the device, in an order that the device draws anew each epoch.

    Args:
        arrays: a pytree of arrays with a common leading axis.
        batch_size: rows of a batch, of which there is one at least.
        shuffle: whether each epoch has its own order.
        key: PRNG key of the orders; a function of it and the epoch.
        epoch_len: batches of an epoch.
        train_remainder: whether the smaller last batch is trained on.
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
        self.data = placement.put_everywhere(self.data)  # the indices are split: a gather of whole rows exchanges none

    def next(self) -> Chunk:
        return Chunk(self.data, None, -1, 0, UNBOUNDED, self.epoch_len)
