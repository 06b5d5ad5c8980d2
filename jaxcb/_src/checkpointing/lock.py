"""Lock of a run directory: two runs in one directory would overwrite each other's logs and checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxcb._src.utils.platforms import close_in_children, try_lock

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
        descriptor = try_lock(directory)
    except BlockingIOError:
        raise RuntimeError(
            f"{directory} is in use by another run. Wait for its end, or pass another run_dir."
        ) from None
    if descriptor is None:
        yield
        return
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


close_in_children(_descriptors)
