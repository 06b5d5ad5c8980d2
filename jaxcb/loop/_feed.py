"""Feeds: where a run's batches come from."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb.loop._data import rows_of
from jaxcb.loop._layout import FOREVER, Layout
from jaxcb.loop._pass import Position
from jaxcb.parallel import Placement


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

    layout: Layout
    epoch_len: int = FOREVER
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
        self.layout = Layout("resident", rows, batch_size, shuffle, train_remainder)
        self.epoch_len = epoch_len
        self.data = jax.tree.map(jnp.asarray, arrays)
        self.key = key
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), self.data)

    def place(self, placement: Placement) -> None:
        self.data = placement.put_everywhere(self.data)  # the indices are split: a gather of whole rows exchanges none

    def next(self) -> Chunk:
        return Chunk(self.data, None, -1, 0, FOREVER, self.epoch_len)
