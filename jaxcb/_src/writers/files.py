"""Files that are written at their end. All appending to files goes through this module."""

import contextlib
import errno
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from jaxcb._src.storage.failures import WriteFailures, append_whole, check_in_place, named
from jaxcb._src.storage.ownership import Prefix, RunRecord, Written
from jaxcb._src.utils.platforms import only_writer

_NUMBERS = ("lines", "bytes", "checksum", "rewritten")
_WAITING = 1 << 20  # maximum number of bytes that wait for a flush


class AppendFile:
    """A text file (UTF-8) that is written at its end; it is not changed before the first write.

    Text that others append in the meantime is kept: each flush appends at the current end of the file, under a lock
    that all runs take.

    Args:
        path: the file; its directories are made.
        what: description of the file, for errors.
        append: whether existing content is kept; otherwise the first write replaces it.
        record: the record of the run, in which writes to shared files are registered.
        key: the file's name in the record.
        shared: whether others may also write to it. Then its position is the end of what the run itself has written,
            and only that is ever removed; otherwise its position is its number of lines.
        failures: what to do when the file cannot be written.

    Attributes:
        head: the text that an empty file begins with.
        resumed: whether it continues from its position in a checkpoint.
        inert: whether nothing will be written, since the run is complete.
        is_whole: whether all text was on the disk when it was last closed.

    Raises:
        OSError: if the path cannot be written.
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
        failures: WriteFailures | None = None,
    ) -> None:
        self.path, self._what, self._failures = path, what, failures or WriteFailures()
        self.head, self.resumed, self.inert, self.is_whole = "", False, False, True
        self._append, self._shared = append, shared
        self._record, self._key = record or RunRecord(), key or path.as_posix()
        self._lines: int | None = None  # lines of the file and the waiting text; None until they are counted
        self._durable = Prefix()
        self._end = 0  # end of what the run has written to a shared file, in bytes
        self._waiting: list[bytes] = []
        self._bytes = 0  # size of the waiting text
        self._file: FileIO | None = None
        self._made = False  # whether the file exists because the run has written it
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would block, a device has no end
                raise OSError(errno.EINVAL, "it is a device or a pipe, expected a file", str(path))
            # a file that is made here and removed again might by then have lines of another run
            with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
                pass

    def only_compare(self) -> None:
        """Notes that nothing will be written, since the run is complete."""
        self.inert = True

    def begin_with(self, head: str) -> None:
        """Sets the text that an empty file begins with, before the first write."""
        self.head = head

    def _named(self) -> contextlib.AbstractContextManager[None]:
        """Adds the description of the file to an `OSError`."""
        return named(f"the {self._what}", self.path)

    def _handled(self) -> contextlib.AbstractContextManager[None]:
        """Raises an `OSError` of a write, or warns of it."""
        kept = "What is written to it waits in memory and in the checkpoints, and later writes try again."
        return self._failures.handled(self.path, kept)

    @property
    def begun(self) -> bool:
        """Whether there is content in the file that is kept."""
        return self._append and self.path.exists() and self.path.stat().st_size > 0

    @property
    def size(self) -> int:
        """Size of the content before the next write, in bytes."""
        there = self.path.stat().st_size if self._append and self.path.exists() else 0
        return there + self._bytes + (len(self.head.encode()) if self._bytes and not there else 0)

    def write(self, text: str) -> None:
        """Appends text; it reaches the file with the next `flush`."""
        data = text.encode()
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > _WAITING:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting text to the file, where other programs see it. If that fails, the text still waits."""
        if self._waiting:
            with self._handled():
                self._flush()

    def _flush(self) -> None:
        """Writes the waiting text.

        The order of the steps makes it safe for the process to be killed between any two of them: the record of what
        the run is about to write is written first, so that a resumed run can find the text and remove it. A write that
        fails is undone, so that no partial line is left before lines of others.
        """
        if not self._waiting:
            return
        if not self._shared:
            self._record.make(self._key)
        with self._named(), self._locked() as file:
            check_in_place(file, self.path)
            if not self._append:
                os.ftruncate(file, 0)
                self._append = True  # from now on the content is this run's own
            start, data = os.lseek(file, 0, os.SEEK_END), b"".join(self._waiting)
            if not start:
                data = self.head.encode() + data
            elif _read(file, start - 1, 1) != b"\n":  # a process was killed while it wrote a line
                data = b"\n" + data
            if self._shared:
                self._record.write(self._key, start, data)
            append_whole(file, start, data)
        self._end = start + len(data)
        if self._lines is not None:
            self._lines += data.count(b"\n")
        self._waiting, self._bytes = [], 0

    def position(self) -> Any:
        """Makes the content durable, and returns the position in the file, as JSON.

        This is the number of lines, including one that is cut off, with size and checksum; for a shared file, the end
        of what the run itself has written. Text that the file does not take is part of the position.
        """
        with self._handled():
            self._sync()
            with self._named():
                if self._shared:
                    self._record.sync()
                else:
                    self._measure()
        waiting = {"waiting": b"".join(self._waiting).decode()} if self._waiting else {}
        if self._shared:
            return {"end": self._end, **waiting}
        sizes = {"bytes": self._durable.size, "checksum": self._durable.checksum}
        return {"lines": self._lines or 0, **sizes, "rewritten": self._record.rewritten(self._key), **waiting}

    def _sync(self) -> None:
        """Returns when all text is on the disk."""
        self._flush()
        if self._file is not None:
            with self._named():
                check_in_place(self._file.fileno(), self.path)
                os.fsync(self._file.fileno())

    def _measure(self) -> None:
        """Counts lines, and extends the checksum of what is durable."""
        if self._lines is None:
            self._lines = len(_ends(self.path)) - 1 if self.size else 0
        if self._lines:
            self._durable.extend(self.path, self.path.stat().st_size)
        else:
            self._durable = Prefix()

    def restore(self, position: Any, *, cut: bool = True) -> None:
        """Truncates the file to a position, from which later writes continue.

        Args:
            position: a result of `position`, or a number of lines, which earlier versions recorded.
            cut: whether later text is removed; False if nothing will be written.

        Raises:
            ValueError: if the file is not the one that was written, or if it is shared and the run's later writes
                cannot be told apart from those of others.
        """
        if isinstance(position, dict) and type(position.get("end")) is int:
            self._shared = True
            try:
                self._cut_own(position["end"], cut=cut)
            finally:
                self.close()
        elif type(position) is int and position >= 0:
            self._truncate(position, cut=cut)
        elif isinstance(position, dict) and all(type(position.get(name)) is int for name in _NUMBERS):
            if position["rewritten"] == self._record.rewritten(self._key):
                self._check(Prefix(position["bytes"], position["checksum"]))
            self._truncate(position["lines"], cut=cut)
        else:
            raise ValueError(f"the checkpoint has the position {position!r} for {self.path}, which is not valid.")
        self._append = self.resumed = True
        self._made = self.path.exists()
        if isinstance(position, dict) and position.get("waiting") and not self.inert:
            self._waiting = [position["waiting"].encode()]  # written with the first flush, after the head is known
            self._bytes = len(self._waiting[0])

    def _check(self, known: Prefix) -> None:
        """Compares the file with what was durable at the checkpoint."""
        self.close()
        difference = known.difference(self.path) if known.size else None
        if difference is not None:
            raise ValueError(
                f"{self.path} {difference} at the checkpoint. It was changed since; put it back from a backup, or "
                "give another filename. To start again, pass checkpointing=jc.Checkpointing(overwrite=True)."
            )

    def _truncate(self, lines: int, *, cut: bool) -> None:
        """Truncates the file to a number of lines."""
        self.close()
        ends = _ends(self.path)
        if len(ends) - 1 < lines:
            raise ValueError(
                f"{self.path} has {len(ends) - 1} lines, but had {lines} at the checkpoint. It was "
                "changed since; put it back, or use a new file."
            )
        if len(ends) - 1 > lines and cut:
            if self._shared:
                raise ValueError(
                    f"{self.path} has {len(ends) - 1} lines, and had {lines} at the checkpoint, written by a version "
                    "that did not record which run wrote which lines: later ones may be another run's. Delete what "
                    f"this run wrote after line {lines}, and move the rest elsewhere, or give another filename."
                )
            with self.path.open("r+b") as file:
                file.truncate(ends[lines])
                os.fsync(file.fileno())
        self._lines = lines

    def _cut_own(self, end: int, *, cut: bool) -> None:
        """Removes what the run wrote after a position, if no text of others follows it."""
        self._end = end
        writes = self._record.writes(self._key)
        before, later = (
            [write for write in writes if write.start < end],
            [write for write in writes if write.start >= end],
        )
        if not self.path.exists():
            standing, whole, joined, torn = [], not end, True, False
        else:
            with self._named(), self._locked() as file:
                size = os.fstat(file).st_size
                whole = all(_stands(file, write) for write in before) and (before or not end)
                standing = [write for write in later if _stands(file, write)]
                places = [write.start for write in standing] + [size]
                joined = places[1:] == [write.end for write in standing]
                torn = any(write.start < size < write.end for write in later)
                if cut and whole and joined and not torn and standing:
                    os.ftruncate(file, standing[0].start)
                    os.fsync(file)
        if not whole:
            raise ValueError(
                f"{self.path} does not contain what this run wrote to it up to its checkpoint. It was changed "
                "since, or the record of what was written (.jaxcb in the run's directory) is missing. Put it back, "
                "or give another filename."
            )
        if (standing and not joined) or torn:
            raise ValueError(
                f"{self.path} contains lines that this run wrote after its checkpoint, and lines of others among or "
                f"after them, from byte {standing[0].start if standing else end} on. Removing them might lose lines of "
                "another run; keeping them would duplicate lines. Delete this run's lines there by hand, or give "
                "another filename."
            )
        if cut:
            self._record.cut(self._key, end)

    @property
    def may_grow(self) -> bool:
        """Whether further columns may be added: it is continued, and the run's alone."""
        return self.resumed and not self._shared

    def rewrite(self, write: Callable[[Path], None]) -> None:
        """Replaces the file by one with as many lines, which `write` makes at the path that it is given."""
        self._record.rewrite(self._key)
        new = self.path.with_name(f"{self.path.name}.{self._record.run}.new")
        with self._named():
            new.unlink(missing_ok=True)  # it might be a link
            write(new)
            new.replace(self.path)
        self._durable = Prefix()

    def close(self) -> None:
        """Makes the content durable; a later write reopens the file."""
        self.is_whole = False
        try:
            with self._handled():
                self._sync()
                self.is_whole = True
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
        if not self.is_whole:
            self._failures.report_loss(
                f"{self.path} is not complete: it could not be written until the end of the run."
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Yields the open file's descriptor, while no other run writes to it."""
        if self._file is None:
            if self._made and not self.path.exists():  # it would be made again
                raise FileNotFoundError(errno.ENOENT, "it was removed or moved while the run was writing it")
            self._file = FileIO(self.path, "a+")  # "a": writes go to the end, wherever that is by then
            self._made = True
        with only_writer(self._file.fileno()):
            yield self._file.fileno()


def _read(file: int, start: int, size: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    return os.read(file, size)


def _stands(file: int, write: Written) -> bool:
    """Returns whether the file still contains a recorded write at its place."""
    return write.end <= os.fstat(file).st_size and zlib.crc32(_read(file, write.start, write.size)) == write.checksum


def _ends(path: Path) -> list[int]:
    """Returns the end of each line of a file, in bytes, after a 0; only the 0 if there is no file."""
    ends = [0]
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                ends.append(ends[-1] + len(line))
    return ends
