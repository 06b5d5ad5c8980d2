"""`Adapter`: what a run needs to know of a model, and what all adapters share."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.utils.leaf_names import leaf_name


@runtime_checkable
class Adapter(Protocol):
    """A user's model as trees of arrays, and the way back.

    An adapter is a static field of `TrainState`: it is hashable and compares by identity. It holds what
    never changes in a run (the model's structure); the arrays come and go as arguments.

    Attributes:
        explicit_state: whether the loss function is handed the non-trained state as `state` and returns
            the new one in `jc.Out`. Then a merged model knows nothing of it, and `carried` returns
            `(None, None)`.
    """

    @property
    def explicit_state(self) -> bool:
        """Whether state goes through the loss function's `state` and `jc.Out`."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether `deliver` changes the caller's own model."""
        ...

    @property
    def form(self) -> Any:
        """What never changes in a run: models of equal form differ in arrays alone."""
        ...

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, model_state, rngs)` of the model as it is now: its arrays, not copies."""
        ...

    def release(self) -> None:
        """Lets go of arrays that are only kept for `split`, which is not called any more."""
        ...

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns the object that `loss_fn(model, batch)` receives; works inside every transformation.

        Args:
            params: in the form of `split`'s.
            model_state: in the form of `split`'s.
            rngs: in the form of `split`'s.
            train: which view: dropout and batch statistics are active in the training view.
            key: the step's PRNG key, for models that keep no keys of their own.
        """
        ...

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(model_state, rngs)` after the forward pass, in exactly the form of `split`'s."""
        ...

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Returns the trained model for the user. It holds the arrays that were given, not copies."""
        ...

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns the merged model's outputs for a batch."""
        ...

    def activations(self, model: Any, run: Callable[[Any], Any]) -> dict[str, Any]:
        """Returns what the model's modules return while `run(model)` runs: path -> array.

        Raises:
            ValueError: for a model that does not tell.
        """
        ...


def avals(tree: Any) -> Any:
    """The shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), tree)


def is_arrays(tree: Any) -> bool:
    """Whether all leaves can live on the device."""
    return all(
        isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex) for x in jax.tree.leaves(tree)
    )


def check_trainable(params: Any, *, of: str, elsewhere: str) -> None:
    """Raises an error unless there are parameters and all of them can have a gradient.

    Args:
        params: a pytree.
        of: says whose parameters they are.
        elsewhere: says where other arrays belong.

    Raises:
        TypeError: for a leaf that is no floating or complex array.
        ValueError: where there is no leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{of} has no parameters to train: no leaf was found, expected floating arrays.")
    for path, leaf in leaves:
        name = leaf_name(path) or "itself"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, bool | int | float | complex):
            dtype = jnp.result_type(leaf)
        if dtype is None:
            raise TypeError(f"{of} has the leaf {name}, a {_type_name(leaf)}; expected a floating array. {elsewhere}")
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{of} has the leaf {name} of dtype {dtype}, which cannot have a gradient; expected a floating "
                f"array. {elsewhere}"
            )


def by_call(tree: Any) -> dict[str, Any]:
    """Names what Flax has captured: each module's path, numbered from its second call on.

    Args:
        tree: nested mappings by module, with the arrays of a method's calls as a tuple under its name.
    """
    found: dict[str, Any] = {}

    def walk(node: Any, parts: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for name, own in node.items():
                walk(own, (*parts, str(name)))
            return
        path = "/".join(part for part in parts if part != "__call__") or "output"
        leaves = [leaf for leaf in jax.tree.leaves(node) if hasattr(leaf, "dtype")]
        found.update({path if i == 0 else f"{path}_{i + 1}": leaf for i, leaf in enumerate(leaves)})

    walk(tree, ())
    return found


def refuse_activations(kind: str) -> NoReturn:
    """Raises the error of a model whose modules do not tell what they return."""
    raise ValueError(
        f"activations are known for Flax NNX and Linen modules, and not for {kind}. Hand out what is to be looked at "
        "as jc.Out(aux=...), and ask for it with of=lambda look: look.aux."
    )


def check_callable(model: Any) -> None:
    """Raises an error for a model that cannot be called on inputs.

    Raises:
        TypeError: says what to do instead.
    """
    if not callable(model):
        raise TypeError(
            f"the model is a plain pytree ({type(model).__name__}) that cannot be called on inputs. Apply your own "
            "function to result.params, or make the model a pytree with a __call__."
        )


def _type_name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
