"""XLA compiler options, and access to nested jaxprs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# Callbacks compile to many small kernels. Until jax 0.10, the CPU backend has two emitters for them: one compiles in
# half of the time, the kernels of the other are faster for large arrays. Later versions only have the second one.
_CPU = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


def fast_compile_options(platform: str) -> dict[str, Any]:
    """Returns compiler options that reduce compile time, for programs that contain no training steps.

    Args:
        platform: platform of the devices.

    Returns:
        The options; empty if this version of XLA does not have them.
    """
    return dict(_CPU) if platform == "cpu" else {}


def stored(tree: Any) -> Any:
    """Returns a tree of arrays, so that XLA for NVIDIA GPUs stores each one as it is, before anything reads it.

    XLA may otherwise compute an array in another order of its axes, and turn it around in the kernel that reads it. If
    that kernel also updates an array, the update is not in place: the array is copied. Values do not change, and
    programs for other platforms get nothing.

    Args:
        tree: the arrays; each has a border of its own, so that they need not exist at the same time.
    """

    def with_borders(tree: Any) -> Any:
        return jax.tree.map(jax.lax.optimization_barrier, tree)

    return jax.lax.platform_dependent(tree, cuda=with_borders, default=lambda tree: tree)


def equal_outputs(jaxpr: Any) -> tuple[int, ...]:
    """Returns for each output of a jaxpr the index of the first output that is computed in the same way.

    Two outputs are the same if they are one variable, or results of equal operations on the same inputs. Nested jaxprs
    compare by identity: JAX traces a function once for arguments of the same shapes.
    """
    numbers: dict[Any, int] = {}  # what was computed -> its number
    known: dict[int, int] = {}  # id of a variable -> the number of its value

    def number_of(key: Any) -> int:
        return numbers.setdefault(key, len(numbers))

    def value(atom: Any) -> int:
        if hasattr(atom, "val"):  # a constant of the program
            constant = np.asarray(atom.val)
            return number_of((str(atom.aval), constant.dtype, constant.tobytes()))
        return known.setdefault(id(atom), number_of(atom))

    for equation in jaxpr.eqns:
        key: Any = object()  # equal to nothing else
        if not equation.effects:
            parameters = ((k, v.hex() if isinstance(v, float) else v) for k, v in sorted(equation.params.items()))
            key = (equation.primitive, tuple(parameters), tuple(map(value, equation.invars)), equation.ctx)
        for place, out in enumerate(equation.outvars):
            try:
                known[id(out)] = number_of((key, place))
            except TypeError:  # a parameter without a hash
                known[id(out)] = number_of(out)
    first: dict[int, int] = {}
    return tuple(first.setdefault(value(out), index) for index, out in enumerate(jaxpr.outvars))


def outputs_always_false(jaxpr: Any, known: Mapping[int, bool]) -> tuple[bool, ...]:
    """Returns for each output of a jaxpr whether it is false whatever the inputs are.

    Follows booleans through `and`, `or`, `not` and operations that keep values; anything else counts as unknown.

    Args:
        jaxpr: the jaxpr.
        known: inputs that have the same value in every call, by their index.
    """
    return tuple(value is False for value in _known_booleans(jaxpr, known))


def _known_booleans(jaxpr: Any, known: Mapping[int, bool]) -> list[bool | None]:
    """Returns the outputs of a jaxpr that are known booleans; None for the others."""
    values: dict[Any, bool | None] = {var: known.get(index) for index, var in enumerate(jaxpr.invars)}

    def value(atom: Any) -> bool | None:
        if not hasattr(atom, "val"):
            return values.get(atom)
        constant = np.asarray(atom.val)
        same = constant.dtype == np.bool_ and constant.size and (constant == constant.flat[0]).all()
        return bool(constant.flat[0]) if same else None

    for equation in jaxpr.eqns:
        given, found = [value(atom) for atom in equation.invars], [None] * len(equation.outvars)
        match equation.primitive.name:
            case "and":
                found = [False if False in given else True if given == [True, True] else None]
            case "or":
                found = [True if True in given else False if given == [False, False] else None]
            case "not":
                found = [None if given[0] is None else not given[0]]
            case "convert_element_type" | "broadcast_in_dim" | "reshape" | "squeeze" | "copy":
                found = [given[0] if equation.outvars[0].aval.dtype == np.bool_ else None]
            case "jit" | "pjit" if (inner := jaxpr_in(equation.params["jaxpr"])) is not None:
                found = _known_booleans(inner, {i: x for i, x in enumerate(given) if x is not None})
        values |= zip(equation.outvars, found, strict=True)
    return [value(atom) for atom in jaxpr.outvars]


def jaxpr_in(value: Any) -> Any:
    """Returns a jaxpr, or that of a closed jaxpr; None for anything else.

    They are recognized by attributes, since importing their classes (`jax.extend.core`) imports Pallas.
    """
    jaxpr = getattr(value, "jaxpr", value)
    return jaxpr if hasattr(jaxpr, "eqns") and hasattr(jaxpr, "invars") else None
