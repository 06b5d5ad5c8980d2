"""Which executor runs a step best."""

from typing import Any

import jax

from jaxcb._check import one_of
from jaxcb._jaxprs import jaxpr_in


def choose(executor: str, jaxpr: Any) -> tuple[str, str]:
    """Returns "looped" or "stepped", and why.

    XLA's CPU backend runs convolution gradients 10 to 33 times slower inside any loop or branch; nothing
    else that was measured is slower there, and on accelerators nothing is.

    Args:
        executor: "auto", "looped" or "stepped".
        jaxpr: the traced step.
    """
    one_of("fit", "executor", executor, ("auto", "looped", "stepped"))
    if executor != "auto":
        return executor, "as asked"
    backend = jax.default_backend()
    if backend == "cpu" and _has_convolution(jaxpr):
        return "stepped", "the step has convolutions, whose gradients are slow in a compiled loop on the CPU"
    return "looped", f"{backend} runs this step well in a compiled loop"


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in equation.params.values():
            inner = value if isinstance(value, tuple | list) else (value,)
            if any(_has_convolution(v) for v in map(jaxpr_in, inner) if v is not None):
                return True
    return False
