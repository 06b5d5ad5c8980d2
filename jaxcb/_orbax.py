"""Orbax, one operation at a time, in the order in which they were asked for.

Orbax (0.12) numbers its operations in one counter of the process, by which a save finds its own directories: a second
save or load beside it makes it look for those of the other one. All processes of a run take part in each operation,
and wait in it for each other: in another order each would wait for an operation that the other has not begun.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


class Turns:
    """A lock that is held in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given = self._next = 0

    def take(self) -> int:
        """Asks for the next turn, which must then be waited for and ended."""
        with self._changed:
            self._given += 1
            return self._given - 1

    def wait(self, turn: int) -> None:
        """Returns when it is that turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == turn)

    def end(self) -> None:
        """Ends the turn that is under way."""
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    @contextlib.contextmanager
    def during(self, turn: int | None = None) -> Iterator[None]:
        """Waits for a turn, a new one where none is given, and ends it."""
        self.wait(self.take() if turn is None else turn)
        try:
            yield
        finally:
            self.end()


TURNS = Turns()  # from the beginning of an operation until all of it is on the disk


def save_async(path: str, tree: Any, **options: Any) -> Callable[[], None]:
    """Begins a save once no other operation is under way, and returns when the arrays may change.

    Returns:
        A function that waits until it is on the disk; it must be called, from any thread.
    """
    from orbax.checkpoint import v1 as ocp

    TURNS.wait(TURNS.take())
    try:
        with _context():
            response = ocp.save_async(path, _of_all(tree), **options)
    except BaseException:
        TURNS.end()
        raise

    def finish() -> None:
        try:
            response.result()
        finally:
            TURNS.end()

    return finish


def save(path: str, tree: Any, *, turn: int | None = None, **options: Any) -> None:
    """Saves once no other operation is under way, and waits until it is on the disk.

    Args:
        path: where.
        tree: what.
        turn: of `TURNS`, taken before by the one who has a thread of its own do it.
        **options: of Orbax's `save`.
    """
    with TURNS.during(turn):
        from orbax.checkpoint import v1 as ocp

        with _context():
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
    with TURNS.during(), context:
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
