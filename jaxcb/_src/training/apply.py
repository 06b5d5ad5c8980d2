"""`apply`: how control actions change a train state, and whether they can."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
from jaxcb._src.training.accumulation import adjustable_accumulations, with_accumulation
from jaxcb._src.training.learning_rate import (
    LearningRate,
    hyperparameters,
    learning_rates,
    map_learning_rates,
    with_callback_lr_from,
    with_hyperparameters,
)
from jaxcb._src.training.schedule_free import begun_at, schedule_free_states
from jaxcb._src.training.train_state import NO_RATE, NamedWeights, TrainState
from jaxcb._src.utils.errors import did_you_mean
from jaxcb._src.utils.pytree import select

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
        if isinstance(action, Swap) and schedule_free_states(state.opt_state):
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
        raise ValueError(f"{owner}: {NO_RATE}")
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
        TypeError: for a state that is no `TrainState`, and for something else than actions.
        ValueError: for a control, slot or learning rate that the state does not have.

    Example:
        >>> import jaxcb as jc
        >>> state = jc.TrainState.create(params={}, controls={"beta": 0.0})
        >>> state = jc.apply((jc.actions.SetControl("beta", 0.5), jc.actions.Stop(True)), state)
        >>> float(state.controls["beta"]), bool(state.stop)
        (0.5, True)
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"apply: state must be a jc.TrainState, got a {type(state).__name__}.")
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
    own = bool(schedule_free_states(state.opt_state)) and "opt_state" not in current
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
        current["opt_state"] = begun_at(state.opt_state, current["params"], when)
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
