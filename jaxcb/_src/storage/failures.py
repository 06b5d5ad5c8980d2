"""What a run does when a disk does not take what it writes."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

_REPORTED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EIO,
)
_ROOM = 1 << 16  # bytes that any checkpoint needs


class WriteFailures:
    """Raises the errors of writing, or warns of each file and lets the run continue.

    Args:
        on_error: as in `Checkpointing`.
        warn: shows a warning.

    Example:
        >>> failures = WriteFailures("warn", print)
        >>> for _ in range(2):
        ...     with failures.handled(Path("log.csv"), "Its rows wait in memory."):
        ...         raise OSError(28, "No space left on device", "log.csv")
        log.csv: No space left on device. Its rows wait in memory. The run continues.
    """

    def __init__(
        self, on_error: Literal["raise", "warn"] = "raise", warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._raises, self._warn = on_error == "raise", warn
        self._failing: set[Path] = set()

    @contextlib.contextmanager
    def handled(self, path: Path, consequence: str) -> Iterator[None]:
        """Handles an `OSError` of a write.

        Args:
            path: what is written. It is named once, until a write to it succeeds.
            consequence: a sentence for the warning: what happens to what could not be written.
        """
        try:
            yield
        except OSError as error:
            if self._raises:
                raise
            if path not in self._failing:
                self._failing.add(path)
                self._warn(f"{path}: {error.strerror or error}. {consequence} The run continues.")
        else:
            self._failing.discard(path)

    def report_loss(self, text: str) -> None:
        """Warns that something could not be written until the end of the run."""
        if not self._raises:
            self._warn(text)


@contextlib.contextmanager
def named(what: str, path: Path) -> Iterator[None]:
    """Adds the description of a file to an `OSError`."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {what}: {error.strerror or error}", str(path)) from None


def system_error(error: Exception) -> OSError | None:
    """Returns the error of the system behind an error of a library; None if there is none.

    TensorStore and XLA include its text in a longer message.
    """
    if isinstance(error, OSError):
        return error if error.errno is not None else OSError(errno.EIO, str(error))
    text = str(error)
    number = next((number for number in _REPORTED if os.strerror(number) in text), None)
    return None if number is None else OSError(number, os.strerror(number))


def check_writable(directory: Path, what: str) -> None:
    """Checks that `directory` can be made and written; leaves nothing there.

    Args:
        directory: the directory; it need not exist yet.
        what: what will be written there, for the error.

    Raises:
        OSError: of the kind that writing would raise.
    """
    with named(what, directory):
        there = next(p for p in (directory, *directory.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def check_room(directory: Path) -> None:
    """Checks that a directory takes a small file.

    Orbax writes with many threads. If the disk is full, some of them print tracebacks, and some wait at the end of the
    process for futures that never complete.

    Raises:
        OSError: if the directory is missing, read-only, or on a full disk.
    """
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        left = _ROOM
        while left:
            left -= os.write(file.fileno(), bytes(left))
        os.fsync(file.fileno())


def append_whole(file: int, start: int, data: bytes) -> None:
    """Appends to an open file all of the data or nothing, so that no partial line or event is left.

    Args:
        file: descriptor.
        start: size of the file.
        data: what to write.

    Raises:
        OSError: if it cannot be written; the file then ends at `start`, as far as the system allows.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            if os.fstat(file).st_size < start + len(data):
                os.ftruncate(file, start)
            os.lseek(file, start, os.SEEK_SET)  # the next write must not leave a hole
        raise


def check_in_place(file: int, path: Path) -> None:
    """Checks that an open file is still the one at its path; otherwise what is written to it is lost.

    Raises:
        FileNotFoundError: if it was removed, moved or replaced.
    """
    try:
        if os.path.samestat(os.fstat(file), path.stat()):
            return
        reason = "it was replaced by another file"
    except (FileNotFoundError, NotADirectoryError):
        reason = "it was removed or moved"
    raise FileNotFoundError(errno.ENOENT, f"{reason} while the run was writing it", str(path))


def write_elsewhere(name: str, text: str, directories: Iterable[Path] = ()) -> Path | None:
    """Writes a text that has no place of its own any more, and returns its path; None if no directory takes it.

    Args:
        name: of the file.
        text: its content.
        directories: where to try after the system's directory for temporary files.
    """
    for directory in (Path(tempfile.gettempdir()), *directories):
        path = directory / name
        with contextlib.suppress(OSError):
            with path.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return path
    return None
