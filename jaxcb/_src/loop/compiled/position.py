"""Position of a run in its data: predicates on the device, and the optimistic copy of the host."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.data.feed import UNBOUNDED
from jaxcb._src.loop.compiled.state import DispatchParams, Inputs, LoopState, Status


class EvalSchedule(NamedTuple):
    """When to validate: after every n-th epoch, after a set of epochs (1-based), or every n steps."""

    epochs: int | tuple[int, ...]
    steps: int | None


class PositionPredicates(NamedTuple):
    """Predicates of the loop state, traced.

    Every program evaluates them on the device. That is why the host may dispatch before it has read the previous
    result.

    Attributes:
        cadence: when to validate.
        validates: whether there is anything to validate on.
    """

    cadence: EvalSchedule
    validates: bool

    def all_stopped(self, carry: LoopState) -> Array:
        """Returns whether every member has stopped, bool ()."""
        return jnp.all(carry.train.stop | carry.ended)

    def over(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the last epoch is closed, bool ()."""
        n = inputs.numbers
        return (carry.cursor == 0) & (
            self.all_stopped(carry) | (carry.epoch >= n.end_epoch) | (carry.step >= n.end_step)
        )

    def closing(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the epoch must be closed now, bool ()."""
        n = inputs.numbers
        # the data may belong to a later epoch, whose length says nothing about this one
        full = self.is_own_epoch(inputs, carry) & (carry.cursor >= n.epoch_len)
        return (carry.cursor > 0) & (full | (carry.step >= n.end_step) | self.all_stopped(carry))

    def is_own_epoch(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the data of the dispatch belongs to the current epoch, bool ()."""
        n = inputs.numbers
        within = (n.data_epoch <= carry.epoch) & (carry.epoch < n.data_epoch + n.epochs)
        return (n.data_epoch < 0) | within

    def eval_due(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether a validation is due now, bool ()."""
        if not self.validates:
            return jnp.zeros((), bool)
        closing, n = self.closing(inputs, carry), inputs.numbers
        if self.cadence.steps is not None:
            last = closing & ((carry.step >= n.end_step) | (carry.epoch + 1 >= n.end_epoch) | self.all_stopped(carry))
            due = (carry.step > 0) & (carry.step % self.cadence.steps == 0) | last
        elif isinstance(self.cadence.epochs, int):
            due = closing & ((carry.epoch + 1) % self.cadence.epochs == 0)
        else:
            due = closing & jnp.any(jnp.asarray(self.cadence.epochs) == carry.epoch + 1)
        return due & (carry.evaluated != carry.step)

    def pending(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether an epoch end or a validation comes before the next step, bool ()."""
        closing = self.closing(inputs, carry)
        # an epoch-based validation is only due at an epoch end
        return closing if self.cadence.steps is None else closing | self.eval_due(inputs, carry)

    def has_data(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the data of the dispatch contains the next batch, bool ()."""
        n = inputs.numbers
        index = n.batch_index(carry)
        fits = (index >= 0) & (index < n.size)
        return fits & self.is_own_epoch(inputs, carry)

    def may_step(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether a step is the next thing to do, bool ()."""
        free = ~carry.yielded & ~self.all_stopped(carry) & ~self.over(inputs, carry) & carry.opened
        return free & ~self.pending(inputs, carry) & self.has_data(inputs, carry)

    def steps_to_boundary(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns the steps until the next epoch end or validation, or the end of the data, int32 ()."""
        n = inputs.numbers
        steps = jnp.minimum(n.epoch_len - carry.cursor, n.end_step - carry.step)
        steps = jnp.minimum(steps, n.size - n.batch_index(carry))
        if self.validates and self.cadence.steps is not None:
            steps = jnp.minimum(steps, self.cadence.steps - carry.step % self.cadence.steps)
        return steps


@dataclass
class HostPosition:
    """Optimistic prediction of the device position, kept by the host.

    The prediction assumes that nothing interrupts a chunk of steps. The device checks its position in every program, so
    a misprediction costs no-op steps and never correctness.
    """

    epoch: int = 0
    cursor: int = 0
    step: int = 0
    epoch_len: int = UNBOUNDED
    end_step: int = UNBOUNDED
    end_epoch: int = UNBOUNDED
    total_steps: int = -1
    eval_every: int | None = None
    full: int = UNBOUNDED  # full batches in an epoch that has a smaller last batch
    evaluated: int = 0
    stopping: bool = False

    @property
    def closing(self) -> bool:
        """Whether the epoch must be closed now."""
        return self.cursor > 0 and (self.cursor >= self.epoch_len or self.step >= self.end_step or self.stopping)

    @property
    def pending(self) -> bool:
        """Whether an epoch end or a validation comes before the next step."""
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
        """Advances by a step."""
        self.cursor += 1
        self.step += 1

    def passed_boundary(self) -> None:
        """Advances past an epoch end or a validation."""
        self.evaluated = self.step
        if self.closing:
            self.epoch += 1
            self.cursor = 0

    def correct(self, status: Status) -> None:
        """Sets the position to what the device reported."""
        self.epoch, self.cursor, self.step = int(status.epoch), int(status.cursor), int(status.step)
        self.stopping = bool(status.stop)
        self.evaluated = int(status.evaluated)

    def take(self, carry: LoopState) -> None:
        """Sets the position to that of a restored loop state."""
        self.epoch, self.cursor, self.step = int(carry.epoch), int(carry.cursor), int(carry.step)
        self.stopping = bool(np.all(np.asarray(carry.train.stop | carry.ended)))
        self.evaluated = int(carry.evaluated)

    def numbers(
        self, *, data_epoch: int = -1, epochs: int = 1, base: int = 0, size: int = UNBOUNDED, length: int = UNBOUNDED
    ) -> DispatchParams:
        """Returns the parameters of a dispatch."""
        ends = (self.end_step, self.end_epoch, self.total_steps)
        return DispatchParams(data_epoch, epochs, base, size, self.epoch_len, length, *ends)

    def single(self) -> DispatchParams:
        """Returns the parameters of a dispatch of the next batch alone."""
        return self.numbers(data_epoch=self.epoch, base=self.cursor, size=1)
