"""`Adapter`: the interface between a run and a model, and shared functions of all adapters."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.utils.names import leaf_name


@runtime_checkable
class Adapter(Protocol):
    """Converts a user's model to trees of arrays, and back.

    An adapter is a static field of `TrainState`: it is hashable and compares by identity. It holds the parts of the
    model that never change in a run (its structure); the arrays are arguments.

    Attributes:
        explicit_state: whether the loss function receives the non-trained state as `state` and returns
            the new one in `jc.Out`. Then a merged model does not contain it, and `carried` returns
            `(None, None)`.
    """

    @property
    def explicit_state(self) -> bool:
        """Whether the loss function receives and returns the state, by `state` and `jc.Out`."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether `deliver` changes the caller's own model."""
        ...

    @property
    def form(self) -> Any:
        """The parts that never change in a run: models with equal forms differ only in their arrays."""
        ...

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, model_state, rngs)` of the model: its current arrays, not copies."""
        ...

    def release(self) -> None:
        """Drops the references to arrays that only `split` needs; `split` is not called afterwards."""
        ...

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns the object that `loss_fn(model, batch)` receives; works inside every transformation.

        Args:
            params: with the structure of the one of `split`.
            model_state: with the structure of the one of `split`.
            rngs: with the structure of the one of `split`.
            train: the view: dropout and batch statistics are active in the training view.
            key: the step's PRNG key, for models without keys of their own.
        """
        ...

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(model_state, rngs)` after the forward pass, with exactly the structure of those of `split`."""
        ...

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Returns the trained model for the user. It holds the given arrays, not copies."""
        ...

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns the merged model's outputs for a batch."""
        ...

    def activations(self, model: Any, run: Callable[[Any], Any]) -> dict[str, Any]:
        """Returns the outputs of the model's modules during `run(model)`: path -> array.

        Raises:
            ValueError: if the model does not expose them.
        """
        ...


def avals(tree: Any) -> Any:
    """Returns the shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), tree)


def is_arrays(tree: Any) -> bool:
    """Returns whether all leaves can be put on the device."""
    return all(
        isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex) for x in jax.tree.leaves(tree)
    )


def check_trainable(params: Any, *, of: str, elsewhere: str) -> None:
    """Checks that there are parameters and that all of them can have a gradient.

    Args:
        params: a pytree.
        of: the owner of the parameters, for messages.
        elsewhere: a sentence for messages that says where other arrays belong.

    Raises:
        TypeError: if a leaf is not a floating or complex array.
        ValueError: if there is no leaf.
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
    """Returns the arrays that Flax captured by their module's path; from the second call on, the path is numbered.

    Args:
        tree: nested mappings by module, with the arrays of a method's calls as a tuple under its name.
    """
    found: dict[str, Any] = {}

    def walk(node: Any, parts: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                walk(child, (*parts, str(name)))
            return
        path = "/".join(part for part in parts if part != "__call__") or "output"
        leaves = [leaf for leaf in jax.tree.leaves(node) if hasattr(leaf, "dtype")]
        found.update({path if i == 0 else f"{path}_{i + 1}": leaf for i, leaf in enumerate(leaves)})

    walk(tree, ())
    return found


def refuse_activations(kind: str) -> NoReturn:
    """Raises the error for a model whose modules do not expose their outputs."""
    raise ValueError(
        f"activations are available for Flax NNX and Linen modules, and not for {kind}. Return the arrays as "
        "jc.Out(aux=...), and select them with of=lambda look: look.aux."
    )


def check_callable(model: Any) -> None:
    """Checks that a model can be called on inputs.

    Raises:
        TypeError: if not; the message says what to do instead.
    """
    if not callable(model):
        raise TypeError(
            f"the model is a plain pytree ({type(model).__name__}) that cannot be called on inputs. Apply your own "
            "function to result.params, or make the model a pytree with a __call__."
        )


def _type_name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
