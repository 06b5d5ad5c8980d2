"""Which outputs of a program are the same bits however XLA compiles it, and which hold to rounding only."""

from typing import Any

import jax.numpy as jnp
from jax.extend import core

# On floats these round once or not at all, and XLA fuses none of them with another.
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
    """For each output whether it is a float that went through a multiplication or the like.

    Such a float may differ in its last bits between eager and compiled, because XLA fuses `a * b + c`. What
    is decided by comparing it is an integer or a boolean, and counts as exact: away from ties it is.
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
