"""CSV files of `Row` actions."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._rows import row_text
from jaxcb.writers._table import Table
from jaxcb.writers._writer import Writer, by_member


class CSVWriter(Writer):
    """Writes each row below its header; the columns are known before the first step.

    Members of a population share a file, in which the first column says whose row it is.
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
        for member, own in by_member(action):
            whose = {} if member is None else {"member": str(member)}
            table.write(whose | place | row_text(own.values, own.fresh))

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
