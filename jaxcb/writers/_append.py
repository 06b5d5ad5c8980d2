"""Files that grow line by line. All appending to files goes through here."""

import contextlib
import os
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path


class AppendFile:
    """A text file (UTF-8) that is written at its end; nothing is touched before the first write.

    Args:
        path: the file; directories are made.
        what: it is, for errors.
        append: whether what is there stays; else the first write replaces it.

    Raises:
        OSError: for a path that cannot be written.
    """

    def __init__(self, path: Path, what: str = "file", *, append: bool = False) -> None:
        self.path, self._what = path, what
        self._append = append
        self._lines: int | None = None  # that stand before the next write; None until somebody asks
        self.resumed = False
        self._file: BufferedRandom | None = None
        self._size = 0  # of the file while it is open: to ask the system at each row costs more than the row
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
        if self._file is not None:
            return self._size
        return self.path.stat().st_size if self._append and self.path.exists() else 0

    def write(self, text: str) -> None:
        """Writes at the end; `flush` brings it to the file."""
        if self._file is None:
            self._file = self.path.open("r+b" if self._append and self.path.exists() else "w+b")
            self._append = True  # from now on what is there is this run's
            self._size = self._file.seek(0, os.SEEK_END)
            if self._size:
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # of a process that was killed in the middle of a line
                    self._size += self._file.write(b"\n")
        if self._lines is not None:
            self._lines += text.count("\n")
        self._size += self._file.write(text.encode())

    def flush(self) -> None:
        """Brings what was written to the file, where other programs see it."""
        if self._file is not None:
            with self._named():
                self._file.flush()

    def position(self) -> int:
        """Makes durable what was written, and returns how many lines the file has; one cut off counts as well."""
        if self._file is not None:
            with self._named():
                self._file.flush()
                os.fsync(self._file.fileno())
        if self._lines is None:
            self._lines = len(_ends(self.path)) - 1 if self.size else 0
        return self._lines

    def truncate(self, lines: int) -> None:
        """Cuts the file back to so many lines, as `position` counts them, and goes on from there.

        Raises:
            ValueError: for a file that has fewer: not the one that was written.
        """
        self.close()
        ends = _ends(self.path)
        if len(ends) - 1 < lines:
            raise ValueError(
                f"{self.path} has {len(ends) - 1} lines, but {lines} were written when its place was noted. It was "
                "changed since; put it back, or begin a new file."
            )
        if len(ends) - 1 > lines:
            with self.path.open("r+b") as file:
                file.truncate(ends[lines])
                os.fsync(file.fileno())
        self._append = self.resumed = True
        self._lines = lines

    def close(self) -> None:
        """Makes everything durable; a later write goes on."""
        if self._file is not None:
            self.position()
            self._file.close()
            self._file = None


def _ends(path: Path) -> list[int]:
    """Where each line of a file ends, in bytes, after a 0; nothing but that where there is no file."""
    ends = [0]
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                ends.append(ends[-1] + len(line))
    return ends
