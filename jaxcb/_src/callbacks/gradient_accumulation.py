"""`GradientAccumulation`: one update for several steps."""

from collections.abc import Callable
from typing import Any

import optax

from jaxcb._src.core.callback import Callback
from jaxcb._src.training.learning_rate import accumulated
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.pytree import static


class GradientAccumulation(Callback):
    """Applies one update every few steps, with the mean of their gradients, as for one large batch.

    The optimizer, and so the learning rate schedule, counts updates; `metrics["updates"]` is their number.
    `metrics.step` still counts batches. Accumulation continues across the end of an epoch.

    Args:
        steps: batches per update; or a jittable function of the number of updates done.

    Raises:
        ValueError: if the number is below 1, or the run has no optimizer.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> state = jc.TrainState.create(params=jnp.zeros(()), tx=optax.sgd(1.0))
        >>> state = jc.callbacks.GradientAccumulation(2).setup(state)
        >>> state = state.apply_gradients(jnp.array(1.0))
        >>> float(state.params), float(state.apply_gradients(jnp.array(3.0)).params)
        (0.0, -2.0)

    Source: `optax.MultiSteps`.
    """

    steps: int | Callable[[Any], Any] = static()

    def __post_init__(self) -> None:
        if not callable(self.steps):
            self._set("steps", check_int("GradientAccumulation", "steps", self.steps, least=1))

    def setup(self, train_state: TrainState) -> TrainState:
        """Wraps the optimizer in `optax.MultiSteps`, unless it is wrapped already, and keeps its state."""
        if train_state.tx is None:
            raise ValueError("GradientAccumulation needs a train state with an optimizer: TrainState.create(tx=...).")
        if isinstance(train_state.opt_state, optax.MultiStepsState):  # from an earlier run
            return train_state
        several = optax.MultiSteps(optax.with_extra_args_support(train_state.tx), self.steps)
        start = several.init(train_state.params)._replace(inner_opt_state=train_state.opt_state)
        return train_state.replace(tx=accumulated(several), opt_state=start)
