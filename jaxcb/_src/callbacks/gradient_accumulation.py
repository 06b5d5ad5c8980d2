"""`GradientAccumulation`: one update for several steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from jaxcb._src.callbacks.options import Options
from jaxcb._src.core.actions.control import SetAccumulation
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.training.accumulation import AdjustableAccumulation, accumulated, adjustable_accumulation
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.pytree import static


class GradientAccumulation(Callback):
    """Applies one update every few steps, with the mean of their gradients, as for one large batch.

    The optimizer, and so the learning rate schedule, counts updates; `metrics["updates"]` is their number.
    `metrics.step` still counts batches. Accumulation continues across the end of an epoch; a number of another epoch
    applies from the first update on that begins there.

    Args:
        steps: batches per update; a dict of epochs, from 0, to the batches per update from then on, such as
            `{0: 8, 10: 1}` (1 before the first of them); or a jittable function of the number of updates done.

    Raises:
        TypeError: if an epoch or a number is not a whole number.
        ValueError: if a number is below 1, an epoch below 0, or the run has no optimizer.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> state = jc.TrainState.create(params=jnp.zeros(()), tx=optax.sgd(1.0))
        >>> state = jc.callbacks.GradientAccumulation(2).setup(state)
        >>> state = state.apply_gradients(jnp.array(1.0))
        >>> float(state.params), float(state.apply_gradients(jnp.array(3.0)).params)
        (0.0, -2.0)

    Source: `optax.MultiSteps`; the dict is that of Lightning's `GradientAccumulationScheduler`.
    """

    steps: int | Mapping[int, int] | Callable[[Any], Any] = static()

    def __post_init__(self) -> None:
        owner, steps = "GradientAccumulation", self.steps
        if isinstance(steps, Mapping):
            if not steps:
                raise ValueError(f"{owner}: steps is an empty dict, expected epochs with numbers, such as {{0: 2}}.")
            checked = {
                check_int(owner, "each epoch of steps", epoch, concrete=True): check_int(
                    owner, f"steps from epoch {epoch} on", number, least=1, concrete=True
                )
                for epoch, number in steps.items()
            }
            self._set("steps", Options(dict(sorted(checked.items()))))
        elif not callable(steps):
            self._set("steps", check_int(owner, "steps", steps, least=1))

    def hooks(self) -> frozenset[str]:
        return super().hooks() if isinstance(self.steps, Mapping) else frozenset()

    def setup(self, train_state: TrainState) -> TrainState:
        """Wraps the optimizer, unless it is wrapped already, and keeps its state."""
        tx, state = train_state.tx, train_state.opt_state
        if tx is None:
            raise ValueError("GradientAccumulation needs a train state with an optimizer: TrainState.create(tx=...).")
        if isinstance(state, optax.MultiStepsState | AdjustableAccumulation):  # from an earlier run
            return train_state
        if isinstance(self.steps, Mapping):
            wrapped = adjustable_accumulation(tx, self.steps_in(0))
            start: Any = wrapped.init(train_state.params)
            start = start._replace(inner=start.inner._replace(inner_opt_state=state))
        else:
            several = optax.MultiSteps(optax.with_extra_args_support(tx), self.steps)
            wrapped, start = accumulated(several), several.init(train_state.params)._replace(inner_opt_state=state)
        return train_state.replace(tx=wrapped, opt_state=start)

    def steps_in(self, epoch: int) -> int:
        """Returns the batches per update in an epoch, of the dict."""
        assert isinstance(self.steps, Mapping)
        return next((number for first, number in reversed(list(self.steps.items())) if first <= epoch), 1)

    def updates_in(self, total: int, epoch_len: int) -> tuple[int, int] | None:
        """Returns the complete updates of a run and the steps that they take; None if a function decides.

        Args:
            total: steps of the run.
            epoch_len: steps of an epoch.
        """
        if not isinstance(self.steps, Mapping):
            return (total // self.steps, total - total % self.steps) if isinstance(self.steps, int) else None
        updates = used = 0
        changes = [epoch * epoch_len for epoch in self.steps]
        while used < total:
            number = self.steps_in(used // epoch_len)
            end = min((change for change in changes if change > used), default=total)
            # those that begin before the number changes, as far as they are complete
            more = min(-(-(end - used) // number), (total - used) // number)
            if not more:
                break
            updates, used = updates + more, used + more * number
        return updates, used

    def on_epoch_begin(self, state: Any, metrics: Metrics) -> Any:
        assert isinstance(self.steps, Mapping)
        first = jnp.asarray(list(self.steps), jnp.int32)
        numbers = jnp.asarray([1, *self.steps.values()], jnp.int32)
        return state, SetAccumulation(numbers[jnp.sum(first <= metrics.epoch)])
