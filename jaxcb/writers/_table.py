"""A CSV file that is written row by row."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxcb._rows import MISSING
from jaxcb.writers._append import AppendFile


class Table:
    """A CSV file with a fixed header; nothing is touched before the first row.

    Args:
        file: what is appended to; the header of rows that stay must be the same.
        columns: the header.
        separator: what stands between columns.
        grows: whether a resumed file takes new columns in, and keeps those that nobody fills any more.

    Raises:
        ValueError: for a file whose header is another.
    """

    def __init__(self, file: AppendFile, columns: Sequence[str], *, separator: str = ",", grows: bool = False) -> None:
        self.file, self.columns = file, list(columns)
        path = file.path
        self._rows = csv.writer(self.file, delimiter=separator, lineterminator="\n")
        if self.file.size:
            with path.open(newline="", encoding="utf-8") as lines:
                header = next(csv.reader(lines, delimiter=separator), [])
            if header != self.columns and grows and file.resumed:
                self.columns = [*header, *(name for name in self.columns if name not in header)]
                _rewrite(path, self.columns)
            elif header != self.columns:
                raise ValueError(
                    f"{path} has the columns {header}, but this run writes {self.columns}. Give another filename, "
                    "or append=False to replace the file."
                )

        head = io.StringIO()
        csv.writer(head, delimiter=separator, lineterminator="\n").writerow(self.columns)
        self.file.head = head.getvalue()

    def write(self, row: Mapping[str, str]) -> None:
        """Appends a row; columns that it lacks are NA."""
        self._rows.writerow([row.get(name, MISSING) for name in self.columns])
        self.file.flush()

    def close(self) -> None:
        """Makes the rows durable."""
        self.file.close()


def _rewrite(path: Path, columns: Sequence[str]) -> None:
    """Gives a file more columns: line for line, so that a place that was noted in lines stays one."""
    new = path.with_name(f"{path.name}.new")
    with path.open(newline="", encoding="utf-8") as old, new.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval=MISSING, lineterminator="\n")
        rows.writeheader()
        rows.writerows(csv.DictReader(old))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
