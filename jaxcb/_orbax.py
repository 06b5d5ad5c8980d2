"""Orbax, one operation at a time.

Orbax (0.12) numbers its operations in one counter of the process, by which a save finds its own directories: a second
save or load beside it makes it look for those of the other one.
"""

import threading
from collections.abc import Callable
from typing import Any

EXCLUSIVE = threading.Lock()  # held from the beginning of an operation until all of it is on the disk


def save_async(path: str, tree: Any, **options: Any) -> Callable[[], None]:
    """Begins a save once no other operation is under way, and returns when the arrays may change.

    Returns:
        A function that waits until it is on the disk; it must be called, from any thread.
    """
    from orbax.checkpoint import v1 as ocp

    EXCLUSIVE.acquire()
    try:
        response = ocp.save_async(path, tree, **options)
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

    with EXCLUSIVE:
        ocp.save(path, tree, **options)


def load(path: str, abstract: Any, **options: Any) -> Any:
    """Loads once no other operation is under way.

    Args:
        path: what to load.
        abstract: what is wanted of it.
        **options: of Orbax's `pytree_options.loading`.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    for name, value in options.items():
        setattr(context.pytree_options.loading, name, value)
    with EXCLUSIVE, context:
        return ocp.load(path, abstract)
