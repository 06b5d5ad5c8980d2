"""CSV files for `LogCSV` actions."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.core.metric_names import MISSING, row_text
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.files import AppendFile

_PLACES = {"member", "epoch", "step"}  # columns that every table of a run has, if they apply to it


class Table:
    """A CSV file with a fixed header; the file is not changed before the first row.

    Args:
        file: the file to append to; if its rows are kept, it must have the same header.
        columns: the header.
        separator: the character between columns.

    A resumed file of the run alone gets new columns, and keeps columns that are no longer written.

    Raises:
        ValueError: if the file has another header.
    """

    def __init__(self, file: AppendFile, columns: Sequence[str], *, separator: str = ",") -> None:
        self.file, self.columns, self._separator = file, list(columns), separator
        path = file.path
        self._rows = csv.writer(self.file, delimiter=separator, lineterminator="\n")
        if self.file.begun and not file.inert:
            header = _header(path, separator)
            if header != self.columns and file.may_grow and _PLACES & {*self.columns} <= {*header}:
                self.columns = [*header, *(name for name in self.columns if name not in header)]
                file.rewrite(lambda new: _rewrite(path, new, self.columns, separator))
            elif header != self.columns:
                cure = "" if file.resumed else ", or move the file"
                shown = f"{path}, read with the separator {separator!r}, has the columns {header}, but this run writes "
                raise ValueError(f"{shown}{self.columns}. Give another filename{cure}.")

        self.file.begin_with(self.text(()))
        self.file.flush()  # what could not be written before the checkpoint

    def write(self, row: Mapping[str, str]) -> None:
        """Appends a row; missing columns are NA."""
        self._rows.writerow([row.get(name, MISSING) for name in self.columns])
        self.file.flush()

    def text(self, rows: Iterable[Mapping[str, str]]) -> str:
        """Returns the text of a file with these rows."""
        text = io.StringIO(newline="")
        table = csv.writer(text, delimiter=self._separator, lineterminator="\n")
        table.writerow(self.columns)
        table.writerows([row.get(name, MISSING) for name in self.columns] for row in rows)
        return text.getvalue()

    def close(self) -> None:
        """Makes the rows durable."""
        self.file.close()


def _header(path: Path, separator: str) -> list[str]:
    """Reads the header of a file.

    Raises:
        ValueError: for a file that is not a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return next(csv.reader(lines, delimiter=separator), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table of text ({error}). Give another filename.") from None


def _rewrite(path: Path, new: Path, columns: Sequence[str], separator: str) -> None:
    """Writes a file with further columns, line for line, so that positions that count lines stay valid.

    Raises:
        ValueError: for a row of another length than the header.
    """
    with path.open(newline="", encoding="utf-8") as old, new.open("w", newline="", encoding="utf-8") as file:
        rows, table = csv.reader(old, delimiter=separator), csv.writer(file, delimiter=separator, lineterminator="\n")
        header = next(rows)
        table.writerow(columns)
        for row in rows:
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {rows.line_num}: {len(row)} cells, expected {len(header)} as in the header. Put the "
                    "file back from a backup, or give another filename."
                )
            table.writerow([*row, *[MISSING] * (len(columns) - len(row))])
        file.flush()
        os.fsync(file.fileno())


class CSVWriter(Writer):
    """Writes rows to CSV files; the columns are known before the first step.

    Members of a population share a file, whose first column is the number of the member.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._tables: dict[Path, Table] = {}

    def prepare(self, action: Any) -> None:
        path = self.context.path(action.path, owner=action.owner)
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
