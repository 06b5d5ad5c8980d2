"""`Feed`: provides the batches of a run in chunks."""

import enum
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from jaxcb._src.data.progress import UNBOUNDED, Progress


class SourcePosition(Protocol):
    """Position of a source after a batch."""

    def as_json(self) -> dict[str, Any]: ...


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
    positions: Sequence[SourcePosition] = ()
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


class NotReady(enum.Enum):
    """The type of `NOT_READY`."""

    NOT_READY = "the next chunk is not there yet"


NOT_READY: Literal[NotReady.NOT_READY] = NotReady.NOT_READY


class Feed:
    """Base class of feeds. A feed is made once executor and placement are known; only its position changes.

    Attributes:
        data: data that is the same for every dispatch; None if each chunk has its own.
        epoch_len: steps of an epoch, UNBOUNDED if unknown.
    """

    data: Any = None
    epoch_len: int = UNBOUNDED

    def next(self, most: int, *, wait: bool) -> Chunk | Literal[NotReady.NOT_READY] | None:
        """Returns the next chunk; None at the end of the data.

        Args:
            most: maximum number of steps of the chunks that are made from now on.
            wait: whether to wait for it. If not, NOT_READY is returned where there is no chunk yet, at the end of the
                data, and in place of an error of the data.
        """
        raise NotImplementedError

    def confirm(self, status: Progress, *, again: bool = False) -> int:
        """Releases the chunks that the run has consumed.

        Args:
            status: position of the run.
            again: whether to return to the first chunk that is not consumed.

        Returns:
            The steps of the epoch of that chunk.
        """
        raise NotImplementedError

    def get_state(self) -> dict[str, Any] | None:
        """Returns the position of the source after the last confirmed step, as JSON.

        None if it is a function of epoch and cursor.
        """
        return None

    def close(self) -> None:
        """Ends threads."""
