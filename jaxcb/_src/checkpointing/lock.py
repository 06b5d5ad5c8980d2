"""A run's directory is of one run at a time: two would write over each other's logs and checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

_held: set[int] = set()  # descriptors of this process


@contextlib.contextmanager
def lock_run_dir(directory: Path) -> Iterator[None]:
    """Keeps a directory for one run; it is free again when that ends, however it ends.

    Nothing is kept on Windows, or on a file system without locks.

    Args:
        directory: it is made where it is not there.

    Raises:
        RuntimeError: while another run is under way in it.
        OSError: for a directory that cannot be used.
    """
    if jax.process_index() != 0:  # the processes of one run share its directory
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{directory} is in use: another run is under way in it. Wait for its end, or pass another run_dir."
            ) from None
        except OSError:
            pass
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """A forked process, such as a data loader's, may outlive a run that was killed, and must not keep its lock."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
