"""Batches of a stream on their way into a chunk."""

from typing import Any, Self

from jaxcb.loop._feed import Chunk
from jaxcb.loop._pass import Position


class Draft:
    """Batches that are to be a chunk: of one epoch, or of several whole ones."""

    def __init__(self, epoch: int, base: int, step: int, epoch_len: int) -> None:
        self.epoch, self.base, self.step, self.epoch_len = epoch, base, step, epoch_len
        self.positions: list[Position] = []  # where their pass stands behind each
        self.leaves: list[Any] = []  # of each batch; None where it lies in a stack
        self.epochs, self.closes = 1, False

    def __len__(self) -> int:
        return len(self.positions)

    def joined(self, other: Self) -> Self:
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
