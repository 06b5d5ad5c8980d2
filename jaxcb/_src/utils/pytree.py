"""Pytree utilities: frozen dataclasses, strong types, and checks that a tree keeps structure, shapes and dtypes."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.utils.errors import CallbackError

_PYTHON_DTYPES = {bool: np.bool_, int: np.int32, float: np.float32}


def static(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Callable[[], Any] | dataclasses._MISSING_TYPE = dataclasses.MISSING,
    init: bool = True,
    repr: bool = True,
    kw_only: bool = False,
) -> Any:
    """Declares a field that is part of the structure and never an array.

    Names, paths, modes, booleans, cadences and functions are static: a change of them compiles a new program. Numbers
    in the arithmetic of a transition are ordinary fields, so that a sweep can batch them.

    Args:
        default: the default value.
        default_factory: a function that returns the default value.
        init: whether the constructor takes the field.
        repr: whether `repr` shows it.
        kw_only: whether it is keyword-only.

    Example:
        >>> import jaxcb as jc
        >>> class StopAt(jc.Callback):
        ...     threshold: float
        ...     monitor: str = jc.static(default="loss")
        >>> jax.tree.leaves(StopAt(0.5))
        [0.5]
    """
    given: dict[str, Any] = {"init": init, "repr": repr, "kw_only": kw_only}
    if default is not dataclasses.MISSING:
        given["default"] = default
    if default_factory is not dataclasses.MISSING:
        given["default_factory"] = default_factory
    return dataclasses.field(metadata={"static": True}, **given)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
class Struct:
    """Base class of all values, such as a callback's state: a frozen dataclass that is a pytree.

    Subclasses need no decorator.

    Unflattening bypasses the constructor. So `__post_init__` checks what a user wrote, and never the values inside of a
    transformation.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the methods that are equal for all classes are defined below: generating them per class would dominate import
        # time
        dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
        if cls.__hash__ is None:  # Python sets it to None for a class that defines __eq__
            cls.__hash__ = Struct.__hash__
        _register(cls)

    def __repr__(self) -> str:
        shown = (f.name for f in dataclasses.fields(self) if f.repr)  # pyright: ignore[reportArgumentType]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __eq__(self, other: object) -> bool:
        return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return hash(tuple(getattr(self, f.name) for f in fields if (f.compare if f.hash is None else f.hash)))

    @classmethod
    def _make(cls, **fields: Any) -> Self:
        """Builds a value from all fields, without the constructor."""
        self = object.__new__(cls)
        vars(self).update(fields)
        return self

    def _set(self, name: str, value: Any) -> None:
        """Sets a field; for `__post_init__` only."""
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named fields replaced, without checks."""
        names = [f.name for f in dataclasses.fields(self)]  # pyright: ignore[reportArgumentType]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {unknown[0]!r}; it has {', '.join(names)}.")
        return self._make(**{n: changes.get(n, getattr(self, n)) for n in names})


def _compared(x: Any) -> tuple[Any, ...]:
    return tuple(getattr(x, f.name) for f in dataclasses.fields(x) if f.compare)


def _register(cls: type) -> None:
    fields = dataclasses.fields(cls)
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(n) for n in data)

    def flatten_with_keys(x: Any) -> Any:
        return tuple(zip(keys, (getattr(x, n) for n in data), strict=True)), tuple(getattr(x, n) for n in meta)

    def flatten(x: Any) -> Any:
        return tuple(getattr(x, n) for n in data), tuple(getattr(x, n) for n in meta)

    def unflatten(aux: Any, children: Any) -> Any:
        self = object.__new__(cls)
        attributes = vars(self)
        attributes.update(zip(meta, aux, strict=True))
        attributes.update(zip(data, children, strict=True))
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def on_device(x: Any, dtype: Any = None) -> Array:
    """Returns an array on the device, as `jnp.asarray` does; a copy of a NumPy array or of a number, strongly typed.

    It compiles nothing for these. With jax 0.10, `jnp.asarray` compiles a program for each of their shapes and dtypes.
    """
    if isinstance(x, int | float | np.ndarray | np.generic):
        # `device_put` copies in the background: wait, since the caller may write into the array afterwards
        return jax.block_until_ready(jax.device_put(np.asarray(x, dtype), may_alias=False))
    return jnp.asarray(x, dtype)


def dtype_on_device(x: Any) -> Any:
    """Returns the dtype that an array has, or would have on the device."""
    return x.dtype if isinstance(x, Array) else jnp.result_type(x)


def to_strong_type(x: Any) -> Array:
    """Returns `x` as a strongly typed array: Python numbers become int32, float32 or bool."""
    x = on_device(x, _PYTHON_DTYPES.get(type(x)))
    # a PRNG key has no weak_type
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x


def to_strong_types(tree: Any) -> Any:
    """Applies `to_strong_type` to each leaf."""
    return jax.tree.map(to_strong_type, tree)


def nodes_of(tree: Any, is_node: Callable[[Any], bool]) -> list[Any]:
    """Returns the nodes of a tree that a predicate accepts, such as the states of one kind in an optimizer's state."""
    return [n for n in jax.tree.leaves(tree, is_leaf=is_node) if is_node(n)]


def map_nodes(fn: Callable[[Any], Any], tree: Any, is_node: Callable[[Any], bool]) -> Any:
    """Returns a tree with `fn` applied to the nodes that a predicate accepts."""
    return jax.tree.map(lambda n: fn(n) if is_node(n) else n, tree, is_leaf=is_node)


def select(mask: Any, new: Any, old: Any) -> Any:
    """Applies `where(mask, new, old)` to each leaf; the axes of `mask` are the leading axes of each leaf.

    It serves a single run (scalar mask) and a population (one entry per member). Leaves that are the same object are
    returned as they are.
    """
    mask = jnp.asarray(mask)

    def choose(n: Any, o: Any) -> Any:
        if n is o:
            return o
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(o) - mask.ndim)), n, o)

    return jax.tree.map(choose, new, old)


def cast_like(new: Any, old: Any, where: str, *, error: type[Exception] = CallbackError) -> Any:
    """Returns `new` with structure, shapes and dtypes of `old`.

    Weakly typed results, and results of the same kind of dtype, are cast.

    Args:
        new: the result of a user's function.
        old: arrays, or their shapes, as they were at the start.
        where: its name in errors.
        error: type of the error: `CallbackError` for a callback, `ValueError` for a model or a step.

    Raises:
        error: for a leaf that differs.
    """
    old_leaves, old_tree = jax.tree_util.tree_flatten_with_path(old)
    new_leaves, new_tree = jax.tree_util.tree_flatten_with_path(new)
    if old_tree != new_tree:
        known, now = ({jax.tree_util.keystr(p) for p, _ in leaves} for leaves in (old_leaves, new_leaves))
        detail = "; ".join(
            [f"leaf {p} is missing" for p in sorted(known - now)] + [f"leaf {p} is new" for p in sorted(now - known)]
        )
        raise error(
            f"{where} changed the structure: {detail or f'{new_tree}, expected {old_tree}'}. "
            "The structure is fixed at the start, so create all leaves there."
        )
    return jax.tree_util.tree_unflatten(
        old_tree,
        [
            _conform_leaf(n, o, f"{where}{jax.tree_util.keystr(path)}", error)
            for (path, o), (_, n) in zip(old_leaves, new_leaves, strict=True)
        ],
    )


def _conform_leaf(new: Any, old: Any, where: str, error: type[Exception]) -> Any:
    try:
        new = to_strong_type(new)
    except TypeError as cause:
        raise error(f"{where}: {cause}") from None
    old_dtype = old.dtype if hasattr(old, "dtype") else to_strong_type(old).dtype
    shape = old.shape if hasattr(old, "shape") else ()
    if new.shape != shape:
        raise error(f"{where} has shape {new.shape}, expected {shape} as at the start.")
    if new.dtype == old_dtype:
        return new
    kinds = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.complexfloating)
    if any(jnp.issubdtype(new.dtype, k) and jnp.issubdtype(old_dtype, k) for k in kinds):
        return new.astype(old_dtype)
    raise error(f"{where} has dtype {new.dtype}, expected {old_dtype} as at the start.")
