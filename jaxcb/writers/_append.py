"""Files that grow line by line. All appending to files goes through here."""

import os
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
        self.path = path
        self._append = append
        self._file: BufferedRandom | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            existed = path.exists()
            with path.open("ab"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise type(error)(error.errno, f"cannot write the {what}: {error.strerror}", str(path)) from None

    @property
    def size(self) -> int:
        """Bytes that stand before the next write."""
        if self._file is not None:
            return self._file.tell()
        return self.path.stat().st_size if self._append and self.path.exists() else 0

    def write(self, text: str) -> None:
        """Writes at the end; `flush` brings it to the file."""
        if self._file is None:
            self._file = self.path.open("r+b" if self._append and self.path.exists() else "w+b")
            self._append = True  # from now on what is there is this run's
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # of a process that was killed in the middle of a line
                    self._file.write(b"\n")
        self._file.write(text.encode())

    def flush(self) -> None:
        """Brings what was written to the file, where other programs see it."""
        if self._file is not None:
            self._file.flush()

    def position(self) -> int:
        """Makes durable what was written, and returns the file's length in bytes."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.size

    def truncate(self, position: int) -> None:
        """Cuts the file back to a length that `position` gave, and goes on from there.

        Raises:
            ValueError: for a file that is shorter: not the one that was written.
        """
        self.close()
        length = self.path.stat().st_size if self.path.exists() else 0
        if length < position:
            raise ValueError(
                f"{self.path} has {length} bytes, but {position} were written when its place was noted. It was "
                "changed since; put it back, or begin a new file."
            )
        if length > position:
            with self.path.open("r+b") as file:
                file.truncate(position)
                os.fsync(file.fileno())
        self._append = True

    def close(self) -> None:
        """Makes everything durable; a later write goes on."""
        if self._file is not None:
            self.position()
            self._file.close()
            self._file = None
