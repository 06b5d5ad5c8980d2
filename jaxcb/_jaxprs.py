"""Jaxprs within jaxprs."""

from typing import Any


def jaxpr_in(value: Any) -> Any:
    """Returns a jaxpr, or that of a closed one; None for anything else.

    Known by their attributes: importing their classes (`jax.extend.core`) imports Pallas.
    """
    own = getattr(value, "jaxpr", value)
    return own if hasattr(own, "eqns") and hasattr(own, "invars") else None
