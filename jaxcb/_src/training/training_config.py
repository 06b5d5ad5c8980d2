"""`TrainingConfig`: what is trained and how, as far as a sweep can vary it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxcb._src.core.chain import Chain
from jaxcb._src.models.adapter import Adapter
from jaxcb._src.training.accumulation import accumulated, without_accumulation
from jaxcb._src.training.learning_rate import (
    adjustable_lr,
    checked_rate,
    learning_rates,
    scaled_updates,
    with_constant_rates_of,
)
from jaxcb._src.training.train_state import TrainState, checked_controls


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The configuration of one run, as far as a sweep can vary it.

    Attributes:
        seed: seed of the run's keys and of its order of the data.
        optimizer: an optax optimizer, or a factory of one.
        learning_rate: the factory's learning rate, a constant or a schedule.
        callbacks: all callbacks of the run.
        hyperparameters: further numeric arguments of the factory.
        controls: name -> number.
        model: arguments of the function that makes the model, besides the seed.
    """

    seed: int
    optimizer: Any
    learning_rate: float | optax.Schedule | None
    callbacks: Chain
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", checked_controls(self.controls))

    def without(self, fixed: tuple[str, ...]) -> "TrainingConfig":
        """Returns the configuration with some of the factory's numbers bound to it as Python values."""
        if not fixed:
            return self
        numbers = {name: self.hyperparameters[name] for name in fixed}
        rest = {name: value for name, value in self.hyperparameters.items() if name not in fixed}
        return dataclasses.replace(self, optimizer=functools.partial(self.optimizer, **numbers), hyperparameters=rest)

    def transformation(self, params: Any) -> optax.GradientTransformation:
        """Makes the optimizer, with a learning rate that callbacks can change: exactly, or by scaling its updates.

        Args:
            params: the parameters, or their shapes.

        Returns:
            An optax transformation.

        Raises:
            TypeError: if `optimizer` is neither an optax optimizer nor a factory.
            ValueError: if a factory has no learning rate, or a ready-made optimizer is given one.
        """
        optimizer = self.optimizer
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = accumulated(optimizer)
        if isinstance(optimizer, optax.GradientTransformation):
            if self.learning_rate is not None:
                raise ValueError(
                    "learning_rate was given together with a ready-made optimizer, which has its own. Pass the "
                    "factory: optimizer=optax.adam, learning_rate=1e-3."
                )
            has_rate = bool(learning_rates(jax.eval_shape(optimizer.init, params)))
            return optimizer if has_rate else scaled_updates(optimizer)
        if not callable(optimizer):
            raise TypeError(
                f"optimizer must be an optax optimizer or a factory such as optax.adam, got {type(optimizer).__name__}."
            )
        if self.learning_rate is None:
            raise ValueError(
                "optimizer is a factory, so it needs a learning rate: optimizer=optax.adam, learning_rate=1e-3."
            )
        rate = checked_rate("jaxcb", self.learning_rate)
        return adjustable_lr(optimizer, learning_rate=rate, hyperparameters=self.hyperparameters)

    def continued(self, state: TrainState, adapter: Adapter | None) -> TrainState:
        """Returns the train state of an earlier run, to continue with: its step, weights, keys and optimizer's state.

        Args:
            state: of the earlier run.
            adapter: of its model.

        Raises:
            ValueError: if the optimizer is another one, or none is known.
        """
        opt_state, tx = state.opt_state, state.tx
        if self.optimizer is None and self.learning_rate is not None:
            raise ValueError("learning_rate was given without optimizer. Pass the factory, as before: optax.adam.")
        if self.optimizer is None and tx is None:
            raise ValueError("the TrainState was made without tx=, so pass optimizer=.")
        if self.optimizer is not None:
            tx = self.transformation(state.params)
            opt_state = without_accumulation(opt_state)  # GradientAccumulation wraps the optimizer again
            opt_state = None if opt_state is None else _adopted(opt_state, jax.eval_shape(tx.init, state.params), tx)
        controls = {**state.controls, **TrainState.create(params={}, controls=self.controls).controls}
        return state.replace(tx=tx, opt_state=opt_state, controls=controls, weights={}, adapter=adapter)

    def train_state(self, adapter: Adapter) -> TrainState:
        """Returns the train state before the first step; the optimizer's state is made when the run begins."""
        params, model_state, rngs = adapter.split()
        state = TrainState.create(
            params=params,
            model_state=model_state,
            rngs=rngs,
            controls=self.controls,
            seed=self.seed,
            adapter=adapter,
        )
        return state.replace(tx=self.transformation(params))


def _adopted(opt_state: Any, configured: Any, tx: Any) -> Any:
    """Returns an optimizer's state in the structure of the configured optimizer, which has its own schedule.

    Raises:
        ValueError: if it is that of another optimizer.
    """
    old, new = (
        {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(t)} for t in (opt_state, configured)
    )
    for path in (*old, *new):
        one, other = old.get(path), new.get(path)
        if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
            raise ValueError(
                "the state to continue from is that of another optimizer: they differ at "
                f"{path}. Pass the optimizer with which it was trained; or result.model, to begin with a new one."
            )
    adopted = jax.tree.unflatten(jax.tree.structure(configured), jax.tree.leaves(opt_state))
    return with_constant_rates_of(adopted, configured, tx)
