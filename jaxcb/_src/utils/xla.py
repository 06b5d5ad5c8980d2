"""XLA compiler options, and access to nested jaxprs."""

import functools
from typing import Any

import jax

# Callbacks compile to many small kernels. The CPU backend of jax 0.10 has two emitters for them: one compiles in half
# of the time, the kernels of the other are faster for large arrays. Later versions only have the second one.
_CPU = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def fast_compile_options(platform: str) -> dict[str, Any]:
    """Returns compiler options that reduce compile time, for programs that contain no training steps.

    Args:
        platform: platform of the devices.

    Returns:
        The options; empty if this version of XLA does not support them.
    """
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_CPU)


def jaxpr_in(value: Any) -> Any:
    """Returns a jaxpr, or that of a closed jaxpr; None for anything else.

    They are recognized by attributes, since importing their classes (`jax.extend.core`) imports Pallas.
    """
    jaxpr = getattr(value, "jaxpr", value)
    return jaxpr if hasattr(jaxpr, "eqns") and hasattr(jaxpr, "invars") else None
