"""Where a run stands on the device, and what comes next."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxcb.loop._carry import Carry, Inputs


class Cadence(NamedTuple):
    """When to validate: after which epochs (every n-th, or a set of 1-based ones), or every n steps."""

    epochs: int | tuple[int, ...]
    steps: int | None


class Positions(NamedTuple):
    """Predicates of the carry; every dispatch asks them anew, so that it may run ahead of the host.

    Attributes:
        cadence: when to validate.
        validates: whether there is anything to validate on.
    """

    cadence: Cadence
    validates: bool

    def all_stopped(self, carry: Carry) -> Array:
        """Whether nobody wants another step, bool ()."""
        return jnp.all(carry.train.stop | carry.ended)

    def over(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the last epoch is closed, bool ()."""
        n = inputs.numbers
        return (carry.cursor == 0) & (
            self.all_stopped(carry) | (carry.epoch >= n.end_epoch) | (carry.step >= n.end_step)
        )

    def closing(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the epoch is to be closed now, bool ()."""
        n = inputs.numbers
        # the data may be of an epoch to come, whose length says nothing of this one
        full = self.is_own_epoch(inputs, carry) & (carry.cursor >= n.epoch_len)
        return (carry.cursor > 0) & (full | (carry.step >= n.end_step) | self.all_stopped(carry))

    def is_own_epoch(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the given data belongs to this epoch, bool ()."""
        n = inputs.numbers
        within = (n.data_epoch <= carry.epoch) & (carry.epoch < n.data_epoch + n.epochs)
        return (n.data_epoch < 0) | within

    def eval_due(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether a validation is due now, bool ()."""
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

    def pending(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether a boundary comes before the next step, bool ()."""
        closing = self.closing(inputs, carry)
        # a validation that counts epochs is due where one closes
        return closing if self.cadence.steps is None else closing | self.eval_due(inputs, carry)

    def has_data(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the given data holds the next batch, bool ()."""
        n = inputs.numbers
        index = n.batch_index(carry)
        fits = (index >= 0) & (index < n.size)
        return fits & self.is_own_epoch(inputs, carry)

    def may_step(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the next thing to do is a step, bool ()."""
        free = ~carry.yielded & ~self.all_stopped(carry) & ~self.over(inputs, carry) & carry.opened
        return free & ~self.pending(inputs, carry) & self.has_data(inputs, carry)

    def steps_to_boundary(self, inputs: Inputs, carry: Carry) -> Array:
        """Steps until the next boundary or the end of the data, int32 ()."""
        n = inputs.numbers
        steps = jnp.minimum(n.epoch_len - carry.cursor, n.end_step - carry.step)
        steps = jnp.minimum(steps, n.size - n.batch_index(carry))
        if self.validates and self.cadence.steps is not None:
            steps = jnp.minimum(steps, self.cadence.steps - carry.step % self.cadence.steps)
        return steps
