"""The functions that a program jits besides the user's: hooks, probes and lazy log actions; and how to call them."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxcb._src.core.actions.utils import materialize
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.training.probes import Probe, look, readings
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import PendingUpdate


def hook_of(hook: str, tree: Any) -> Callable[..., Any]:
    """Returns a hook of all callbacks as a function of their numeric fields.

    The static fields are closed over, so that a call does not compare them again.

    Args:
        hook: its name.
        tree: the structure of the chain.
    """

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        return getattr(jax.tree.unflatten(tree, settings), hook)(states, metrics)

    run.__name__ = hook
    return run


def members_hook(axes: Any, hook: str, tree: Any) -> Callable[..., Any]:
    """Returns a hook of all callbacks, mapped over the members of a population.

    Callbacks that see the complete population run after the others.

    Args:
        axes: which numeric fields of the callbacks have a member axis, as `in_axes` of `vmap`.
        hook: its name.
        tree: the structure of the chain.
    """
    one = hook_of(hook, tree)

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        per_member = metrics.replace(alive=None, member=None)
        seen = jax.tree.map(lambda _: None, per_member).replace(values=0)
        states, actions = jax.vmap(one, in_axes=(axes, 0, seen))(settings, states, per_member)
        if metrics.alive is None:
            return states, actions
        states, more = one(settings, states, metrics)
        return states, actions + more

    run.__name__ = hook
    return run


def probe_function(name: str, probe: Probe, forward: Callable[..., Any]) -> Callable[..., dict[str, Array]]:
    """Returns a probe as a function of the train state, the pending update and the batch."""

    def run(train: TrainState, proposal: PendingUpdate, batch: Any) -> dict[str, Array]:
        return readings(name, probe, look(train, proposal, batch, forward))

    return run


def materializer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that computes lazy log actions between gradients and update."""

    def run(action: Any, train: TrainState, proposal: PendingUpdate, batch: Any) -> Any:
        return materialize(action, look(train, proposal, batch, forward))

    return run


def call_preserving_identity(fn: Any, *args: Any) -> Any:
    """Calls a jitted function inside a trace. An output that is an unmodified input is returned as that input object.

    A nested jit gives each output a new tracer, also for inputs that it returns unchanged. The identity of the tracers
    is what `Compiled` and `select` use to skip leaves that do not change.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return fn(*args)
    out, tree = jax.tree.flatten(fn(*args))
    jaxpr = fn.trace(*args).jaxpr.jaxpr
    given = {id(v): x for v, x in zip(jaxpr.invars, jax.tree.leaves(args), strict=True)}
    return jax.tree.unflatten(tree, [given.get(id(v), x) for v, x in zip(jaxpr.outvars, out, strict=True)])
