"""`TrainingConfig`: what is trained and how, as far as a sweep can vary it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxcb._src.core.chain import Chain
from jaxcb._src.models.adapter import Adapter, avals
from jaxcb._src.models.trainable import Filter, describe, joined, split_trainable
from jaxcb._src.training.accumulation import accumulated, without_accumulation
from jaxcb._src.training.learning_rate import (
    adjustable_lr,
    checked_rate,
    learning_rates,
    scaled_updates,
    with_constant_rates_of,
)
from jaxcb._src.training.optimizer_groups import GroupedOptimizer, labels_of, named_groups, rates_of_groups
from jaxcb._src.training.train_state import TrainState, checked_controls
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.kept_programs import KeptFunction, kept_program
from jaxcb._src.utils.program_key import key_of, tree_key
from jaxcb._src.utils.pytree import to_strong_type

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
Rate = float | optax.Schedule


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The configuration of one run, as far as a sweep can vary it.

    Attributes:
        seed: seed of the run's keys and of its order of the data.
        optimizer: an optax optimizer, or a factory of one; or a dict of groups of parameters to these.
        learning_rate: the factory's learning rate, a constant or a schedule; or a dict of groups to these.
        callbacks: all callbacks of the run.
        hyperparameters: further numeric arguments of the factory.
        controls: name -> number.
        model: arguments of the function that makes the model, besides the seed.
        trainable: which parameters are trained; see `split_trainable`.
        staged: whether the run trains more later: then a group of the optimizer may be frozen at first.
        owner: the function that was called, which errors name.
    """

    seed: int
    optimizer: Any
    learning_rate: Any
    callbacks: Chain
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trainable: Filter | None = None
    staged: bool = False
    owner: str = "fit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", checked_controls(self.controls))

    def without(self, fixed: tuple[str, ...]) -> "TrainingConfig":
        """Returns the configuration with some of the factory's numbers bound to it as Python values."""
        if not fixed:
            return self
        numbers = {name: self.hyperparameters[name] for name in fixed}
        rest = {name: value for name, value in self.hyperparameters.items() if name not in fixed}
        return dataclasses.replace(self, optimizer=functools.partial(self.optimizer, **numbers), hyperparameters=rest)

    def transformation(
        self, params: Any, adapter: Adapter | None = None, frozen: Any = None
    ) -> optax.GradientTransformation:
        """Makes the optimizer, with a learning rate that callbacks can change: exactly, or by scaling its updates.

        Args:
            params: the parameters, or their shapes.
            adapter: of the model; None if there is none.
            frozen: the frozen parameters, with None in place of the trained ones.

        Returns:
            An optax transformation.

        Raises:
            TypeError: if `optimizer` is neither an optax optimizer nor a factory.
            ValueError: if a factory has no learning rate, or a ready-made optimizer is given one.
        """
        if isinstance(self.optimizer, Mapping):
            return self._grouped(params, _types_of(adapter), frozen)
        if isinstance(self.learning_rate, Mapping):
            raise TypeError(
                f"{self.owner}: learning_rate is a dict, but optimizer is none. Pass a dict of the same groups: "
                "optimizer={'head/**': optax.adam, ...}."
            )
        return self._one(self.optimizer, self.learning_rate, params)

    def _grouped(self, params: Any, types: Mapping[str, type] | None, frozen: Any) -> GroupedOptimizer:
        """Makes the optimizer of a dict of groups."""
        names = named_groups(self.optimizer, self.owner)
        rates = rates_of_groups(self.optimizer, self.learning_rate, self.owner)
        whole = joined(params, frozen) if self.staged else params
        labels = labels_of(names, whole, types, self.owner)
        paths, trained = ([path for path, _ in jax.tree_util.tree_leaves_with_path(part)] for part in (whole, params))
        by_path = dict(zip(paths, labels, strict=True))
        labels = [by_path[path] for path in trained]
        made = {}
        for name, given in names.items():
            try:
                made[name] = self._one(self.optimizer[given], rates[name], params, name)
            except (TypeError, ValueError) as error:
                error.add_note(f"This is the optimizer of the group {describe(given)}.")
                raise
        return GroupedOptimizer.make(made, labels)

    def _one(self, optimizer: Any, learning_rate: Any, params: Any, name: str = "") -> optax.GradientTransformation:
        """Makes one optimizer; `name` is that of its rate among several."""
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = accumulated(optimizer)
        if isinstance(optimizer, optax.GradientTransformation):
            if learning_rate is not None:
                raise ValueError(
                    "learning_rate was given together with a ready-made optimizer, which has its own. Pass the "
                    "factory: optimizer=optax.adam, learning_rate=1e-3."
                )
            has_rate = bool(learning_rates(eval_shape(optimizer.init, params)))
            return optimizer if has_rate else scaled_updates(optimizer, name)
        if not callable(optimizer):
            raise TypeError(
                f"optimizer must be an optax optimizer or a factory such as optax.adam, got {type(optimizer).__name__}."
            )
        if learning_rate is None:
            raise ValueError(
                "optimizer is a factory, so it needs a learning rate: optimizer=optax.adam, learning_rate=1e-3."
            )
        rate = checked_rate("jaxcb", learning_rate)
        return adjustable_lr(optimizer, learning_rate=rate, hyperparameters=self.hyperparameters, name=name)

    def with_trainable(self, trainable: Filter | None, *, staged: bool = False) -> "TrainingConfig":
        """Returns the configuration that trains another part."""
        return dataclasses.replace(self, trainable=trainable, staged=staged)

    def extended(self, state: TrainState) -> TrainState:
        """Returns the train state of a run that trains more from here on.

        Optimizer state and named weights of what was trained continue. Those of the rest begin: named weights with the
        values that the frozen parameters had all the time.

        Args:
            state: of the run so far; its optimizer state may be None at the beginning.

        Raises:
            ValueError: if it would not train what it has trained so far.
        """
        params, frozen = self.split(state.all_params, state.adapter)
        before, after = (jax.tree_util.tree_leaves_with_path(part) for part in (state.params, params))
        if not {path for path, _ in before} <= {path for path, _ in after}:
            raise ValueError(
                f"{self.owner}: trainable={describe(self.trainable)} leaves out parameters that were trained before. "
                "Each stage of a run must train what the one before it has trained."
            )
        new = state.replace(params=params, frozen=frozen)
        tx = self.transformation(params, state.adapter, frozen)
        if state.opt_state is None:
            return new.replace(tx=tx)
        begun = _begun(tx, params)
        weights = {}
        for key, slot in state.weights.items():
            value = dict(slot.value)
            if "params" in value:
                value["params"], _ = self.split(joined(value["params"], state.frozen), state.adapter)
            if "opt_state" in value:
                value["opt_state"] = _extended(value["opt_state"], begun, tx)
            weights[key] = slot.replace(value=value)
        return new.replace(tx=tx, opt_state=_extended(state.opt_state, begun, tx), weights=weights)

    def continued(self, state: TrainState, adapter: Adapter | None) -> TrainState:
        """Returns the train state of an earlier run, to continue with: its step, weights, keys and optimizer's state.

        Args:
            state: of the earlier run.
            adapter: of its model.

        Raises:
            ValueError: if the optimizer is another one, or none is known.
        """
        opt_state, tx, begun = state.opt_state, state.tx, state
        if self.trainable is not None:
            params, frozen = self.split(state.all_params, adapter)
            state = state.replace(params=params, frozen=frozen)
        other = jax.tree.structure(state.params) != jax.tree.structure(begun.params)
        if self.optimizer is None and self.learning_rate is not None:
            raise ValueError("learning_rate was given without optimizer. Pass the factory, as before: optax.adam.")
        if self.optimizer is None and tx is None:
            raise ValueError("the TrainState was made without tx=, so pass optimizer=.")
        if self.optimizer is not None:
            tx = self.transformation(state.params, adapter, state.frozen)
            opt_state = without_accumulation(opt_state)  # GradientAccumulation wraps the optimizer again
        if opt_state is not None and other:
            assert tx is not None
            if self.optimizer is not None and not isinstance(tx, GroupedOptimizer):  # whose groups depend on the part
                opt_state = _adopted(opt_state, eval_shape(tx.init, begun.params), tx)
            opt_state = _extended(opt_state, _begun(tx, state.params), tx)
        elif opt_state is not None and self.optimizer is not None:
            assert tx is not None
            opt_state = _adopted(opt_state, eval_shape(tx.init, state.params), tx)
        controls = {**state.controls, **TrainState.create(params={}, controls=self.controls).controls}
        return state.replace(tx=tx, opt_state=opt_state, controls=controls, weights={}, adapter=adapter)

    def train_state(self, adapter: Adapter) -> TrainState:
        """Returns the train state before the first step; the optimizer's state is made when the run begins."""
        params, model_state, rngs = adapter.split()
        params, frozen = self.split(params, adapter)
        state = TrainState.create(
            params=params,
            model_state=model_state,
            rngs=rngs,
            controls=self.controls,
            seed=self.seed,
            adapter=adapter,
        )
        tx = self.transformation(params, adapter, frozen)
        return state.replace(tx=tx, frozen=jax.tree.map(to_strong_type, frozen))

    def split(self, params: Any, adapter: Adapter | None) -> tuple[Any, Any]:
        """Returns the trained and the frozen parameters."""
        return split_trainable(self.trainable, params, _types_of(adapter), self.owner)


def _types_of(adapter: Adapter | None) -> Mapping[str, type] | None:
    """Returns path -> type of the NNX Variable; None for other models."""
    return getattr(adapter, "variable_types", None)


def _begun(tx: Any, params: Any) -> Any:
    """Returns the state of an optimizer before its first update. Its constant rates may be those of an earlier one."""
    init = KeptFunction("init", tx.init, kept_program(lambda: ("optimizer", key_of(tx), tree_key(params))))
    return jax.tree.map(to_strong_type, init(params))


def _extended(opt_state: Any, begun: Any, tx: Any) -> Any:
    """Returns an optimizer's state for other trained parameters: what both have continues, and the rest begins."""
    old = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(opt_state)}

    def leaf(path: Any, fresh: Any) -> Any:
        known = old.get(jax.tree_util.keystr(path))
        same = known is not None and (known.shape, known.dtype) == (fresh.shape, fresh.dtype)
        return known if same else fresh

    return with_constant_rates_of(jax.tree_util.tree_map_with_path(leaf, begun), avals(begun), tx)


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
