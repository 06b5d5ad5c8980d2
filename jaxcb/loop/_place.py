"""`Place`: where the host believes a run to be, ahead of what it has read."""

from dataclasses import dataclass

import numpy as np

from jaxcb.loop._carry import Carry, Numbers, Status
from jaxcb.loop._layout import FOREVER


@dataclass
class Place:
    """The host's copy of a run's position.

    It runs ahead of the device on the assumption that nothing cuts a stretch short; the device checks every
    position by itself, so a wrong belief costs idle work and never a result.
    """

    epoch: int = 0
    cursor: int = 0
    step: int = 0
    epoch_len: int = FOREVER
    end_step: int = FOREVER
    end_epoch: int = FOREVER
    total_steps: int = -1
    eval_every: int | None = None
    full: int = FOREVER  # full batches in an epoch; the one after them is smaller
    evaluated: int = 0
    stopping: bool = False

    @property
    def closing(self) -> bool:
        """Whether the epoch is to be closed."""
        return self.cursor > 0 and (self.cursor >= self.epoch_len or self.step >= self.end_step or self.stopping)

    @property
    def pending(self) -> bool:
        """Whether a boundary comes before the next step."""
        due = self.eval_every and self.step > 0 and self.step % self.eval_every == 0 and self.evaluated != self.step
        return self.closing or bool(due)

    @property
    def over(self) -> bool:
        """Whether the last epoch is closed."""
        return self.cursor == 0 and (self.stopping or self.epoch >= self.end_epoch or self.step >= self.end_step)

    @property
    def at_remainder(self) -> bool:
        """Whether the next batch is the smaller last one."""
        return self.cursor == self.full

    def stepped(self) -> None:
        """Moves on by a step."""
        self.cursor += 1
        self.step += 1

    def passed_boundary(self) -> None:
        """Moves on over a boundary."""
        self.evaluated = self.step
        if self.closing:
            self.epoch += 1
            self.cursor = 0

    def correct(self, status: Status) -> None:
        """Takes over what the device has told."""
        self.epoch, self.cursor, self.step = int(status.epoch), int(status.cursor), int(status.step)
        self.stopping = bool(status.stop)
        self.evaluated = int(status.evaluated)

    def take(self, carry: Carry) -> None:
        """Takes over where a saved run stood."""
        self.epoch, self.cursor, self.step = int(carry.epoch), int(carry.cursor), int(carry.step)
        self.stopping = bool(np.all(np.asarray(carry.train.stop | carry.ended)))
        self.evaluated = int(carry.evaluated)

    def numbers(
        self, *, data_epoch: int = -1, epochs: int = 1, base: int = 0, size: int = FOREVER, length: int = FOREVER
    ) -> Numbers:
        """The numbers of a dispatch."""
        ends = (self.end_step, self.end_epoch, self.total_steps)
        return Numbers(data_epoch, epochs, base, size, self.epoch_len, length, *ends)

    def single(self) -> Numbers:
        """The numbers of one batch at this place."""
        return self.numbers(data_epoch=self.epoch, base=self.cursor, size=1)
