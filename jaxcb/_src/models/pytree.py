"""Plain pytrees of parameters, alone or with a pytree of non-trained state."""

import sys
from typing import Any

import jax

from jaxcb._src.models.adapter import avals, check_callable, check_trainable, is_arrays, refuse_activations
from jaxcb._src.utils.pytree import to_strong_type

_ELSEWHERE = "Put what is not trained (counters, statistics) in jc.with_state(params, state)."


class Pytree:
    """Adapter of a pytree of floating arrays: the loss function receives the tree itself.

    Args:
        params: the parameters.
        state: a pytree of arrays that the loss function gets as `state` and returns in `jc.Out`.

    Raises:
        TypeError: for a parameter that is no floating or complex array, naming it.
        ValueError: for a tree without leaves.

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

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, state, None)`."""
        return jax.tree.map(to_strong_type, self._params), jax.tree.map(to_strong_type, self._state), None

    def release(self) -> None:
        """Keeps the shapes alone."""
        self._params, self._state = avals(self.split()[:2])

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns `params`."""
        return params

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(None, None)`: a tree of parameters carries nothing; state goes through `jc.Out`."""
        return None, None

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Returns `params`."""
        return params

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns `model(x)` for a pytree that can be called.

        Raises:
            TypeError: for one that cannot.
        """
        check_callable(model)
        return model(x)

    def activations(self, model: Any, run: Any) -> dict[str, Any]:
        """Refuses: its modules do not tell what they return."""
        refuse_activations("a plain pytree")


def with_state(model: Any, state: Any) -> Any:
    """Pairs a model with a pytree of non-trained state.

    The loss function asks for it by keyword, `loss_fn(model, batch, state)`, and returns the new one,
    `jc.Out(loss, metrics, state)`.

    Args:
        model: a pytree of parameters, or an Equinox module.
        state: a pytree of arrays, or an `eqx.nn.State`. Its form stays the same from step to step.

    Returns:
        What `jc.fit` takes as its model.

    Raises:
        TypeError: for a Flax module, which carries its own state, and for a state that holds no arrays.

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
                f"with_state was given {type(model).__name__}, a module of {library}, whose state is carried for you. "
                "Pass the model itself (a Linen one as jc.linen(module, sample_input))."
            )
    if not jax.tree.leaves(state):
        raise TypeError("with_state was given a state without arrays; pass the model alone.")
    if not is_arrays(state):
        odd = next(type(x).__name__ for x in jax.tree.leaves(state) if not is_arrays(x))
        raise TypeError(f"with_state was given a state that holds a {odd}; expected a pytree of arrays.")
    if is_equinox(model):
        from jaxcb._src.models.equinox import Equinox

        return Equinox(model, state)
    return Pytree(model, state)


def is_equinox(model: Any) -> bool:
    """Whether `model` is an Equinox module or a pytree that holds one."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return False
    return any(isinstance(x, equinox.Module) for x in jax.tree.leaves(model, is_leaf=_is_a(equinox.Module)))


def _is_a(cls: Any) -> Any:
    return lambda x: isinstance(x, cls)
