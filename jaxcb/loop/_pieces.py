"""Functions of which a program is compiled: hooks of all callbacks, looks inside the step, answers to requests."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxcb._metrics import Metrics
from jaxcb._probe import Probe, look, readings
from jaxcb._requests import answers
from jaxcb._step import Proposal
from jaxcb._train_state import TrainState


def hook_of(hook: str, tree: Any) -> Callable[..., Any]:
    """A hook of all callbacks as a function of their numbers; what is static in them is never compared again.

    Args:
        hook: its name.
        tree: the structure of the chain.
    """

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        return getattr(jax.tree.unflatten(tree, settings), hook)(states, metrics)

    run.__name__ = hook
    return run


def members_hook(axes: Any, hook: str, tree: Any) -> Callable[..., Any]:
    """The same over the members of a population; callbacks that see all of them at once come after the others.

    Args:
        axes: which of the callbacks' numbers have a member axis, as `vmap`'s `in_axes`.
        hook: its name.
        tree: the structure of the chain.
    """
    one = hook_of(hook, tree)

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        own = metrics.replace(alive=None, member=None)
        seen = jax.tree.map(lambda _: None, own).replace(values=0)
        states, actions = jax.vmap(one, in_axes=(axes, 0, seen))(settings, states, own)
        if metrics.alive is None:
            return states, actions
        states, more = one(settings, states, metrics)
        return states, actions + more

    run.__name__ = hook
    return run


def looker(name: str, own: Probe, forward: Callable[..., Any]) -> Callable[..., dict[str, Array]]:
    """A probe as a function of the step's halves."""

    def run(train: TrainState, proposal: Proposal, batch: Any) -> dict[str, Array]:
        return readings(name, own, look(train, proposal, batch, forward))

    return run


def answerer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """What a request between the halves of a step is answered with."""

    def run(asked: Any, train: TrainState, proposal: Proposal, batch: Any) -> Any:
        return answers(asked, look(train, proposal, batch, forward))

    return run


def forwarded(fn: Any, *args: Any) -> Any:
    """Calls a jitted function inside a program; what it hands through comes back as the given array itself.

    JAX makes an array of its own of each result, and so would carry and select what stays as it is like what changes.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return fn(*args)
    out, tree = jax.tree.flatten(fn(*args))
    jaxpr = fn.trace(*args).jaxpr.jaxpr
    given = {id(v): x for v, x in zip(jaxpr.invars, jax.tree.leaves(args), strict=True)}
    return jax.tree.unflatten(tree, [given.get(id(v), x) for v, x in zip(jaxpr.outvars, out, strict=True)])
