"""Multi-process runs, on one machine or on many, on top of `jax.distributed`."""

from jaxcb._src.distributed.initialize import initialize

__all__ = [
    "initialize",
]
