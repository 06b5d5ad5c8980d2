"""CSV files for `LogCSV` actions."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.core.metrics import MISSING, row_text
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.files import AppendFile


class Table:
    """A CSV file with a fixed header; the file is not changed before the first row.

    Args:
        file: the file to append to; if its rows are kept, it must have the same header.
        columns: the header.
        separator: the character between columns.
        grows: whether a resumed file gets new columns, and keeps columns that are no longer written.

    Raises:
        ValueError: if the file has another header.
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
        self.file.begin_with(head.getvalue())

    def write(self, row: Mapping[str, str]) -> None:
        """Appends a row; missing columns are NA."""
        self._rows.writerow([row.get(name, MISSING) for name in self.columns])
        self.file.flush()

    def close(self) -> None:
        """Makes the rows durable."""
        self.file.close()


def _rewrite(path: Path, columns: Sequence[str]) -> None:
    """Adds columns to a file, line for line, so that positions that count lines stay valid."""
    new = path.with_name(f"{path.name}.new")
    with path.open(newline="", encoding="utf-8") as old, new.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval=MISSING, lineterminator="\n")
        rows.writeheader()
        rows.writerows(csv.DictReader(old))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class CSVWriter(Writer):
    """Writes rows to CSV files; the columns are known before the first step.

    Members of a population share a file, whose first column is the number of the member.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._tables: dict[Path, Table] = {}

    def prepare(self, action: Any) -> None:
        path = self.context.path(action.path)
        self.context.claim(path, action.owner)
        if path not in self._tables:
            whose = ["member"] if np.shape(action.when) else []
            columns = [*whose, "epoch", "step", *sorted(action.values)]
            file = self.context.append_file(path, "CSV file", append=action.append)
            self._tables[path] = Table(file, columns, separator=action.separator)

    def write(self, record: Any) -> None:
        action = record.action
        place = {"epoch": str(record.epoch), "step": str(record.step)}
        table = self._tables[self.context.path(action.path)]
        for member, scalars in by_member(action):
            whose = {} if member is None else {"member": str(member)}
            table.write(whose | place | row_text(scalars.values, scalars.fresh))

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
