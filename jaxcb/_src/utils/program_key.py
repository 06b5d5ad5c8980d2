"""Keys of programs: two runs with equal keys would trace the same program."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import itertools
import math
import types
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import jax

# JAX 0.12 adds to its configuration when Pallas is first imported, and then traces every function again. Orbax and
# `jax.extend` import it: without this line that would happen between the first and the second run.
import jax.extend.core
import numpy as np
from jax.core import Tracer

from jaxcb._src.utils.pytree import Struct
from jaxcb._src.utils.xla import jaxpr_in

_PLAIN = (str, bytes, int, bool, complex, type(None), type(...))
_LARGE = 1 << 20  # bytes; of a larger array, a key has no copy: it compares by identity, or a hash of its content


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

    Functions of the user are compared so, as `jax.jit` does. A strong reference would keep the arrays in
    their closures alive for as long as the program is kept.
    """

    __slots__ = ("_hash", "_ref")

    def __init__(self, target: Any) -> None:
        self._ref = weakref.ref(target)
        self._hash = id(target)

    @property
    def target(self) -> Any:
        """The object; None if it no longer exists."""
        return self._ref()

    @property
    def is_dead(self) -> bool:
        """Whether the object no longer exists."""
        return self._ref() is None

    def __eq__(self, other: object) -> bool:
        target = self._ref()
        return isinstance(other, Reference) and target is not None and target is other._ref()

    def __hash__(self) -> int:
        return self._hash


class _StrongReference:
    """A reference for objects that cannot be referred to weakly; it compares by identity, too."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StrongReference) and self._target is other._target

    def __hash__(self) -> int:
        return id(self._target)


def key_of(value: Any, *, mutable: bool = False) -> Hashable:
    """Returns the key of a value that is fixed while a program is traced.

    Numbers compare by type and value, since `1`, `1.0` and `True` are equal in Python and give different programs.
    Functions and objects compare by identity; arrays by content, since tracing makes constants of them.

    Args:
        value: the value.
        mutable: whether lists, dicts and arrays of numpy are compared by content. Otherwise they have no key: a hook
            may write to them from the host, and then the program of one run must not serve another.

    Raises:
        NoProgramKey: for a value that cannot be compared.
    """
    parts = functools.partial(key_of, mutable=mutable)
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, HasProgramKey) and not isinstance(value, type):
        return type(value), key_of(value.program_key(), mutable=True)
    if isinstance(value, tuple | frozenset):
        return type(value), (frozenset if isinstance(value, frozenset) else tuple)(map(parts, value))
    if isinstance(value, jax.Array | np.generic):
        return _array_key(value)
    if isinstance(value, np.ndarray | Mapping | Set | list):
        if not mutable:
            raise NoProgramKey
        return _content_key(value, parts)
    if isinstance(value, type | enum.Enum | np.dtype):
        return value
    if _is_value(value):
        return type(value), tuple((f.name, parts(getattr(value, f.name))) for f in dataclasses.fields(value))
    return _object_key(value)


def _content_key(value: Any, parts: Callable[[Any], Hashable]) -> Hashable:
    """Returns the key of a mutable container by its content."""
    if isinstance(value, np.ndarray):
        return _array_key(value)
    if isinstance(value, Mapping):
        return type(value), tuple((parts(k), parts(v)) for k, v in value.items())
    return type(value), (frozenset if isinstance(value, Set) else tuple)(map(parts, value))


def _is_value(value: Any) -> bool:
    """Returns whether a dataclass is a value. Others, such as a callback with a state of its own, are objects."""
    how = getattr(type(value), "__dataclass_params__", None)
    return how is not None and (how.frozen or how.unsafe_hash)


def _array_key(value: Any) -> Hashable:
    if isinstance(value, Tracer):
        raise NoProgramKey
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended):
        return Reference(value)
    if value.dtype.hasobject:
        raise NoProgramKey
    if math.prod(value.shape) * value.dtype.itemsize <= _LARGE:
        return type(value), value.shape, value.dtype, np.asarray(value).tobytes()
    if isinstance(value, jax.Array):
        return Reference(value)
    content = np.ascontiguousarray(value).view(np.uint8)  # an array of numpy may change where it is: no identity
    return type(value), value.shape, value.dtype, hashlib.blake2b(content.data).digest()


def _object_key(value: Any) -> Hashable:
    if isinstance(value, functools.partial):
        with contextlib.suppress(NoProgramKey):
            return functools.partial, key_of(value.func), key_of(value.args), key_of(tuple(value.keywords.items()))
    if isinstance(value, types.MethodType):  # a new object at each access
        return types.MethodType, _reference(value.__self__), key_of(value.__func__)
    if callable(value) or dataclasses.is_dataclass(value) or type(value).__hash__ is object.__hash__:
        return _reference(value)
    try:
        hash(value)
    except TypeError:
        raise NoProgramKey from None
    return type(value), value


def _reference(value: Any) -> Hashable:
    """Returns a key that compares by identity."""
    try:
        return Reference(value)
    except TypeError:  # without weak references, such as an object with slots
        return _StrongReference(value)


def tree_key(tree: Any) -> Hashable:
    """Returns the key of a pytree whose leaves are arguments of a program: its structure, shapes and dtypes.

    Static fields of our classes compare as in `key_of`; static parts of other classes compare as JAX compares them.
    """
    if isinstance(tree, HasProgramKey) and not isinstance(tree, type):
        return key_of(tree)
    if isinstance(tree, Struct):
        return type(tree), *_struct_key(tree)
    children, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    if len(children) == 1 and children[0] is tree:
        return leaf_key(tree)
    return structure, tuple(map(tree_key, children))


def _struct_key(tree: Struct) -> tuple[Hashable, ...]:
    fields = dataclasses.fields(tree)  # pyright: ignore[reportArgumentType]
    try:
        static = tuple((f.name, key_of(getattr(tree, f.name))) for f in fields if f.metadata.get("static"))
    except NoProgramKey:  # a mutable object that the hooks may write to
        static = Reference(tree)
    return static, tuple((f.name, tree_key(getattr(tree, f.name))) for f in fields if not f.metadata.get("static"))


def leaf_key(leaf: Any) -> Hashable:
    """Returns shape and dtype of a leaf, whether it is weakly typed, and its devices if it is bound to some."""
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", False) else None
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), sharding
    return type(leaf)


def trace_key(jaxpr: Any, constants: Sequence[Any] = ()) -> Hashable:
    """Returns the key of a jaxpr: equal for traces that compute the same in the same way.

    Args:
        jaxpr: the jaxpr.
        constants: the arrays that it captures, in order. They compare by content, also those of numpy: a program has
            copies of them.

    Raises:
        NoProgramKey: if it has effects, calls Python, or has a parameter that cannot be compared.
    """
    return _TraceKeys().of(jaxpr, constants)


class _UnusedRule:
    """A rule of differentiation. What was traced for a program is differentiated already, so the rule is not used."""

    def __init__(self, rule: Any) -> None:
        self.name = getattr(rule, "__qualname__", type(rule).__qualname__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _UnusedRule) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def _rule_key(rule: Any) -> Hashable:
    unused = _UnusedRule(rule)
    return unused if callable(rule) else (type(rule), unused)  # as `key_of`: hashes in old checkpoints stay the same


_RULES = {  # primitive -> parameters
    "custom_jvp_call": {"jvp_jaxpr_fun"},
    "custom_vjp_call": {"fwd_jaxpr_thunk", "bwd", "out_trees"},
}


class _TraceKeys:
    """Makes the keys of a jaxpr and of those inside of it; JAX has one jaxpr for all calls of a function."""

    def __init__(self) -> None:
        self._inner: dict[int, tuple[Any, Hashable]] = {}  # id of an inner jaxpr -> it, and its key
        self._text = functools.cache(str)

    def of(self, jaxpr: Any, constants: Sequence[Any]) -> Hashable:
        """Returns the key of a jaxpr."""
        numbers: dict[Any, int] = {}

        def atom(value: Any) -> Hashable:
            if not hasattr(value, "val"):
                return numbers[value]
            constant = np.asarray(value.val)
            return self._text(value.aval), constant.dtype.str, constant.tobytes()

        for var in (*jaxpr.invars, *jaxpr.constvars):
            numbers[var] = len(numbers)
        lines = []
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if equation.effects or "callback" in name:
                raise NoProgramKey
            given = tuple(map(atom, equation.invars))
            for var in equation.outvars:
                numbers[var] = len(numbers)
            rules = _RULES.get(name, ())
            parameters = tuple(
                (key, _rule_key(value) if key in rules else self._parameter(value))
                for key, value in sorted(equation.params.items())
            )
            results = tuple([self._text(var.aval) for var in equation.outvars])
            context = equation.ctx  # settings at this place, such as how random bits are made
            lines.append((name, parameters, given, results, context))
        shapes = tuple([self._text(var.aval) for var in jaxpr.invars])
        captured = tuple([self._constant(constant) for constant in constants])
        return shapes, captured, tuple(lines), tuple(map(atom, jaxpr.outvars))

    def _constant(self, value: Any) -> Hashable:
        # before JAX 0.9, an array of numpy that a function captures is no `np.ndarray`
        return _array_key(value) if hasattr(value, "dtype") else key_of(value, mutable=True)

    def _parameter(self, value: Any) -> Hashable:
        if isinstance(value, _PLAIN):
            return key_of(value)
        if isinstance(value, tuple | list):
            return tuple(map(self._parameter, value))
        inner = jaxpr_in(value)
        if inner is None:
            return key_of(value)
        if id(value) not in self._inner:
            self._inner[id(value)] = value, self.of(inner, getattr(value, "consts", ()))
        return self._inner[id(value)][1]


def stable_hash(key: Hashable, content: Callable[[Any], str | None]) -> str:
    """Returns a hash of a key that is the same in all processes.

    Args:
        key: of `key_of` or `trace_key`. What compares by identity, such as a function, counts by its name.
        content: returns a hash of an array that compares by identity.
    """
    found = hashlib.blake2b(digest_size=8)

    def add(part: Any) -> None:
        if isinstance(part, tuple):
            found.update(b"(")
            for inner in part:
                add(inner)
            found.update(b")")
        else:
            found.update(f"{_stable_text(part, content)};".encode(errors="replace"))

    add(key)
    return found.hexdigest()


def _stable_text(part: Any, content: Callable[[Any], str | None]) -> str:
    if isinstance(part, _PLAIN):
        return repr(part)
    if isinstance(part, frozenset):
        return " ".join(sorted(stable_hash(inner, content) for inner in part))
    if isinstance(part, Reference):
        target = part.target
        if isinstance(target, jax.Array | np.ndarray):
            return f"{content(target)}"
        return getattr(target, "__qualname__", type(target).__qualname__)
    if isinstance(part, _UnusedRule):
        return part.name
    if isinstance(part, type):
        return f"{part.__module__}.{part.__qualname__}"
    return str(part) if isinstance(part, enum.Enum | np.dtype) else type(part).__qualname__


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
