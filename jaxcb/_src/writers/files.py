"""Files that grow line by line. All appending to files goes through here."""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from jaxcb._src.storage.ownership import RunRecord, Written


def check_writable(directory: Path, what: str) -> None:
    """Raises an error where `directory` cannot be made or written; leaves nothing there.

    Args:
        directory: it need not exist yet.
        what: is to be written there, for the error.

    Raises:
        OSError: of the kind that writing would raise.
    """
    try:
        there = next(p for p in (directory, *directory.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {what}: {error.strerror}", str(directory)) from None


_WAITING = 1 << 20  # bytes that wait for a flush at most


class AppendFile:
    """A text file (UTF-8) that is written at its end; nothing is touched before the first write.

    Whatever others append meanwhile stays: each flush goes to where the file ends then, under a lock that all runs
    take.

    Args:
        path: the file; directories are made.
        what: it is, for errors.
        append: whether what is there stays; else the first write replaces it.
        record: of the run; it notes what is written.
        key: the file's name in the record.
        shared: whether others may write to it, too: then its place is what the run itself has written, and only that
            is cut; else its place is its lines.

    Attributes:
        head: the text that an empty file begins with.
        resumed: whether it goes on from where it stood in a checkpoint.

    Raises:
        OSError: for a path that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        what: str = "file",
        *,
        append: bool = False,
        record: RunRecord | None = None,
        key: str = "",
        shared: bool = False,
    ) -> None:
        self.path, self._what = path, what
        self.head, self.resumed = "", False
        self._append, self._shared = append, shared
        self._record, self._key = record or RunRecord(), key or path.as_posix()
        self._lines: int | None = None  # of the file, what waits included; None until somebody asks
        self._end = 0  # behind what the run has written to a shared file
        self._waiting: list[bytes] = []
        self._bytes = 0  # that wait
        self._file: FileIO | None = None
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            existed = path.exists()
            with path.open("ab"):
                pass
            if not existed:
                path.unlink()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Has an error of the system say what could not be written."""
        try:
            yield
        except OSError as error:
            raise type(error)(error.errno, f"cannot write the {self._what}: {error.strerror}", str(self.path)) from None

    @property
    def size(self) -> int:
        """Bytes that stand before the next write."""
        there = self.path.stat().st_size if self._append and self.path.exists() else 0
        return there + self._bytes + (len(self.head.encode()) if self._bytes and not there else 0)

    def write(self, text: str) -> None:
        """Writes at the end; `flush` brings it to the file."""
        data = text.encode()
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > _WAITING:
            self.flush()

    def flush(self) -> None:
        """Brings what was written to the file, where other programs see it."""
        if not self._waiting:
            return
        if not self._shared:
            self._record.make(self._key)
        with self._named(), self._locked() as file:
            if not self._append:
                os.ftruncate(file, 0)
                self._append = True  # from now on what is there is this run's
            start, data = os.lseek(file, 0, os.SEEK_END), b"".join(self._waiting)
            if not start:
                data = self.head.encode() + data
            elif _read(file, start - 1, 1) != b"\n":  # of a process that was killed in the middle of a line
                data = b"\n" + data
            if self._shared:
                self._record.write(self._key, start, data)
            try:
                _write(file, data)
            except OSError:
                with contextlib.suppress(OSError):  # no half of a line stays
                    if os.fstat(file).st_size < start + len(data):
                        os.ftruncate(file, start)
                raise
        self._end = start + len(data)
        if self._lines is not None:
            self._lines += data.count(b"\n")
        self._waiting, self._bytes = [], 0

    def position(self) -> Any:
        """Makes durable what was written, and returns where the file stands, as JSON.

        That is how many lines it has, one cut off counts as well; of a shared file, where what the run itself has
        written ends.
        """
        self.flush()
        if self._file is not None:
            with self._named():
                os.fsync(self._file.fileno())
        if self._shared:
            self._record.sync()
            return {"end": self._end}
        if self._lines is None:
            self._lines = len(_ends(self.path)) - 1 if self.size else 0
        return self._lines

    def restore(self, position: Any) -> None:
        """Goes back to where the file stood, and goes on from there.

        Args:
            position: from `position`.

        Raises:
            ValueError: for a file that is not the one that was written, and for a shared one in which what the run
                wrote later cannot be told from what others wrote.
        """
        if isinstance(position, dict) and type(position.get("end")) is int:
            self._shared = True
            try:
                self._cut_own(position["end"])
            finally:
                self.close()
        elif type(position) is int and position >= 0:
            self._truncate(position)
        else:
            raise ValueError(f"a checkpoint has {position!r} for the place in {self.path}, which is none.")
        self._append = self.resumed = True

    def _truncate(self, lines: int) -> None:
        """Cuts the file back to so many lines."""
        self.close()
        ends = _ends(self.path)
        if len(ends) - 1 < lines:
            raise ValueError(
                f"{self.path} has {len(ends) - 1} lines, but {lines} were written when its place was noted. It was "
                "changed since; put it back, or begin a new file."
            )
        if len(ends) - 1 > lines:
            if self._shared:
                raise ValueError(
                    f"{self.path} has {len(ends) - 1} lines, and {lines} when the run was saved, by a version that did "
                    "not note whose lines are whose: those behind may be another run's. Delete what this run wrote "
                    f"behind line {lines}, and move the rest elsewhere, or give another filename."
                )
            with self.path.open("r+b") as file:
                file.truncate(ends[lines])
                os.fsync(file.fileno())
        self._lines = lines

    def _cut_own(self, end: int) -> None:
        """Removes what the run wrote behind a place, where nothing of others stands behind it."""
        self._end = end
        writes = self._record.writes(self._key)
        before, later = [own for own in writes if own.start < end], [own for own in writes if own.start >= end]
        if not self.path.exists():
            standing, whole, joined, torn = [], not end, True, False
        else:
            with self._named(), self._locked() as file:
                size = os.fstat(file).st_size
                whole = all(_stands(file, own) for own in before) and (before or not end)
                standing = [own for own in later if _stands(file, own)]
                places = [own.start for own in standing] + [size]
                joined = places[1:] == [own.end for own in standing]
                torn = any(own.start < size < own.end for own in later)
                if whole and joined and not torn and standing:
                    os.ftruncate(file, standing[0].start)
                    os.fsync(file)
        if not whole:
            raise ValueError(
                f"{self.path} does not hold what this run has written to it up to its checkpoint. It was changed "
                "since, or the record of what was written (.jaxcb in the run's directory) is not there. Put it back, "
                "or give another filename."
            )
        if (standing and not joined) or torn:
            raise ValueError(
                f"{self.path} holds lines that this run wrote after its checkpoint, and lines of others among or "
                f"behind them, from byte {standing[0].start if standing else end} on. To cut them might lose lines of "
                "another run, and to leave them would have them twice. Delete this run's lines there by hand, or give "
                "another filename."
            )
        self._record.cut(self._key, end)

    def close(self) -> None:
        """Makes everything durable; a later write goes on."""
        try:
            self.flush()
            if self._file is not None:
                with self._named():
                    os.fsync(self._file.fileno())
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file's descriptor, while no other run writes to it."""
        if self._file is None:
            self._file = FileIO(self.path, "a+")  # what is written goes to the end, wherever that is by then
        with _lock(self._file.fileno()):
            yield self._file.fileno()


@contextlib.contextmanager
def _lock(file: int) -> Iterator[None]:
    """Keeps a file for one writer; where the system has no such locks, appending in one piece has to do."""
    try:
        import fcntl
    except ImportError:
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


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _read(file: int, start: int, size: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    return os.read(file, size)


def _stands(file: int, own: Written) -> bool:
    """Whether what the run has written stands where it was written."""
    return own.end <= os.fstat(file).st_size and zlib.crc32(_read(file, own.start, own.size)) == own.checksum


def _ends(path: Path) -> list[int]:
    """Where each line of a file ends, in bytes, after a 0; nothing but that where there is no file."""
    ends = [0]
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                ends.append(ends[-1] + len(line))
    return ends
