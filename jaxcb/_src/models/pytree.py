"""Adapter of plain pytrees of parameters, alone or with a pytree of non-trained state."""

import sys
from typing import Any

import jax

from jaxcb._src.models.adapter import avals, check_callable, check_trainable, is_arrays, refuse_activations
from jaxcb._src.utils.pytree import to_strong_type

_ELSEWHERE = "Put arrays that are not trained (counters, statistics) in jc.with_state(params, state)."


class Pytree:
    """Adapter of a pytree of floating arrays: the loss function receives the tree itself.

    Args:
        params: the parameters.
        state: a pytree of arrays that the loss function receives as `state` and returns in `jc.Out`.

    Raises:
        TypeError: if a parameter is not a floating or complex array; the message names it.
        ValueError: if the tree has no leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcb._src.models.pytree import Pytree
        >>> params, _, _ = Pytree({"w": jnp.zeros(3)}).split()
        >>> list(params)
        ['w']
    """

    def __init__(self, params: Any, state: Any = None) -> None:
        check_trainable(params, of=f"the model, a {type(params).__name__},", elsewhere=_ELSEWHERE)
        self._params = params
        self._state = state
        self.explicit_state = state is not None
        self.in_place = False

    @property
    def form(self) -> Any:
        """The structure of its trees."""
        return jax.tree.structure((self._params, self._state))

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.form

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, state, None)`."""
        return jax.tree.map(to_strong_type, self._params), jax.tree.map(to_strong_type, self._state), None

    def release(self) -> None:
        """Keeps only the shapes."""
        self._params, self._state = avals(self.split()[:2])

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns `params`."""
        return params

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(None, None)`: parameters contain no state; state goes through `jc.Out`."""
        return None, None

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Returns `params`."""
        return params

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns `model(x)` if the pytree is callable.

        Raises:
            TypeError: if it is not.
        """
        check_callable(model)
        return model(x)

    def activations(self, model: Any, run: Any) -> dict[str, Any]:
        """Raises an error: a plain pytree has no modules with outputs."""
        refuse_activations("a plain pytree")


def with_state(model: Any, state: Any) -> Any:
    """Pairs a model with a pytree of non-trained state.

    The loss function takes it as the keyword `state`, `loss_fn(model, batch, state)`, and returns the new one,
    `jc.Out(loss, metrics, state)`.

    Args:
        model: a pytree of parameters, or an Equinox module.
        state: a pytree of arrays, or an `eqx.nn.State`. Its structure, shapes and dtypes must not change.

    Returns:
        A model for `jc.fit`.

    Raises:
        TypeError: if the model is a Flax module, which has its own state, or the state has no arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcb._src.models.pytree import with_state
        >>> model = with_state({"w": jnp.zeros(3)}, {"seen": 0})
        >>> model.split()[1]
        {'seen': Array(0, dtype=int32)}
    """
    for library in ("flax.nnx", "flax.linen"):
        module = sys.modules.get(library)
        if module is not None and isinstance(model, module.Module):
            raise TypeError(
                f"with_state got {type(model).__name__}, a module of {library}, whose state is kept automatically. "
                "Pass the model itself (a Linen one as jc.linen(module, sample_input))."
            )
    if not jax.tree.leaves(state):
        raise TypeError("with_state got a state without arrays; pass the model alone.")
    if not is_arrays(state):
        odd = next(type(x).__name__ for x in jax.tree.leaves(state) if not is_arrays(x))
        raise TypeError(f"with_state got a state that contains a {odd}; expected a pytree of arrays.")
    if is_equinox(model):
        from jaxcb._src.models.equinox import Equinox

        return Equinox(model, state)
    return Pytree(model, state)


def is_equinox(model: Any) -> bool:
    """Returns whether `model` is an Equinox module or a pytree that contains one."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return False
    return any(isinstance(x, equinox.Module) for x in jax.tree.leaves(model, is_leaf=_is_a(equinox.Module)))


def _is_a(cls: Any) -> Any:
    return lambda x: isinstance(x, cls)
