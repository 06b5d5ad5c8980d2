"""Adapter of Equinox modules: floating arrays are the parameters, the adapter keeps everything else."""

import inspect
from typing import Any

import equinox as eqx
import jax

from jaxcb._src.models.adapter import avals, check_callable, check_trainable, refuse_activations
from jaxcb._src.utils.pytree import to_strong_type


class Equinox:
    """Adapter of an Equinox module.

    `params` are its floating arrays, as the module that `eqx.partition` returns. Everything else is static. The
    loss function receives the module, in inference mode for evaluation, and vmaps it over the batch
    itself; it takes keys by the keyword `key`, and an `eqx.nn.State` by `state` and `jc.Out`.

    A module that is partly in inference mode keeps its modes in training, so that layers that the user
    froze stay frozen; a module that is entirely in inference mode is put in training mode.

    Args:
        model: the module, or a pytree of modules.
        state: an `eqx.nn.State`, or any pytree of non-trained arrays.

    Raises:
        ValueError: if the module has no floating arrays, or needs an `eqx.nn.State` and has none.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from jaxcb._src.models.equinox import Equinox
        >>> adapter = Equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
        >>> params, _, _ = adapter.split()
        >>> model = adapter.merge(params, None, None, train=False)
        >>> adapter.call(model, jnp.ones((4, 2))).shape
        (4, 3)
    """

    def __init__(self, model: Any, state: Any = None) -> None:
        name = type(model).__name__
        if state is None and any(map(_is_index, jax.tree.leaves(model, is_leaf=_is_index))):
            raise ValueError(
                f"the Equinox model {name} has layers with state, such as BatchNorm, but no state was given. Make both "
                f"with `model, state = eqx.nn.make_with_state({name})(...)` and pass jc.with_state(model, state)."
            )
        self._params, self._static = eqx.partition(model, eqx.is_inexact_array)
        check_trainable(self._params, of=f"the Equinox model {name}", elsewhere="")
        self._state = state
        self._keep_mode = any(flag is False for flag in _inference_flags(model))
        self.explicit_state = state is not None
        self.in_place = False

    @property
    def form(self) -> Any:
        """The structure and the non-parameters; arrays among these compare by identity."""
        leaves, tree = jax.tree.flatten(self._static)
        return jax.tree.structure(self._params), tree, [id(x) if eqx.is_array(x) else x for x in leaves]

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        leaves, tree = jax.tree.flatten(self._static)
        return jax.tree.structure((self._params, self._state)), tree, leaves, self._keep_mode

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, state, None)`."""
        return jax.tree.map(to_strong_type, self._params), jax.tree.map(to_strong_type, self._state), None

    def release(self) -> None:
        """Keeps only the shapes."""
        self._params, self._state = avals(self.split()[:2])

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns the module, in inference mode unless `train`."""
        model = eqx.combine(params, self._static)
        return model if train and self._keep_mode else eqx.nn.inference_mode(model, value=not train)

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(None, None)`: a module is a value; state goes through `jc.Out`."""
        return None, None

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Returns the module with these parameters, in the mode of the caller's module."""
        return eqx.combine(params, self._static)

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns the outputs for a batch; the module itself takes one example, as is usual in Equinox."""
        check_callable(model)
        required = [
            p.name
            for p in inspect.signature(model).parameters.values()
            if p.name == "key" and p.default is inspect.Parameter.empty
        ]
        kwargs = dict.fromkeys(required)
        if isinstance(model_state, eqx.nn.State):
            # a State may be used only once, so each call gets a copy
            return jax.vmap(lambda row: model(row, jax.tree.map(lambda v: v, model_state), **kwargs)[0])(x)
        return jax.vmap(lambda row: model(row, **kwargs))(x)

    def activations(self, model: Any, run: Any) -> dict[str, Any]:
        """Raises an error: Equinox modules do not expose their outputs."""
        refuse_activations("an Equinox module")


def _is_index(x: Any) -> bool:
    return isinstance(x, eqx.nn.StateIndex)


def _inference_flags(tree: Any) -> list[Any]:
    """Returns the `inference` attributes of all layers, nested ones included."""

    def is_layer(x: Any) -> bool:
        return x is not tree and hasattr(x, "inference")

    flags = [tree.inference] if hasattr(tree, "inference") else []
    for layer in filter(is_layer, jax.tree.leaves(tree, is_leaf=is_layer)):
        flags += _inference_flags(layer)
    return flags
