"""A CSV file that is written row by row. All appending to files goes through here."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxcb._rows import MISSING


class Table:
    """A CSV file with a fixed header; nothing is touched before the first row.

    Args:
        path: the file.
        columns: the header.
        separator: what stands between columns.
        append: whether rows that are there stay; their header must be the same.

    Raises:
        OSError: for a path that cannot be written.
        ValueError: for a file whose header is another.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, separator: str = ",", append: bool = False) -> None:
        self.path, self.columns = path, list(columns)
        self._separator, self._append = separator, append
        self._file = None
        self._check()

    def _check(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            existed = self.path.exists()
            with self.path.open("a", encoding="utf-8"):
                pass
            if not existed:
                self.path.unlink()
        except OSError as error:
            raise type(error)(error.errno, f"cannot write the CSV file: {error.strerror}", str(self.path)) from None
        if self._append and existed and self.path.stat().st_size:
            with self.path.open(newline="", encoding="utf-8") as file:
                header = next(csv.reader(file, delimiter=self._separator), [])
            if header != self.columns:
                raise ValueError(
                    f"{self.path} has the columns {header}, but this run writes {self.columns}. Give another filename, "
                    "or append=False to replace the file."
                )

    def write(self, row: Mapping[str, str]) -> None:
        """Appends a row; columns that it lacks are NA."""
        if self._file is None:
            self._file = self.path.open("a" if self._append else "w", newline="", encoding="utf-8")
            self._rows = csv.writer(self._file, delimiter=self._separator, lineterminator="\n")
            if self._file.tell() == 0:
                self._rows.writerow(self.columns)
        self._rows.writerow([row.get(name, MISSING) for name in self.columns])
        self._file.flush()

    def close(self) -> None:
        """Makes the rows durable."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file, self._append = None, True
