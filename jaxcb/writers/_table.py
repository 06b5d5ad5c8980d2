"""A CSV file that is written row by row."""

import csv
from collections.abc import Mapping, Sequence

from jaxcb._rows import MISSING
from jaxcb.writers._append import AppendFile


class Table:
    """A CSV file with a fixed header; nothing is touched before the first row.

    Args:
        file: what is appended to; the header of rows that stay must be the same.
        columns: the header.
        separator: what stands between columns.

    Raises:
        ValueError: for a file whose header is another.
    """

    def __init__(self, file: AppendFile, columns: Sequence[str], *, separator: str = ",") -> None:
        self.file, self.columns = file, list(columns)
        path = file.path
        self._rows = csv.writer(self.file, delimiter=separator, lineterminator="\n")
        if self.file.size:
            with path.open(newline="", encoding="utf-8") as lines:
                header = next(csv.reader(lines, delimiter=separator), [])
            if header != self.columns:
                raise ValueError(
                    f"{path} has the columns {header}, but this run writes {self.columns}. Give another filename, "
                    "or append=False to replace the file."
                )

    def write(self, row: Mapping[str, str]) -> None:
        """Appends a row; columns that it lacks are NA."""
        if not self.file.size:
            self._rows.writerow(self.columns)
        self._rows.writerow([row.get(name, MISSING) for name in self.columns])
        self.file.flush()

    def close(self) -> None:
        """Makes the rows durable."""
        self.file.close()
