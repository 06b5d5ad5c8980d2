"""Several processes, on one machine or on many: JAX's own, begun with one call."""

from jaxcb._src.distributed.initialize import initialize

__all__ = [
    "initialize",
]
