"""What operating systems do differently. No other module asks which one it runs on.

jaxcb is run on Linux. Where Windows or macOS lack something, a function here does without it and says what is lost; the
tests take it away, and check what remains.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WINDOWS = sys.platform == "win32"
_PROC = Path("/proc")  # the kernel's account of processes and locks; Linux alone has it
_LOCK = re.compile(r"^\d+: FLOCK +\w+ +WRITE +-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) ", re.MULTILINE)
_MEMORY = 4 << 30  # bytes that a machine has at least, where it does not say how many


# Locks


def try_lock(directory: Path) -> int | None:
    """Locks a directory for this process.

    Returns:
        A descriptor, which holds the lock until it is closed; None on Windows and on file systems without locks, where
        nothing keeps another process out.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the directory cannot be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def is_locked(directory: Path) -> bool:
    """Returns whether a process holds the lock of a directory. Where there are no locks, none does.

    Only an attempt to take a lock shows whether it is held, and a run that begins in the same instant would then be
    refused. So on Linux the kernel's list of locks is read first, and only a directory whose inode is in it is tried:
    the devices in that list are not those of `stat` on every file system.
    """
    if fcntl is None:
        return False
    locks = _PROC / "locks"
    try:
        if locks.exists() and str(directory.stat().st_ino) not in _LOCK.findall(locks.read_text()):
            return False
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def only_writer(file: int) -> Iterator[None]:
    """Keeps other writers of an open file waiting. Without locks, appending in one piece has to be enough."""
    if fcntl is None:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


# Files


def sync_directory(path: Path) -> None:
    """Syncs the entries of a directory to disk. Windows cannot, so a loss of power there may undo the last renames."""
    if WINDOWS:  # it cannot open directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(path: Path, target: Path) -> None:
    """Makes a symbolic link, or a copy where the user may not make links, as on Windows by default."""
    try:
        target.symlink_to(path.absolute(), target_is_directory=path.is_dir())
    except (NotImplementedError, OSError):
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy2(path, target)


def cache_directory() -> Path:
    """Returns the folder in which programs of this user keep what can be made again."""
    if WINDOWS:
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute()


# Processes and memory


def this_process() -> str:
    """Returns a text that no other process has, on any machine; empty where that is not known, as outside of Linux."""
    return _identity(os.getpid())


def has_ended(process: str) -> bool:
    """Returns whether the process with this text was of this machine, and has ended. False where that is not known."""
    here, parts = this_process().split(" "), process.split(" ")
    if len(here) != 4 or len(parts) != 4 or here[:2] != parts[:2] or not parts[2].isdecimal():
        return False  # of another machine or container
    try:
        os.kill(int(parts[2]), 0)  # Windows would end the process, but has no text of it
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        return False
    now = _identity(int(parts[2]))
    return now not in ("", process)  # another process has its id, or it has ended and no one has waited for it


def _identity(pid: int) -> str:
    """Returns the machine's boot, the namespace of process ids, and the id and start time of a process."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = (_PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *_, started = status.rpartition(") ")[2].split()[:20]
        # a killed process that no one has waited for still has an entry
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')} {pid} {'' if state in 'ZX' else started}"
    except (OSError, ValueError):
        return ""


def memory() -> int | None:
    """Returns the bytes of the machine's memory; None where it does not say, as on Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def least_memory() -> int:
    """Returns the bytes of the machine's memory, or a number that it has at least."""
    return memory() or _MEMORY


# Forks


def close_in_children(descriptors: set[int]) -> None:
    """Closes descriptors in each forked process, such as a data loader's worker: it may outlive a run that was killed.

    On Windows there are no forks.
    """

    def close() -> None:
        while descriptors:
            os.close(descriptors.pop())

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
