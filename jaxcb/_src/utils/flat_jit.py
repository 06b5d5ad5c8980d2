"""`FlatJit`: `jax.jit` for functions whose arguments or results refer to objects of the user.

JAX keeps the structures of arguments and results in caches of thousands of entries, also after the function is gone. A
structure refers to the static fields in it: the optimizer of a train state, the function that an action calls, and the
arrays in their closures. With a `FlatJit` JAX sees lists of arrays and their names, and the structures are freed with
the function.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import jax

from jaxcb._src.utils.errors import shown


class FlatTraced(NamedTuple):
    """A traced function, as `jax.jit(fn).trace(*args)` returns it.

    Attributes:
        jaxpr: the closed jaxpr.
        out_info: shapes of the results, in their structure.
        lower: lowers it.
    """

    jaxpr: Any
    out_info: Any
    lower: Callable[[], Any]


class FlatJit:
    """A jitted function that JAX knows without the structures of its arguments and results.

    It traces as often as `jax.jit` does, and errors of JAX name the same function and arguments.

    Args:
        fn: a function of pytrees, called by position.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._known: dict[Hashable, tuple[Any, list[tuple[str, ...]], list[Any]]] = {}

    def __call__(self, *args: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self._fn(*args)
        flat, named, results = self._flat(args)
        leaves = flat(*named)
        return jax.tree.unflatten(results[0], leaves)

    def trace(self, *args: Any) -> FlatTraced:
        """Traces the function.

        Args:
            *args: arrays or their shapes, in any structure.
        """
        flat, named, results = self._flat(args)
        traced = flat.trace(*named)
        return FlatTraced(traced.jaxpr, jax.tree.unflatten(results[0], traced.out_info), traced.lower)

    def eval_shape(self, *args: Any) -> Any:
        """Returns the shapes of the results. A trace is used again.

        Args:
            *args: arrays or their shapes, in any structure.
        """
        flat, named, results = self._flat(args)
        shapes = flat.eval_shape(*named)
        return jax.tree.unflatten(results[0], shapes)

    def _flat(self, args: tuple[Any, ...]) -> tuple[Any, list["_Leaves"], list[Any]]:
        """Returns the jitted function of leaves, its arguments, and a list for the structure of its results."""
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple(map(_form_of, leaves))
        if key not in self._known:
            paths = [[path for path, _ in jax.tree_util.tree_leaves_with_path(arg)] for arg in args]
            results: list[Any] = []
            run = jax.jit(_of_leaves(self._fn, structure, results))
            self._known[key] = run, [tuple(map(jax.tree_util.keystr, own)) for own in paths], results
        flat, names, results = self._known[key]
        rest = iter(leaves)
        return flat, [_Leaves(own, [next(rest) for _ in own]) for own in names], results


def eval_shape(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns the shapes of a function's results, as `jax.eval_shape` does.

    Args:
        fn: the function. The trace of a `FlatJit` is used again; any other function is traced at each call, so a
            function that stays needs `jax.eval_shape`.
        *args: arrays or their shapes, in any structure.
    """
    return (fn if isinstance(fn, FlatJit) else FlatJit(fn)).eval_shape(*args)


class _Leaves:
    """The leaves of an argument. Their paths are all of its structure; JAX shows them in errors."""

    __slots__ = ("leaves", "names")

    def __init__(self, names: tuple[str, ...], leaves: Iterable[Any]) -> None:
        self.names, self.leaves = names, tuple(leaves)


jax.tree_util.register_pytree_with_keys(
    _Leaves,
    lambda x: (tuple(zip(x.names, x.leaves, strict=True)), x.names),
    _Leaves,
    lambda x: (x.leaves, x.names),
)


def _of_leaves(fn: Callable[..., Any], structure: Any, results: list[Any]) -> Callable[..., Any]:
    """Returns a function of the leaves of the arguments.

    Args:
        fn: the function.
        structure: of its arguments.
        results: gets the structure of the results when the function is traced, as its only element.
    """

    def run(*args: _Leaves) -> list[Any]:
        out = fn(*jax.tree.unflatten(structure, [leaf for arg in args for leaf in arg.leaves]))
        named, results[:] = jax.tree_util.tree_leaves_with_path(out), [jax.tree.structure(out)]
        for path, leaf in named:  # JAX would name no function of the user's
            if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
                raise TypeError(
                    f"{run.__name__} returned {shown(leaf)} ({type(leaf).__name__}) at {jax.tree_util.keystr(path)}, "
                    "expected an array."
                )
        return [leaf for _, leaf in named]

    inner = fn.func if isinstance(fn, functools.partial) else fn
    run.__name__ = getattr(inner, "__name__", type(inner).__name__)
    run.__wrapped__ = inner  # pyright: ignore[reportFunctionMemberAccess] - JAX shows its file and line
    try:
        run.__signature__ = inspect.signature(fn)  # pyright: ignore[reportFunctionMemberAccess]
    except (TypeError, ValueError):  # a builtin
        del run.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    return run


def _form_of(leaf: Any) -> Hashable:
    """Returns what tracing depends on: with another form, the results may have another structure."""
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    return type(leaf)
