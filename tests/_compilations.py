"""Counts what JAX traces and compiles, by its own events."""

import collections
import contextlib
from collections.abc import Iterator

import jax

_KINDS = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}


@contextlib.contextmanager
def counting() -> Iterator[collections.Counter[str]]:
    """Gives a counter of traced, lowered and compiled functions within the block."""
    counts: collections.Counter[str] = collections.Counter()

    def note(event: str, _: float, **__: object) -> None:
        if event in _KINDS:
            counts[_KINDS[event]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
