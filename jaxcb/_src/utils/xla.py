"""Jaxprs within jaxprs."""

import functools
from typing import Any

import jax

# What callbacks decide is many small kernels. The CPU backend of jax 0.10 has two emitters for them: one that compiles
# in half of the time, and one whose kernels go over large arrays faster. Later versions have the second one alone.
_CPU = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def fast_compile_options(platform: str) -> dict[str, Any]:
    """Returns the compiler options for programs that are not steps, as far as this version of XLA knows them.

    Args:
        platform: of the devices that the program is for.
    """
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_CPU)


def jaxpr_in(value: Any) -> Any:
    """Returns a jaxpr, or that of a closed one; None for anything else.

    Known by their attributes: importing their classes (`jax.extend.core`) imports Pallas.
    """
    own = getattr(value, "jaxpr", value)
    return own if hasattr(own, "eqns") and hasattr(own, "invars") else None
