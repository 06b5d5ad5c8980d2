"""Probes that are often wanted: norms of gradients, updates and parameters.

    jc.fit(..., probes={"grad_norm": jc.probes.grad_norm(every=100)})

Source of the ratio: A. Karpathy, "A Recipe for Training Neural Networks"; about 1e-3 is healthy.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcb._paths import leaf_name
from jaxcb._probe import Look, Probe
from jaxcb._struct import Struct, static


class _Norm(Struct):
    """The norm of one part of a `Look`. Compares by value, so that equal probes are one."""

    of: str = static()
    per_layer: bool = static(default=False)

    def __call__(self, seen: Look) -> Any:
        return _norms(getattr(seen, self.of), self.per_layer)


class _Ratio(Struct):
    """The norm of the updates over that of the parameters."""

    per_layer: bool = static(default=False)

    def __call__(self, seen: Look) -> Any:
        updates, params = _norms(seen.updates, self.per_layer), _norms(seen.params, self.per_layer)
        return jax.tree.map(lambda u, p: u / jnp.maximum(p, jnp.finfo(jnp.float32).tiny), updates, params)


def _norms(tree: Any, per_layer: bool) -> Any:
    """The l2 norm of a tree, in float32; with `per_layer` of each layer, whose name is its parameters' path."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    if not per_layer:
        return optax.tree.norm(wide)
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(wide):
        layers.setdefault(leaf_name(path[:-1]) or leaf_name(path), []).append(leaf)
    return {name: optax.tree.norm(leaves) for name, leaves in layers.items()}


def grad_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the gradients, as the loss gives them, before any clipping.

    Args:
        every: steps between two looks.
        per_layer: a norm for each layer (`name/path/of/layer`) in place of one for all.

    Example:
        >>> import jaxcb as jc
        >>> jc.probes.grad_norm(every=100).every
        100
    """
    return Probe(_Norm("grads", per_layer), every)


def update_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the updates that the optimizer proposes; arguments as for `grad_norm`."""
    return Probe(_Norm("updates", per_layer), every)


def param_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the parameters before the update; arguments as for `grad_norm`."""
    return Probe(_Norm("params", per_layer), every)


def update_ratio(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the norm of the updates over that of the parameters; arguments as for `grad_norm`."""
    return Probe(_Ratio(per_layer), every)
