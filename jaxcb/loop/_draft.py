"""Batches of a stream on their way into a chunk."""

from typing import Any, NamedTuple, Self

from jaxcb.loop._carry import FOREVER
from jaxcb.loop._feed import Chunk
from jaxcb.loop._forms import Form
from jaxcb.loop._pass import Position


class Batch(NamedTuple):
    """A batch, and where it stands in its pass."""

    position: Position  # where the pass stands behind it
    form: Form
    leaves: list[Any] | None = None  # None where it lies in a stack
    last: bool = False


NONE_LEFT = Batch(Position(0, 0), Form((), False, 0))  # of a pass that is resumed


class Draft:
    """Batches that are to be a chunk: of one epoch, or of several whole ones."""

    def __init__(self, epoch: int, base: int, step: int) -> None:
        self.epoch, self.base, self.step = epoch, base, step
        self.batches: list[Batch] = []
        self.epochs, self.epoch_len, self.closes = 1, FOREVER, False

    def joined(self, other: Self) -> Self:
        """Takes another whole epoch behind these."""
        self.batches += other.batches
        self.epochs += other.epochs
        return self

    def chunk(self, data: Any = None, batches: list[Any] | None = None, memory: Any = None) -> Chunk:
        """Makes the chunk, of the same batches on the devices."""
        return Chunk(
            data,
            batches,
            epoch=self.epoch,
            base=self.base,
            size=len(self.batches),
            epoch_len=self.epoch_len,
            closes=self.closes,
            step=self.step,
            positions=[batch.position for batch in self.batches],
            epochs=self.epochs,
            memory=memory,
        )
