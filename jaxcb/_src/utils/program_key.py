"""Keys of programs: two runs with equal keys would trace the same program."""

import dataclasses
import enum
import functools
import itertools
import types
import weakref
from collections.abc import Hashable, Mapping, Set
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.core import Tracer

from jaxcb._src.utils.pytree import Struct

_PLAIN = (str, bytes, int, bool, complex, type(None), type(...))
_LARGE = 1 << 20  # bytes; a larger array in a static field is compared by identity, not by its content


class NoProgramKey(Exception):
    """A value has no key, so that the programs of the run are not shared with any other run."""


@runtime_checkable
class HasProgramKey(Protocol):
    """A value that knows what of it decides its programs."""

    def program_key(self) -> Any:
        """Returns a value that `key_of` can take."""
        ...


class Reference:
    """A weak reference to an object that compares by identity; a dead one equals nothing.

    Functions of the user are compared in this way, as `jax.jit` does. A strong reference would keep the arrays in
    their closures alive for as long as the program is kept.
    """

    __slots__ = ("_hash", "_ref")

    def __init__(self, target: Any) -> None:
        self._ref = weakref.ref(target)
        self._hash = id(target)

    @property
    def is_dead(self) -> bool:
        """Whether the object no longer exists."""
        return self._ref() is None

    def __eq__(self, other: object) -> bool:
        target = self._ref()
        return isinstance(other, Reference) and target is not None and target is other._ref()

    def __hash__(self) -> int:
        return self._hash


def key_of(value: Any) -> Hashable:
    """Returns the key of a value that is fixed while a program is traced.

    Numbers compare by type and value, since `1`, `1.0` and `True` are equal in Python and give different programs.
    Functions compare by identity; arrays by content, since tracing makes constants of them.

    Raises:
        NoProgramKey: for a value that cannot be compared.
    """
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, HasProgramKey) and not isinstance(value, type):
        return type(value), key_of(value.program_key())
    if isinstance(value, tuple | list):
        return type(value), tuple(map(key_of, value))
    if isinstance(value, Mapping):
        return type(value), tuple((key_of(k), key_of(v)) for k, v in value.items())
    if isinstance(value, Set):
        return type(value), frozenset(map(key_of, value))
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array_key(value)
    if isinstance(value, type | enum.Enum | np.dtype):
        return value
    if _is_value(value):
        return type(value), tuple((f.name, key_of(getattr(value, f.name))) for f in dataclasses.fields(value))
    return _object_key(value)


def _is_value(value: Any) -> bool:
    """Returns whether a dataclass is a value. Others, such as a callback with a state of its own, are objects."""
    how = getattr(type(value), "__dataclass_params__", None)
    return how is not None and (how.frozen or how.unsafe_hash)


def _array_key(value: Any) -> Hashable:
    if isinstance(value, Tracer):
        raise NoProgramKey
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended) or value.nbytes > _LARGE:
        return Reference(value)
    return type(value), value.shape, value.dtype, np.asarray(value).tobytes()


def _object_key(value: Any) -> Hashable:
    if isinstance(value, functools.partial):
        return functools.partial, key_of(value.func), key_of(value.args), key_of(value.keywords)
    if isinstance(value, types.MethodType):  # a new object at each access
        return types.MethodType, Reference(value.__self__), key_of(value.__func__)
    if callable(value) or dataclasses.is_dataclass(value) or type(value).__hash__ is object.__hash__:
        try:
            return Reference(value)
        except TypeError:  # without weak references, such as a builtin function
            return type(value), value
    try:
        hash(value)
    except TypeError:
        raise NoProgramKey from None
    return type(value), value


def tree_key(tree: Any) -> Hashable:
    """Returns the key of a pytree whose leaves are arguments of a program: its structure, shapes and dtypes.

    Static fields of our classes compare as in `key_of`; static parts of other classes compare as JAX compares them.
    """
    if isinstance(tree, HasProgramKey) and not isinstance(tree, type):
        return key_of(tree)
    if isinstance(tree, Struct):
        parts = (
            (f.name, (key_of if f.metadata.get("static") else tree_key)(getattr(tree, f.name)))
            for f in dataclasses.fields(tree)  # pyright: ignore[reportArgumentType]
        )
        return type(tree), tuple(parts)
    children, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    if len(children) == 1 and children[0] is tree:
        return leaf_key(tree)
    return structure, tuple(map(tree_key, children))


def leaf_key(leaf: Any) -> Hashable:
    """Returns shape and dtype of a leaf, whether it is weakly typed, and its devices if it is bound to some."""
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", False) else None
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), sharding
    return type(leaf)


def references_in(key: Any) -> list[Reference]:
    """Returns the weak references in a key."""
    if isinstance(key, Reference):
        return [key]
    if isinstance(key, tuple | frozenset):
        return [reference for part in key for reference in references_in(part)]
    return []


_numbers = itertools.count(1)
# The shape of the result numbers the states of JAX's configuration that tracing depends on: `jax.jit` traces the
# function again in each new state, and never in a known one.
_numbered = jax.jit(lambda: jax.numpy.zeros((next(_numbers), 0)))


def context_key() -> Hashable:
    """Returns the state of JAX's configuration that traces depend on, such as x64 and precision."""
    config: Any = jax.config
    return jax.eval_shape(_numbered).shape[0], config.jax_default_prng_impl, jax.default_backend()
