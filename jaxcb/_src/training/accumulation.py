"""Gradients accumulated over several steps: `optax.MultiSteps`, with a number of steps that an action can set."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxcb._src.utils.pytree import map_nodes, nodes_of


class AdjustableAccumulation(NamedTuple):
    """The optimizer's state of `adjustable_accumulation`.

    Attributes:
        requested: steps of an update from the next one on, int32 ().
        steps: steps of the update that is being accumulated, int32 ().
        inner: the state of `optax.MultiSteps`.
    """

    requested: Any
    steps: Any
    inner: optax.MultiStepsState


def adjustable_accumulation(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that applies one update every few steps, as many as `SetAccumulation` has set.

    `optax.MultiSteps` takes the number from a function of the updates done. It never finishes an update whose number
    falls below the steps that it has accumulated, and drops their gradients; so a new number holds from the next
    update on.

    Args:
        tx: the optimizer.
        steps: the number at the beginning.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> AdjustableAccumulation:
        number = jnp.full((), steps, jnp.int32)
        return AdjustableAccumulation(number, number, optax.MultiSteps(inner, steps).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        now = jnp.where(state.inner.mini_step == 0, state.requested, state.steps)
        updates, new = optax.MultiSteps(inner, lambda _: now).update(updates, state.inner, params, **extra)
        return updates, AdjustableAccumulation(state.requested, now, new)

    return optax.GradientTransformationExtraArgs(init, update)


def accumulated(several: optax.MultiSteps) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of `optax.MultiSteps`; its own does not pass on what an optimizer asks for."""
    return optax.GradientTransformationExtraArgs(several.init, several.update)  # pyright: ignore[reportArgumentType]


def accumulations(opt_state: Any) -> list[optax.MultiStepsState]:
    """Returns the states of `optax.MultiSteps` in an optimizer's state; they count updates apart from steps."""
    return nodes_of(opt_state, lambda node: isinstance(node, optax.MultiStepsState))


def adjustable_accumulations(opt_state: Any) -> list[AdjustableAccumulation]:
    """Returns the accumulations in an optimizer's state whose number of steps an action can set."""
    return nodes_of(opt_state, _is_adjustable)


def with_accumulation(opt_state: Any, steps: Any, when: Any) -> Any:
    """Returns the optimizer's state with another number of steps from the next update on, where `when` holds."""

    def changed(node: AdjustableAccumulation) -> AdjustableAccumulation:
        number = jnp.maximum(jnp.asarray(steps).astype(jnp.int32), 1)
        return node._replace(requested=jnp.where(when, number, node.requested))

    return map_nodes(changed, opt_state, _is_adjustable)


def without_accumulation(opt_state: Any) -> Any:
    """Returns the state of the optimizer that an accumulation of its own wraps; any other state as it is."""
    if isinstance(opt_state, AdjustableAccumulation):
        opt_state = opt_state.inner
    return opt_state.inner_opt_state if isinstance(opt_state, optax.MultiStepsState) else opt_state


def _is_adjustable(node: Any) -> bool:
    return isinstance(node, AdjustableAccumulation)
