"""`TrainState`, its controls and named weights, and how control actions change it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcb._src.core.actions.base import ControlAction
from jaxcb._src.core.actions.control import (
    Average,
    Exploit,
    Restore,
    ScaleHyperparameter,
    ScaleLearningRate,
    SetAccumulation,
    SetControl,
    SetLearningRate,
    Snapshot,
    Stop,
    Swap,
    WeightAction,
)
from jaxcb._src.core.actions.utils import as_actions
from jaxcb._src.core.callback import Callback
from jaxcb._src.models.trainable import Filter, joined, split_trainable
from jaxcb._src.training.accumulation import adjustable_accumulations, with_accumulation
from jaxcb._src.training.learning_rate import (
    LearningRate,
    hyperparameters,
    learning_rates,
    map_learning_rates,
    with_callback_lr_from,
    with_hyperparameters,
)
from jaxcb._src.utils.errors import check_number, check_seed, did_you_mean, shown
from jaxcb._src.utils.pytree import Struct, select, static, to_strong_type

_PARTS = {
    "params": ("params",),
    "model": ("params", "model_state"),
    "optimizer": ("params", "model_state", "opt_state"),
}


class NamedWeights(Struct):
    """Copies of weights that a callback declares in `slots()`.

    Attributes:
        filled: whether they were ever written, bool ().
        value: field of the train state -> its copy.
    """

    filled: Any
    value: dict[str, Any]


class TrainState(Struct):
    """The part of a run's state that is on the device.

    Attributes:
        step: updates done, int32 ().
        params: the trained parameters, any pytree of arrays; `all_params` has the frozen ones, too.
        opt_state: the optimizer's state.
        model_state: the model's non-trained arrays, such as batch statistics.
        rngs: keys and counters of a model's random generators; never part of named weights.
        controls: name -> float32 (): numbers that actions set and a step may read.
        weights: named weights by `owner/name`.
        stop: whether a callback has stopped the run, bool ().
        key: the run's PRNG key; a step's own is `step_key()`.
        tx: the optax transformation.
        frozen: the parameters that `trainable=` left out, with None in place of the trained ones. They are read-only:
            no program donates, copies or returns them, and no checkpoint contains them. None if all are trained.
        adapter: builds the user's model from `params` and `model_state`, if there is a model.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    rngs: Any
    controls: dict[str, Any]
    weights: dict[str, NamedWeights]
    stop: Any
    key: Any
    frozen: Any = None
    tx: optax.GradientTransformation | None = static(default=None)
    adapter: Any = static(default=None)

    @classmethod
    def create(  # noqa: PLR0913
        cls,
        *,
        params: Any,
        tx: optax.GradientTransformation | None = None,
        opt_state: Any = None,
        model_state: Any = None,
        rngs: Any = None,
        controls: Mapping[str, float] | None = None,
        callbacks: Callback | None = None,
        seed: int | Array = 0,
        adapter: Any = None,
        trainable: Filter | None = None,
    ) -> "TrainState":
        """Makes the state before the first step.

        Args:
            params: any pytree of arrays.
            tx: an optax transformation; `adjustable_lr` makes one whose learning rate callbacks can change.
            opt_state: the optimizer's state; `tx.init(params)` if None.
            model_state: non-trained arrays.
            rngs: state of random generators.
            controls: name -> number.
            callbacks: allocates the named weights of these callbacks, for hand-written loops.
            seed: an integer or a PRNG key.
            adapter: rebuilds the user's model; `from_nnx` sets it.
            trainable: which parameters are trained: a pattern of paths (`head/**`), `jc.models.AllBut(...)`, a
                predicate of (path, array), a type of NNX Variables, or a sequence of these. The others are in `frozen`;
                gradients and optimizer know `params` alone. None trains all.

        Returns:
            A `TrainState`. It holds the given arrays, not copies.

        Raises:
            TypeError: for another kind of `trainable`.
            ValueError: if `trainable` selects nothing.

        Example:
            >>> import jaxcb as jc, optax
            >>> state = jc.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
            >>> int(state.apply_gradients({"w": jnp.ones(3)}).step)
            1
        """
        if tx is not None and not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
            cure = ", the result of a factory such as optax.adam(1e-3)" if callable(tx) else ""
            raise TypeError(
                f"TrainState.create: tx must be an optax.GradientTransformation{cure}, or None, got {shown(tx)}."
            )
        if callbacks is not None and not isinstance(callbacks, Callback):
            raise TypeError(
                f"TrainState.create: callbacks must be a callback, such as jc.chain(...), got {shown(callbacks)}."
            )
        params, frozen = split_trainable(
            trainable,
            jax.tree.map(to_strong_type, params),
            getattr(adapter, "variable_types", None),
            "TrainState.create",
        )
        if opt_state is None and tx is not None:
            opt_state = jax.jit(tx.init)(params)
        key = seed if _is_key(seed) else jax.random.key(check_seed("TrainState.create", seed))
        state = cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=jax.tree.map(to_strong_type, opt_state),
            model_state=jax.tree.map(to_strong_type, model_state),
            rngs=jax.tree.map(to_strong_type, rngs),
            controls={k: jnp.asarray(v, jnp.float32) for k, v in checked_controls(controls).items()},
            weights={},
            stop=jnp.zeros((), bool),
            key=key,
            frozen=frozen,
            tx=tx,
            adapter=adapter,
        )
        return state if callbacks is None else state.with_slots(callbacks)

    def init_optimizer(self) -> "TrainState":
        """Returns the state with an optimizer state. The run makes it only now, so that there is never a second one."""
        if self.tx is None or self.opt_state is not None:
            return self
        return self.replace(opt_state=jax.tree.map(to_strong_type, self.tx.init(self.params)))

    @classmethod
    def from_nnx(cls, model: Any, optimizer: Any, **kwargs: Any) -> "TrainState":
        """Makes a state from a Flax NNX model and its `nnx.Optimizer`; `update_nnx` writes it back.

        Args:
            model: an `nnx.Module`.
            optimizer: an `nnx.Optimizer` for it.
            **kwargs: `controls`, `callbacks` and `seed` as in `create`.

        Returns:
            A `TrainState` that shares no Variable with the model.
        """
        from jaxcb._src.models import nnx as adapters

        adapter = adapters.NNX(model, wrt=optimizer.wrt)
        params, model_state, rngs = adapter.split()
        opt_state, step = adapters.read_optimizer(optimizer)
        state = cls.create(
            params=params,
            tx=optimizer.tx,
            opt_state=opt_state,
            model_state=model_state,
            rngs=rngs,
            adapter=adapter,
            **kwargs,
        )
        return state.replace(step=step)

    def update_nnx(self, model: Any, optimizer: Any = None) -> None:
        """Writes the state into the Flax NNX model, and into its optimizer if one is given."""
        from jaxcb._src.models import nnx as adapters

        adapters.write(model, self.all_params, self.model_state, self.rngs)
        if optimizer is not None:
            adapters.write_optimizer(optimizer, self.opt_state, self.step)

    def model(self, *, train: bool = False) -> Any:
        """Returns the user's model with the weights of this state, in its training or evaluation view.

        The evaluation view has the optimizer's own weights for evaluation, if it keeps some.
        """
        params = joined(self.params if train else self.evaluation_params(), self.frozen)
        if self.adapter is None:
            return params
        return self.adapter.merge(params, self.model_state, self.rngs, train=train, key=self.step_key())

    @property
    def all_params(self) -> Any:
        """The trained and the frozen parameters, as one tree."""
        return joined(self.params, self.frozen)

    def delivered_params(self) -> Any:
        """Returns all parameters for the user: those to evaluate, and the frozen ones."""
        return joined(self.evaluation_params(), self.frozen)

    def evaluation_params(self) -> Any:
        """Returns the trained parameters to evaluate, to export and to compare.

        They are `params`, except with `optax.contrib.schedule_free`, which trains at other points than it has found.
        """
        (free,) = _schedule_free(self.opt_state)[:1] or (None,)
        if free is None or self.params is None:
            return self.params
        if jnp.ndim(self.stop):
            return jax.vmap(_evaluated)(free, self.params)
        return _evaluated(free, self.params)

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(model_state, rngs)` after the model's forward pass."""
        if self.adapter is None or self.adapter.explicit_state:
            return self.model_state, self.rngs
        return self.adapter.carried(model)

    def step_key(self) -> Array:
        """Returns the PRNG key of the next step: a function of the run's key and the step."""
        return jax.random.fold_in(self.key, self.step)

    @property
    def learning_rate(self) -> LearningRate:
        """The learning rate that callbacks can change."""
        rates = learning_rates(self.opt_state)
        if not rates:
            raise ValueError(_NO_RATE)
        if len(names := [rate.name for rate in rates if rate.name]) > 1:
            raise ValueError(
                f"the train state has the learning rates {', '.join(names)}; read one of them: "
                f"state.learning_rates[{names[0]!r}]."
            )
        return rates[0]

    @property
    def learning_rates(self) -> dict[str, LearningRate]:
        """The learning rates that callbacks can change, by name; an unnamed one is that of the key ""."""
        return {rate.name: rate for rate in reversed(learning_rates(self.opt_state))}

    def apply_gradients(self, grads: Any, *, model: Any = None, **extra: Any) -> "TrainState":
        """Returns the state after one update of the optimizer.

        Args:
            grads: gradients with the structure of `params`.
            model: the user's model after its forward pass, from which the new non-trained arrays are
                taken; None to leave them unchanged.
            **extra: what the optimizer asks for besides, such as `value`, `grad` and `value_fn` of a line search.
        """
        if self.tx is None:
            raise ValueError("this TrainState was made without tx=, so it has no optimizer to apply gradients with.")
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, **extra)
        model_state, rngs = (self.model_state, self.rngs) if model is None else self.carried(model)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            rngs=rngs,
        )

    def with_slots(self, callbacks: Callback) -> "TrainState":
        """Returns the state with the named weights that `callbacks` declare, zeroed and not filled."""
        weights = dict(self.weights)
        for key, of in callbacks.slots().items():
            if of not in _PARTS:
                raise ValueError(f"named weights {key!r} are copies of {of!r}, expected one of {', '.join(_PARTS)}.")
            copy = {part: jax.tree.map(jnp.zeros_like, getattr(self, part)) for part in _PARTS[of]}
            weights.setdefault(key, NamedWeights(jnp.zeros_like(self.stop), copy))
        return self.replace(weights=weights)


def _is_key(seed: Any) -> bool:
    """Returns whether a seed is a PRNG key, or several, typed or raw."""
    if not isinstance(seed, jax.Array):
        return False
    return jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) or (seed.dtype == jnp.uint32 and seed.ndim > 0)


def checked_controls(controls: Any) -> dict[str, Any]:
    """Returns the controls as numbers.

    Raises:
        TypeError: if they are not a mapping of names.
        ValueError: for a value that is no finite number.
    """
    if controls is not None and not isinstance(controls, Mapping):
        raise TypeError(f"controls must be a dict of names to numbers, got a {type(controls).__name__}.")
    found = {}
    for name, value in (controls or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"controls: a name must be a string that is not empty, got {name!r}.")
        found[name] = check_number("controls", name, value)
    return found


def _schedule_free(opt_state: Any) -> list[Any]:
    """Returns the states of `optax.contrib.schedule_free` in an optimizer's state."""

    def found(node: Any) -> bool:
        # by its form: to import optax.contrib takes time that few runs need
        return type(node).__name__ == "ScheduleFreeState" and hasattr(node, "z")

    return [n for n in jax.tree.leaves(opt_state, is_leaf=found) if found(n)]


def _evaluated(free: Any, params: Any) -> Any:
    """Returns the parameters for evaluation of `optax.contrib.schedule_free`, in their own dtypes."""

    def leaf(y: Array, z: Array) -> Array:
        # equal where they were just restored; the formula would not return them exactly
        return jnp.where(y == z, y, ((y - (1.0 - free.b1) * z) / free.b1).astype(y.dtype))

    return jax.tree.map(leaf, params, free.z)


def _begun_at(opt_state: Any, params: Any, when: Any) -> Any:
    """Returns the optimizer's state such that `params`, where they were restored, are the weights for evaluation."""

    def node(free: Any) -> Any:
        if type(free).__name__ != "ScheduleFreeState":
            return free
        z = jax.tree.map(lambda p, old: p.astype(old.dtype), params, free.z)
        return free._replace(z=select(when, z, free.z))

    return jax.tree.map(node, opt_state, is_leaf=lambda n: type(n).__name__ == "ScheduleFreeState")


_NO_RATE = (
    "a callback changes the learning rate, but the optimizer does not support that. Use "
    "fit(optimizer=optax.adam, learning_rate=1e-3), or build the optimizer with "
    "jc.adjustable_lr(optax.adam, learning_rate=1e-3)."
)
_NOT_EXACT = (
    "{owner} needs the learning rate itself (a floor such as min_lr above 0, or setting it), but a "
    "ready-made optimizer hides its learning rate. Use fit(optimizer=optax.adam, learning_rate=1e-3), or "
    "jc.adjustable_lr(optax.adam, learning_rate=1e-3)."
)


def check_actions(actions: Any, state: TrainState) -> None:
    """Checks that the control actions can be applied to `state`. Reads no array values.

    Raises:
        ValueError: if not; the message says what the state lacks.
    """
    rates = learning_rates(state.opt_state)
    for action in as_actions(actions):
        if isinstance(action, ScaleLearningRate | SetLearningRate):
            _check_rate_action(action, rates)
        if isinstance(action, SetControl) and action.name not in state.controls:
            names = ", ".join(sorted(state.controls)) or "none"
            raise ValueError(
                f"{action.owner or 'SetControl'} sets the control {action.name!r}, which was not declared. Controls: "
                f"{names}.{did_you_mean(action.name, state.controls)} "
                f"Declare it with controls={{{action.name!r}: 0.0}}."
            )
        if isinstance(action, SetAccumulation) and not adjustable_accumulations(state.opt_state):
            raise ValueError(
                f"{action.owner or 'SetAccumulation'} sets the steps of an update, which this optimizer has not: pass "
                "GradientAccumulation({0: 1}) among the callbacks, or a dict with the numbers."
            )
        if isinstance(action, ScaleHyperparameter) and action.name not in (known := hyperparameters(state.opt_state)):
            raise ValueError(
                f"{action.owner or 'ScaleHyperparameter'} scales the optimizer's {action.name!r}, which is not kept "
                f"in its state; kept there: {', '.join(sorted(known)) or 'none'}. Sweep it, or make "
                f"the optimizer with jc.adjustable_lr(..., hyperparameters={{{action.name!r}: ...}})."
            )
        if isinstance(action, Exploit) and not np.ndim(state.stop):
            raise ValueError(f"{action.owner or 'Exploit'} copies a member of a population; this is a single run.")
        if isinstance(action, Swap) and _schedule_free(state.opt_state):
            raise ValueError(
                f"{action.owner or 'Swap'} exchanges weights with a copy, but the optimizer (schedule_free) keeps "
                "weights for evaluation of its own, which are used for validation and in result.model. Leave the "
                "callback out."
            )
        if isinstance(action, WeightAction) and action.key not in state.weights:
            names = ", ".join(sorted(state.weights)) or "none"
            raise ValueError(
                f"{action.owner or type(action).__name__} uses the named weights {action.key!r}, which do not exist "
                f"(there are: {names}). Declare them in the callback's slots(), and in a hand-written loop pass "
                "callbacks= to TrainState.create."
            )


def _check_rate_action(action: ScaleLearningRate | SetLearningRate, rates: Sequence[LearningRate]) -> None:
    owner = action.owner or type(action).__name__
    if not rates:
        raise ValueError(f"{owner}: {_NO_RATE}")
    if action.of not in (None, *(r.name for r in rates)):
        raise ValueError(_no_rate_of(action, action.of, [r.name for r in rates if r.name]))
    exact = isinstance(action, SetLearningRate) or action.floor is not None
    if exact and any(r.schedule is None for r in rates if action.of in (None, r.name)):
        raise ValueError(_NOT_EXACT.format(owner=owner))


def _no_rate_of(action: Any, of: str, names: list[str]) -> str:
    owner = action.owner or type(action).__name__
    if not names:
        return (
            f"{owner} asks for the learning rate of {of!r}, and the optimizer has one rate for all parameters. Leave "
            f"of= out, or pass an optimizer for each group: optimizer={{'{of}/**': ..., ...}}."
        )
    return (
        f"{owner} asks for the learning rate of {of!r}, which does not exist. Rates: {', '.join(names)}."
        f"{did_you_mean(of, names)}"
    )


def apply(actions: Any, state: TrainState) -> TrainState:
    """Applies the control actions among `actions` to a train state. Pure and jittable.

    Any `Stop` stops the run. Learning rate factors multiply; floors apply after all of them; of two `SetLearningRate`
    the later one takes effect; weight actions apply in order. Log and host actions are ignored.

    Args:
        actions: the actions that hooks returned: None, an action, or nested tuples of actions.
        state: the train state; that of a population has a leading member axis, as do the arrays of the actions.

    Returns:
        The new train state.

    Raises:
        ValueError: for a control, slot or learning rate that the state does not have.

    Example:
        >>> import jaxcb as jc
        >>> state = jc.TrainState.create(params={}, controls={"beta": 0.0})
        >>> state = jc.apply((jc.actions.SetControl("beta", 0.5), jc.actions.Stop(True)), state)
        >>> float(state.controls["beta"]), bool(state.stop)
        (0.5, True)
    """
    return apply_actions(actions, state)


def apply_actions(actions: Any, state: TrainState, *, branches: bool = True) -> TrainState:
    """As `apply`.

    Args:
        actions: the actions that hooks returned.
        state: the train state.
        branches: whether weights are copied in branches, so that this costs nothing when it is not due. A GPU waits for
            the host at each branch: in its steps, a select takes less time.
    """
    flat = [a for a in as_actions(actions) if isinstance(a, ControlAction)]
    check_actions(flat, state)
    # First, because all other actions of a hook call apply to the copied members as well.
    for action in flat:
        if isinstance(action, Exploit):
            state = _exploit(action, state, branches)
    # All rate actions at once, because a floor bounds the rate after every factor, not after its own alone.
    rate_actions = [a for a in flat if isinstance(a, ScaleLearningRate | SetLearningRate)]
    if rate_actions:
        state = state.replace(opt_state=map_learning_rates(lambda r: _apply_rate(rate_actions, r), state.opt_state))
    # The rest in order: the result of two weight actions on one slot depends on it.
    for action in flat:
        match action:
            case Stop():
                state = state.replace(stop=state.stop | action.when)
            case SetControl():
                value = jnp.asarray(action.value, jnp.float32)
                new = jnp.where(action.when, value, state.controls[action.name])
                state = state.replace(controls={**state.controls, action.name: new})
            case SetAccumulation():
                state = state.replace(opt_state=with_accumulation(state.opt_state, action.steps, action.when))
            case ScaleHyperparameter():
                value = hyperparameters(state.opt_state)[action.name]
                new = jnp.where(action.when, value * jnp.asarray(action.factor, value.dtype), value)
                state = state.replace(opt_state=with_hyperparameters(state.opt_state, {action.name: new}))
            case Snapshot() | Restore() | Swap() | Average():
                state = _apply_weights(action, state, branches)
            case _:
                pass
    return state


def _when_due(branches: bool, predicate: Any, due: Callable[..., Any], *values: Any) -> Any:
    """Returns `due(*values)` in a branch, otherwise the values; without a branch, `due` must select."""
    return jax.lax.cond(predicate, due, lambda *same: same, *values) if branches else due(*values)


def _exploit(action: Exploit, state: TrainState, branches: bool) -> TrainState:
    """Copies members."""
    parts = {part: getattr(state, part) for part in ("params", "model_state", "opt_state", "controls")}

    def due(parts: Any) -> tuple[Any]:
        return (select(action.when, jax.tree.map(lambda x: x[action.source], parts), parts),)

    (parts,) = _when_due(branches, jnp.any(action.when), due, parts)
    return state.replace(**parts)


def _apply_rate(actions: list[Any], rate: LearningRate) -> LearningRate:
    factor, floor = jnp.ones_like(rate.scale), jnp.zeros_like(rate.scale)
    actions = [action for action in actions if action.of in (None, rate.name)]
    if not actions:
        return rate
    for action in actions:
        if isinstance(action, SetLearningRate):
            value = jnp.asarray(action.value, jnp.float32)
            rate = rate.replace(
                override=jnp.where(action.when, value, rate.override), overridden=rate.overridden | action.when
            )
        else:
            factor = jnp.where(action.when, factor * jnp.asarray(action.factor, jnp.float32), factor)
            if action.floor is not None:
                floor = jnp.where(action.when, jnp.maximum(floor, jnp.asarray(action.floor, jnp.float32)), floor)
    return rate.scaled(factor, floor)


def _apply_weights(action: WeightAction, state: TrainState, branches: bool) -> TrainState:
    """Applies one weight action."""
    slot = state.weights[action.key]
    current = {part: getattr(state, part) for part in slot.value}
    # With the optimizer's own weights for evaluation, these are what was measured. A copy of the optimizer's state has
    # both kinds, and is restored as it is.
    own = bool(_schedule_free(state.opt_state)) and "opt_state" not in current
    if own:
        current["params"] = state.evaluation_params() if not isinstance(action, Restore) else state.params
    when = action.when if isinstance(action, Snapshot | Average) else action.when & slot.filled

    def due(current: Any, slot: NamedWeights) -> tuple[Any, NamedWeights]:
        # in a single run, the branch implies that `when` is true
        hits = when if jnp.ndim(when) or not branches else jnp.ones((), bool)
        match action:
            case Restore():
                return select(hits, slot.value, current), slot
            case Swap():
                return select(hits, slot.value, current), slot.replace(value=select(hits, current, slot.value))
            case Average():
                new = select(slot.filled, _blend(action.decay, slot.value, current), current)
            case _:
                new = current
        return current, NamedWeights(slot.filled | hits, select(hits, new, slot.value))

    current, slot = _when_due(branches, jnp.any(when), due, current, slot)
    if own and isinstance(action, Restore):
        current["opt_state"] = _begun_at(state.opt_state, current["params"], when)
    elif own:
        current["params"] = state.params
    if "opt_state" in current:  # callbacks' changes of the learning rate are not part of the weights
        current["opt_state"] = with_callback_lr_from(current["opt_state"], state.opt_state)
    return state.replace(**current, weights={**state.weights, action.key: slot})


def _blend(decay: Any, old: Any, new: Any) -> Any:
    """Returns the moving average of the floating leaves; counters and keys take their new value.

    Unchanged values are kept bit for bit: the sum of the rounded products does not always equal them.
    """

    def leaf(o: Array, n: Array) -> Array:
        if not jnp.issubdtype(o.dtype, jnp.floating):
            return n
        wide = o.dtype if jnp.finfo(o.dtype).bits > 32 else jnp.float32
        weight = jnp.reshape(decay, jnp.shape(decay) + (1,) * (o.ndim - jnp.ndim(decay))).astype(wide)
        return jnp.where(o == n, o, (weight * o.astype(wide) + (1 - weight) * n.astype(wide)).astype(o.dtype))

    return jax.tree.map(leaf, old, new)
