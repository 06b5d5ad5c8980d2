"""Orbax, one operation at a time.

Orbax (0.12) numbers its operations in one counter of the process, by which a save finds its own directories: a second
save or load beside it makes it look for those of the other one.

All processes of a run take part in each operation, and begin it at the same place, with no step under way: Orbax (0.12)
compares the path on the devices when a save begins. What it does in the background is done without them.
"""

import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

EXCLUSIVE = threading.Lock()  # held from the beginning of an operation until all of it is on the disk


def save_async(path: str, tree: Any, **options: Any) -> Callable[[], None]:
    """Begins a save once no other operation is under way, and returns when the arrays may change.

    Returns:
        A function that waits until it is on the disk; it must be called, from any thread.
    """
    from orbax.checkpoint import v1 as ocp

    EXCLUSIVE.acquire()
    try:
        with _context():
            response = ocp.save_async(path, _of_all(tree), **options)
    except BaseException:
        EXCLUSIVE.release()
        raise

    def finish() -> None:
        try:
            response.result()
        finally:
            EXCLUSIVE.release()

    return finish


def save(path: str, tree: Any, **options: Any) -> None:
    """Saves once no other operation is under way, and waits until it is on the disk."""
    from orbax.checkpoint import v1 as ocp

    with EXCLUSIVE, _context():
        ocp.save(path, _of_all(tree), **options)


def load(path: str, abstract: Any, **options: Any) -> Any:
    """Loads once no other operation is under way.

    Args:
        path: what to load.
        abstract: what is wanted of it.
        **options: of Orbax's `pytree_options.loading`.
    """
    from orbax.checkpoint import v1 as ocp

    context = _context()
    for name, value in options.items():
        setattr(context.pytree_options.loading, name, value)
    with EXCLUSIVE, context:
        return ocp.load(path, abstract)


def _context() -> Any:
    """Orbax's settings. Processes that are named meet in JAX's distributed service; else it would be on the devices."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if jax.process_count() > 1:
        context.multiprocessing_options.active_processes = set(range(jax.process_count()))
    return context


def _of_all(tree: Any) -> Any:
    """A tree that several processes save together: of arrays that each has for itself, all alike, process 0's."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x, tree)
