"""Whether a run is being trained by a process of this machine."""

import os
import re
from pathlib import Path

_LOCKS = Path("/proc/locks")
_LINE = re.compile(r"^\d+: FLOCK +\w+ +WRITE +-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) ", re.MULTILINE)


def is_locked(directory: Path) -> bool:
    """Returns whether a run holds the lock of its directory.

    Only an attempt to take a lock shows whether it is held, and a run that begins in the same instant would then be
    refused. So on Linux the kernel's list of locks is read first, and only a directory whose inode is in it is tried:
    the devices in that list are not those of `stat` on every file system.
    """
    try:
        if _LOCKS.exists() and str(directory.stat().st_ino) not in _LINE.findall(_LOCKS.read_text()):
            return False
        return _refuses_shared_lock(directory)
    except OSError:
        return False


def _refuses_shared_lock(directory: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where runs take no lock
        return False
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
