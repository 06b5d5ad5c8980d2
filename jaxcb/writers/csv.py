"""CSV files of `Row` actions."""

from pathlib import Path
from typing import Any

from jaxcb._rows import row_text
from jaxcb.writers._table import Table
from jaxcb.writers._writer import Writer


class CSVWriter(Writer):
    """Writes each row below its header; the columns are known before the first step."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._tables: dict[Path, Table] = {}

    def prepare(self, action: Any) -> None:
        path = self.context.path(action.path)
        self.context.claim(path, action.owner)
        if path not in self._tables:
            columns = ["epoch", "step", *sorted(action.values)]
            file = self.context.append_file(path, "CSV file", append=action.append)
            self._tables[path] = Table(file, columns, separator=action.separator)

    def write(self, record: Any) -> None:
        action = record.action
        place = {"epoch": str(record.epoch), "step": str(record.step)}
        self._tables[self.context.path(action.path)].write(place | row_text(action.values, action.fresh))

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
