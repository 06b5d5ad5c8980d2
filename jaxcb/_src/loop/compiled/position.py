"""Position of a run: when it validates, its predicates inside of a program, and the host's copy."""

import functools
import operator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.data.progress import UNBOUNDED, Limits, Position, is_over, must_close
from jaxcb._src.loop.compiled.state import DispatchParams, Inputs, LoopState, Status


class EvalSchedule(NamedTuple):
    """When to validate: after every n-th epoch, after a set of epochs (1-based), or every n steps."""

    epochs: int | tuple[int, ...]
    steps: int | None

    @property
    def closes_epochs(self) -> bool:
        """Whether every validation is at the end of an epoch."""
        return self.steps is None


_BEGIN = Position(step=0, epoch=0, cursor=0, evaluated=0, stopped=False)


def must_validate(at: Position, limits: Limits, schedule: EvalSchedule, closing: Any) -> Any:
    """Returns whether a validation is due now, bool ().

    Args:
        at: the position.
        limits: where the run ends; there is a last validation.
        schedule: when to validate.
        closing: whether the epoch must be closed now.
    """
    if schedule.steps is not None:
        last = closing & ((at.step >= limits.end_step) | (at.epoch + 1 >= limits.end_epoch) | at.stopped)
        due = (at.step > 0) & (at.step % schedule.steps == 0) | last
    elif isinstance(schedule.epochs, int):
        due = closing & ((at.epoch + 1) % schedule.epochs == 0)
    else:
        due = closing & functools.reduce(operator.or_, (at.epoch + 1 == n for n in schedule.epochs), False)
    return due & (at.evaluated != at.step)


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
        stopped = carry.train.stop | carry.ended
        return jnp.all(stopped) if stopped.ndim else stopped

    def position(self, carry: LoopState) -> Position:
        """Returns the position of a loop state."""
        return Position(carry.step, carry.epoch, carry.cursor, carry.evaluated, self.all_stopped(carry))

    def over(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the last epoch is closed, bool ()."""
        return is_over(self.position(carry), inputs.numbers)

    def closing(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the epoch must be closed now, bool ()."""
        return must_close(self.position(carry), inputs.numbers, self.is_own_epoch(inputs, carry))

    def is_own_epoch(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the data of the dispatch belongs to the current epoch, bool ()."""
        n = inputs.numbers
        return (n.first_epoch <= carry.epoch) & (carry.epoch < n.past_epoch)

    def eval_due(self, inputs: Inputs, carry: LoopState, closing: Any = None) -> Array:
        """Returns whether a validation is due now, bool ().

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            closing: whether the epoch must be closed now; None to find it.
        """
        if not self.validates:
            return jnp.zeros((), bool)
        closing = self.closing(inputs, carry) if closing is None else closing
        return must_validate(self.position(carry), inputs.numbers, self.cadence, closing)

    def pending(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether an epoch end or a validation comes before the next step, bool ()."""
        closing = self.closing(inputs, carry)
        # an epoch-based validation is only due at an epoch end
        return closing if self.cadence.closes_epochs else closing | self.eval_due(inputs, carry, closing)

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

    Attributes:
        epoch_len: steps of an epoch, `UNBOUNDED` if not yet known.
        end_step: the step after which the run is over.
        end_epoch: the epoch after which the run is over, or the stage of the run.
        total_steps: for `Metrics`; -1 if unknown.
        schedule: when to validate; None if there is nothing to validate on.
        full: full batches in an epoch that has a smaller last batch.
        at: the predicted position.
        end_run: the epoch after which the run is over.
    """

    epoch_len: int = UNBOUNDED
    end_step: int = UNBOUNDED
    end_epoch: int = UNBOUNDED
    total_steps: int = -1
    schedule: EvalSchedule | None = None
    full: int = UNBOUNDED
    at: Position = _BEGIN
    end_run: int = field(init=False)

    def __post_init__(self) -> None:
        self.end_run = self.end_epoch

    @property
    def closing(self) -> bool:
        """Whether the epoch must be closed now."""
        return must_close(self.at, self)

    @property
    def pending(self) -> bool:
        """Whether an epoch end or a validation comes before the next step."""
        closing = self.closing
        return closing or (self.schedule is not None and must_validate(self.at, self, self.schedule, closing))

    @property
    def over(self) -> bool:
        """Whether the last epoch of the run, or of the stage, is closed."""
        return is_over(self.at, self)

    @property
    def stage_is_over(self) -> bool:
        """Whether the last epoch of a stage is closed, and that of the run is not."""
        return self._ends_stage(self.at)

    def is_end_of_stage(self, status: Status) -> bool:
        """Returns whether a status is that of the end of a stage, and not of the run."""
        return self._ends_stage(_position_of(status))

    def _ends_stage(self, at: Position) -> bool:
        return is_over(at, self) and not is_over(at, replace(self, end_epoch=self.end_run))

    def limit(self, epoch: int | None) -> None:
        """Sets the epoch after which a stage is over; None for the last stage."""
        self.end_epoch = self.end_run if epoch is None else min(epoch, self.end_run)

    @property
    def at_remainder(self) -> bool:
        """Whether the next batch is the smaller last one."""
        return self.at.cursor == self.full

    def stepped(self) -> None:
        """Advances by a step."""
        self.at = self.at._replace(cursor=self.at.cursor + 1, step=self.at.step + 1)

    def passed_boundary(self) -> None:
        """Advances past an epoch end or a validation."""
        closing, at = self.closing, self.at._replace(evaluated=self.at.step)
        self.at = at._replace(epoch=at.epoch + 1, cursor=0) if closing else at

    def expect_epoch_of(self, steps: int) -> None:
        """Sets the steps of the epoch, as the data tells them."""
        self.epoch_len = steps

    def stop(self) -> None:
        """Notes that the host has requested a stop."""
        self.at = self.at._replace(stopped=True)

    def correct(self, status: Status) -> None:
        """Sets the position to what the device reported."""
        self.at = _position_of(status)

    def take(self, carry: LoopState) -> None:
        """Sets the position to that of a restored loop state."""
        stopped = np.asarray(carry.train.stop) | np.asarray(carry.ended)
        step = int(carry.step)
        self.at = Position(step, int(carry.epoch), step - int(carry.began), int(carry.evaluated), bool(stopped.all()))

    def numbers(
        self,
        *,
        data_epochs: tuple[int, int] | None = None,
        base: int = 0,
        size: int = UNBOUNDED,
        length: int = UNBOUNDED,
    ) -> DispatchParams:
        """Returns the parameters of a dispatch.

        Args:
            data_epochs: the first epoch that the data belongs to, and the number of its epochs; None for any epoch.
            base: cursor of the first batch.
            size: number of batches.
            length: limit of steps.
        """
        first, past, stride = 0, UNBOUNDED, 0
        if data_epochs is not None:
            first, past, stride = data_epochs[0], sum(data_epochs), self.epoch_len
        ends = (self.end_step, self.end_epoch, self.total_steps)
        return DispatchParams(first, past, stride, base, size, self.epoch_len, length, *ends)

    def single(self) -> DispatchParams:
        """Returns the parameters of a dispatch of the next batch alone."""
        return self.numbers(data_epochs=(self.at.epoch, 1), base=self.at.cursor, size=1)


def _position_of(status: Status) -> Position:
    return Position(int(status.step), int(status.epoch), int(status.cursor), int(status.evaluated), bool(status.stop))
