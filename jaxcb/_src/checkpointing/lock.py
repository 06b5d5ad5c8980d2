"""Lock of a run directory: two runs in one directory would overwrite each other's logs and checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

_descriptors: set[int] = set()  # open descriptors of this process


@contextlib.contextmanager
def lock_run_dir(directory: Path) -> Iterator[None]:
    """Locks a directory for one run. The lock is released when the run ends, however it ends.

    There is no lock on Windows, or on a file system without locks.

    Args:
        directory: created if it is missing.

    Raises:
        RuntimeError: if another run holds the lock.
        OSError: for a directory that cannot be used.
    """
    if jax.process_index() != 0:  # the processes of a run share its directory
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot use the directory of the run: {error.strerror}. Pass another run_dir"
        raise type(error)(error.errno, reason, str(directory)) from None
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    _descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{directory} is in use by another run. Wait for its end, or pass another run_dir."
            ) from None
        except OSError:
            pass
        yield
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _release_after_fork() -> None:
    """Closes the lock in a forked process, such as a data loader's worker: it may outlive a run that was killed."""
    while _descriptors:
        os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_after_fork)
