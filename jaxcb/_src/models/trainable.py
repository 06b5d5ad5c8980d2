"""Which parameters are trained: patterns, types and predicates, and the two parts that they split parameters into."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.utils.errors import did_you_mean, takes
from jaxcb._src.utils.names import check_pattern, directory_of, leaf_name, matches

_ACCEPTED = (
    "a pattern of paths such as 'head/**', a type of NNX Variables such as nnx.LoRAParam, a predicate of (path, "
    "array), jc.models.AllBut(...), or a sequence of these"
)


@dataclasses.dataclass(frozen=True, init=False)
class AllBut:
    """The parameters that none of the filters selects.

    Args:
        *filters: patterns of paths, types of NNX Variables, or predicates of (path, array).

    Raises:
        TypeError: for anything else.
        ValueError: without a filter.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> params = {"embed": jnp.ones(3), "head": jnp.ones(2)}
        >>> state = jc.TrainState.create(params=params, trainable=jc.models.AllBut("embed"))
        >>> state.params
        {'embed': None, 'head': Array([1., 1.], dtype=float32)}
    """

    filters: tuple[Any, ...]

    def __init__(self, *filters: "Filter") -> None:
        if not filters:
            raise ValueError("AllBut got no filter. To train everything, leave trainable= out.")
        check_filter("AllBut", "a filter", filters)
        object.__setattr__(self, "filters", filters)

    def __repr__(self) -> str:
        return f"AllBut({', '.join(map(describe, self.filters))})"


# A pattern of paths, a type of NNX Variables, a predicate of (path, array), or a sequence of these.
Filter = str | type | AllBut | Callable[[str, Any], Any] | Sequence[Any]


def check_filter(owner: str, argument: str, given: Any) -> None:
    """Checks the types in a filter.

    Raises:
        TypeError: it says what was received and what is accepted.
        ValueError: for an empty sequence.
    """
    if isinstance(given, tuple | list):
        if not given:
            raise ValueError(f"{owner}: {argument} is empty, so nothing would be trained. Pass {_ACCEPTED}.")
        for part in given:
            check_filter(owner, argument, part)
    elif isinstance(given, Mapping) and all(isinstance(epoch, int) for epoch in given):
        raise TypeError(
            f"{owner}: {argument} is a dict of epochs, which only fit takes: jc.fit(..., trainable={{0: 'head/**', 5: "
            "'**'}). Here, train one part in each run: the next one begins with the params of the result and "
            "jc.TrainState.create(params=..., trainable='**')."
        )
    elif isinstance(given, Mapping) or not (isinstance(given, str | AllBut) or callable(given)):
        raise TypeError(f"{owner}: {argument} is a {type(given).__name__}, expected {_ACCEPTED}.")


def describe(given: Any) -> str:
    """Returns a filter as text that is equal in each process."""
    if isinstance(given, tuple | list):
        return ", ".join(map(describe, given))
    if isinstance(given, str | AllBut):
        return repr(given)
    return getattr(given, "__qualname__", type(given).__qualname__)


def variable_types(given: Filter | None) -> tuple[type, ...]:
    """Returns the types in a filter."""
    if isinstance(given, AllBut):
        given = given.filters
    if isinstance(given, tuple | list):
        return tuple(t for part in given for t in variable_types(part))
    return (given,) if isinstance(given, type) else ()


def selected(given: Filter, params: Any, types: Mapping[str, type] | None, owner: str, argument: str) -> list[bool]:
    """Returns for each parameter whether a filter selects it.

    Args:
        given: the filter.
        params: the parameters, or their shapes.
        types: path -> type of the NNX Variable; None for other models.
        owner: begins error messages.
        argument: what the filter is called in them.

    Raises:
        TypeError: for a filter that is none, or a type without NNX Variables.
        ValueError: for a filter that selects nothing.
    """
    check_filter(owner, argument, given)
    leaves = [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return _selected(given, leaves, types, owner, argument)


def _selected(
    given: Any, leaves: list[tuple[str, Any]], types: Mapping[str, type] | None, owner: str, argument: str
) -> list[bool]:
    if isinstance(given, AllBut):
        inner = _selected(given.filters, leaves, types, owner, argument)
        return [not chosen for chosen in inner]
    if isinstance(given, tuple | list):
        parts = [_selected(part, leaves, types, owner, argument) for part in given]
        return [any(each) for each in zip(*parts, strict=True)]
    if isinstance(given, str):
        check_pattern(given, [name for name, _ in leaves], owner, f"{argument}=")
        return [matches(given, name) for name, _ in leaves]
    if isinstance(given, type):
        return _of_type(given, leaves, types, owner, argument)
    if not takes(given, "", None):
        raise TypeError(
            f"{owner}: {argument} is the function {describe(given)}{inspect.signature(given)}, expected a predicate of "
            "(path, array)."
        )
    found = [given(name, leaf) for name, leaf in leaves]
    for (name, _), answer in zip(leaves, found, strict=True):
        if not isinstance(answer, bool | jnp.bool_) and getattr(answer, "dtype", None) != jnp.bool_:
            raise TypeError(
                f"{owner}: {argument}={describe(given)} returned a {type(answer).__name__} for {name!r}, expected True "
                "or False. It is called with the path and the array of each parameter."
            )
    if not any(found):
        names = ", ".join(name for name, _ in leaves[:10])
        raise ValueError(f"{owner}: {argument}={describe(given)} selects no parameter. Parameters: {names}.")
    return [bool(answer) for answer in found]


def _of_type(
    given: type, leaves: list[tuple[str, Any]], types: Mapping[str, type] | None, owner: str, argument: str
) -> list[bool]:
    if types is None:
        raise TypeError(
            f"{owner}: {argument}={given.__name__} is a type, which selects Variables of a Flax NNX module, and the "
            "model is none. Pass a pattern of paths, such as 'head/**'."
        )
    found = [issubclass(types[name], given) for name, _ in leaves]
    if not any(found):
        known = sorted({t.__name__ for t in types.values()})
        raise ValueError(
            f"{owner}: {argument}={given.__name__} selects no Variable. The model has {', '.join(known)}."
            f"{did_you_mean(given.__name__, known)}"
        )
    return found


# The two parts


def split(params: Any, trained: list[bool]) -> tuple[Any, Any]:
    """Splits parameters into the trained and the frozen ones; each has None in place of the other's arrays.

    Args:
        params: any pytree.
        trained: for each leaf whether it is trained.

    Returns:
        The trained part, and the frozen one; None if nothing is frozen.
    """
    if all(trained):
        return params, None
    leaves, tree = jax.tree.flatten(params)
    pairs = list(zip(leaves, trained, strict=True))
    return (
        jax.tree.unflatten(tree, [leaf if yes else None for leaf, yes in pairs]),
        jax.tree.unflatten(tree, [None if yes else leaf for leaf, yes in pairs]),
    )


def joined(trained: Any, frozen: Any) -> Any:
    """Returns the complete parameters from the two parts of `split`."""
    if frozen is None:
        return trained
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def split_trainable(given: Filter | None, params: Any, types: Mapping[str, type] | None, owner: str) -> tuple[Any, Any]:
    """Returns the trained and the frozen parameters for `trainable=`.

    Args:
        given: the filter; None trains everything.
        params: the parameters.
        types: path -> type of the NNX Variable; None for other models.
        owner: begins error messages.

    Raises:
        TypeError: for a filter that is none, and for a trained parameter that cannot have a gradient.
        ValueError: for a filter that selects nothing, or leaves nothing to train.
    """
    if given is None:
        return params, None
    trained = selected(given, params, types, owner, "trainable")
    named = jax.tree_util.tree_leaves_with_path(params)
    if not any(trained):
        names = ", ".join(leaf_name(path) for path, _ in named[:10])
        raise ValueError(f"{owner}: trainable={describe(given)} leaves nothing to train. Parameters: {names}.")
    return split(params, trained)


def is_held(params: Any, frozen: Any) -> Callable[[str], bool]:
    """Returns a function that tells of an array of the model's state whether it belongs to a frozen module.

    Statistics belong to the innermost module around them that has parameters. They are held if it trains none of these:
    as with `Freeze`, the statistics of a frozen batch norm keep their values.

    Args:
        params: the trained parameters.
        frozen: the frozen ones.
    """

    def modules(part: Any) -> set[str]:
        found: set[str] = set()
        for path, _ in jax.tree_util.tree_leaves_with_path(part):
            name = directory_of(leaf_name(path))
            while name not in found:
                found.add(name)
                name = directory_of(name)
        return found

    trained = modules(params)
    all_modules = trained | modules(frozen)

    def held(name: str) -> bool:
        module = directory_of(name)
        while module not in all_modules:
            module = directory_of(module)
        return module not in trained

    return held
