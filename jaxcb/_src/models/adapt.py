"""`adapt`: selects the adapter of a model."""

import sys
from typing import Any

import jax

from jaxcb._src.models.adapter import Adapter
from jaxcb._src.models.linen import Linen, LinenModel
from jaxcb._src.models.pytree import Pytree, is_equinox
from jaxcb._src.utils.errors import check_bool, shown

_ACCEPTED = (
    "Accepted are a Flax NNX module, jc.linen(module, sample_input) for a Flax Linen module, an Equinox module, "
    "a pytree of floating arrays, and jc.with_state(model, state) for the last two."
)


def adapt(model: Any, *, copy: bool = False, trained: tuple[type, ...] = ()) -> Adapter:
    """Returns the adapter of a user's model.

    Imports only the library that the model comes from.

    Args:
        model: an NNX or Equinox module, a pytree of floating arrays, the result of `jc.linen` or
            `jc.with_state`, or a model that an earlier run returned.
        copy: whether to leave an NNX module unchanged and train a copy of it.
        trained: types of NNX Variables that are parameters besides `nnx.Param`.

    Returns:
        An `Adapter`; an adapter is returned unchanged.

    Raises:
        TypeError: if the model is none of these.
        ValueError: if the model has nothing to train.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcb.models import adapt
        >>> type(adapt({"w": jnp.zeros(3)})).__name__
        'Pytree'
    """
    check_bool("adapt", "copy", copy)
    if not isinstance(trained, tuple) or not all(isinstance(kind, type) for kind in trained):
        raise TypeError(f"adapt: trained must be a tuple of types of NNX Variables, got {shown(trained)}.")
    if isinstance(model, type):
        raise TypeError(f"the model is the class {model.__name__}, expected an instance of it: {model.__name__}(...).")
    if isinstance(model, Adapter):
        return model
    if isinstance(model, LinenModel):  # the result of an earlier run
        return Linen(model.module, model.variables, rngs=model.streams)
    # `sys.modules` instead of an import: if a library was never imported, the model cannot be one of its modules.
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(model, nnx.Module):
        from jaxcb._src.models.nnx import NNX

        return NNX(model, copy=copy, wrt=nnx.Any(nnx.Param, *trained))
    if linen is not None and isinstance(model, linen.Module):
        raise TypeError(
            f"the model is {type(model).__name__}, a Flax Linen module without parameters. Give it a sample input: "
            f"jc.linen({type(model).__name__}(...), x[:1])."
        )
    # Plain containers of NNX modules are pytrees without arrays, so this must come before the check for pytrees.
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
