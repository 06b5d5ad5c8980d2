"""Adapters: how the models of each library become trees of arrays, and models again."""

import sys
from typing import Any

import jax

from jaxcb._src.models.adapter import Adapter
from jaxcb._src.models.linen import Linen, LinenModel
from jaxcb._src.models.pytree import Pytree, is_equinox

_ACCEPTED = (
    "Accepted are a Flax NNX module, jc.linen(module, sample_input) for a Flax Linen module, an Equinox module, "
    "a pytree of floating arrays, and jc.with_state(model, state) for the last two."
)


def adapt(model: Any, *, copy: bool = False) -> Adapter:
    """Returns the adapter of a user's model.

    No library is imported that the model does not come from.

    Args:
        model: an NNX or Equinox module, a pytree of floating arrays, what `jc.linen` and
            `jc.with_state` return, or the model that an earlier run returned.
        copy: whether an NNX module is left as it is, and the trained one is a new one.

    Returns:
        An `Adapter`; one that is given comes back as it is.

    Raises:
        TypeError: for a model that is none of these.
        ValueError: for a model with nothing to train.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcb.models import adapt
        >>> type(adapt({"w": jnp.zeros(3)})).__name__
        'Pytree'
    """
    if isinstance(model, type):
        raise TypeError(f"the model is the class {model.__name__}, expected an instance of it: {model.__name__}(...).")
    if isinstance(model, Adapter):
        return model
    if isinstance(model, LinenModel):  # what an earlier run delivered
        return Linen(model.module, model.variables, rngs=model.streams)
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(model, nnx.Module):
        from jaxcb._src.models.nnx import NNX

        return NNX(model, copy=copy)
    if linen is not None and isinstance(model, linen.Module):
        raise TypeError(
            f"the model is {type(model).__name__}, a Flax Linen module without parameters. Give it a sample input: "
            f"jc.linen({type(model).__name__}(...), x[:1])."
        )
    if nnx is not None and any(_are(nnx.Module, model)):
        raise TypeError(
            f"the model is a {type(model).__name__} that holds Flax NNX modules. Make them attributes of one "
            "nnx.Module: nnx.Dict({...}) or nnx.List([...])."
        )
    if is_equinox(model):
        from jaxcb._src.models.equinox import Equinox

        return Equinox(model)
    if jax.tree_util.all_leaves([model]) and not hasattr(model, "dtype"):
        raise TypeError(f"the model is a {type(model).__module__}.{type(model).__qualname__}. {_ACCEPTED}")
    return Pytree(model)


def _are(cls: Any, tree: Any) -> Any:
    return (isinstance(x, cls) for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, cls)))
