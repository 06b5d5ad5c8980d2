"""The weights of `optax.contrib.schedule_free`, which trains at other points than it has found.

The parameters of the train state are those at which gradients are taken. The optimizer's state has a second copy, from
which the weights for evaluation follow. Those are what is validated, monitored, exported and compared, and what named
weights such as the best ones hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.utils.pytree import map_nodes, nodes_of, select


def schedule_free_states(opt_state: Any) -> list[Any]:
    """Returns the states of `optax.contrib.schedule_free` in an optimizer's state."""
    return nodes_of(opt_state, _is_schedule_free)


def evaluated(free: Any, params: Any) -> Any:
    """Returns the parameters for evaluation of `optax.contrib.schedule_free`, in their own dtypes."""

    def leaf(y: Array, z: Array) -> Array:
        # equal where they were just restored; the formula would not return them exactly
        return jnp.where(y == z, y, ((y - (1.0 - free.b1) * z) / free.b1).astype(y.dtype))

    return jax.tree.map(leaf, params, free.z)


def begun_at(opt_state: Any, params: Any, when: Any) -> Any:
    """Returns the optimizer's state so that `params`, where they were restored, are the weights for evaluation."""

    def begun(free: Any) -> Any:
        z = jax.tree.map(lambda p, old: p.astype(old.dtype), params, free.z)
        return free._replace(z=select(when, z, free.z))

    return map_nodes(begun, opt_state, _is_schedule_free)


def _is_schedule_free(node: Any) -> bool:
    # by its form: to import optax.contrib takes time that few runs need
    return type(node).__name__ == "ScheduleFreeState" and hasattr(node, "z")
