"""Comparison of the results of two ways of running a callback, leaf by leaf and row by row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# On floats these round at most once, and XLA fuses none of them with another operation.
# fmt: off
_EXACT = frozenset({
    "abs", "add", "and", "argmax", "argmin", "broadcast_in_dim", "bitcast_convert_type", "ceil", "clamp",
    "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice", "eq", "expand_dims",
    "floor", "gather", "ge", "gt", "iota", "is_finite", "le", "lt", "max", "min", "ne", "neg", "nextafter", "not",
    "or", "pad", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reshape", "rev", "round", "scatter",
    "select_and_gather_add", "select_n", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "sub",
    "transpose", "xor",
})
# fmt: on


def rounded_outputs(closed: core.ClosedJaxpr) -> list[bool]:
    """Returns for each output whether it is a float that a rounding operation such as a multiplication affects.

    Such a float may differ in its last bits between eager and compiled code, because XLA fuses `a * b + c`. The
    result of comparing it is an integer or a boolean, and counts as exact: except at ties, it is.
    """
    return _rounded(closed.jaxpr, [False] * len(closed.jaxpr.invars))


def _rounded(jaxpr: core.Jaxpr, given: list[bool]) -> list[bool]:
    rounded = {id(v): r for v, r in zip(jaxpr.invars, given, strict=True)}
    for equation in jaxpr.eqns:
        inputs = [rounded.get(id(v), False) for v in equation.invars]
        for var, result in zip(equation.outvars, _equation(equation, inputs), strict=True):
            rounded[id(var)] = result and _inexact(var)
    return [rounded.get(id(v), False) for v in jaxpr.outvars]


def _equation(equation: Any, inputs: list[bool]) -> list[bool]:
    inner = equation.params.get("jaxpr")
    inner = getattr(inner, "jaxpr", inner)
    if equation.primitive.name in ("jit", "pjit", "closed_call", "remat", "checkpoint"):
        return _rounded(inner, inputs)
    result = any(inputs) or equation.primitive.name not in _EXACT
    return [result] * len(equation.outvars)


def _inexact(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def to_numpy(leaf: Any) -> np.ndarray:
    """Returns a leaf as a numpy array, and a PRNG key as its data."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(tree: Any) -> Any:
    """Returns a tree with its leaves as numpy arrays, except PRNG keys, which remain JAX arrays."""
    return jax.tree.map(lambda x: x if is_key(x) else np.array(x), tree)


def stack(trees: list[Any]) -> Any:
    """Stacks a list of trees along a new leading time axis."""
    return jax.tree.map(lambda *leaves: np.stack([to_numpy(x) for x in leaves]), *trees)


def _equal(a: np.ndarray, b: np.ndarray, rtol: float, flush: bool) -> np.ndarray:
    """Returns elementwise whether values are bitwise equal (any NaN equals any NaN), or equal within `rtol`."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return a == b
    if flush:
        a, b = (np.where(np.abs(x) < jnp.finfo(x.dtype).tiny, np.zeros_like(x), x) for x in (a, b))
    with np.errstate(all="ignore"):
        nan = np.isnan(a) & np.isnan(b)
        if rtol:
            wide_a, wide_b = a.astype(np.complex128), b.astype(np.complex128)
            return nan | (a == b) | (np.abs(wide_a - wide_b) <= rtol * np.maximum(1.0, np.abs(wide_b)))
        return nan | ((a == b) & (np.signbit(np.real(a)) == np.signbit(np.real(b))))


def difference(
    a: Any, b: Any, *, labels: tuple[str, str], rtol: Any = 0.0, flush: bool = False, moments: bool = True
) -> str | None:
    """Describes where two trees first differ, or returns None.

    Args:
        a: a tree whose top level is a dictionary by hook.
        b: the other tree.
        labels: the names of the two in the description.
        rtol: tolerance of inexact leaves, one number or one per leaf; 0 for bitwise equality.
        flush: whether denormal numbers and both zeros are equal.
        moments: whether the leaves have a leading time axis.
    """
    leaves_a, tree_a = jax.tree_util.tree_flatten_with_path(a)
    leaves_b, tree_b = jax.tree_util.tree_flatten_with_path(b)
    if tree_a != tree_b:
        return f"the structure differs: {tree_a} ({labels[0]}), {tree_b} ({labels[1]})"
    rtols = [rtol] * len(leaves_a) if isinstance(rtol, float) else rtol
    first: tuple[int, str] | None = None
    for (path, x), (_, y), tolerance in zip(leaves_a, leaves_b, rtols, strict=True):
        x, y = to_numpy(x), to_numpy(y)
        where = leaf_name(path)
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            return f"{where} is {x.dtype}{list(x.shape)} ({labels[0]}), {y.dtype}{list(y.shape)} ({labels[1]})"
        same = _equal(x, y, tolerance, flush)
        if same.all():
            continue
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        row = at[0] if moments else 0
        if first is None or row < first[0]:
            when = f" at row {row}" if moments else ""
            first = row, f"{where}{when} is {x[at]!r} ({labels[0]}), {y[at]!r} ({labels[1]})"
    return first[1] if first else None


def leaf_name(path: Any) -> str:
    """Formats a path: `on_epoch_end, state.best`."""
    words, rest = [], list(path)
    while rest and isinstance(rest[0], jax.tree_util.DictKey) and len(words) < 2:
        words.append(str(rest.pop(0).key))
    return ", ".join(words) + jax.tree_util.keystr(tuple(rest))
