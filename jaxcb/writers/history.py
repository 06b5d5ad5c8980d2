"""The run's own history: in memory, and in `history.csv` where there is a `run_dir`."""

import csv
from typing import Any

import numpy as np

from jaxcb._history import RunHistory
from jaxcb._rows import MISSING, row_text
from jaxcb.writers._table import Table
from jaxcb.writers._writer import Writer

_RATES = ("base_learning_rate", "learning_rate", "lr_scale")


class HistoryWriter(Writer):
    """Keeps every row, and writes it where it can be read back."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.history = RunHistory()
        self._table: Table | None = None
        self._gone: list[str] = []

    def prepare(self, action: Any) -> None:
        self.history.declare(action.values)
        if self.context.run_dir is not None and self._table is None:
            rates = [n for n in _RATES if n in action.values]
            names = sorted(set(action.values) - set(rates))
            path = self.context.run_dir / "history.csv"
            self.context.claim(path, "the run's history")
            file = self.context.append_file(path, "CSV file")
            self._table = Table(file, ["step", "epoch", *rates, *names], grows=True)
            self._read_back(file, {name: value.dtype for name, value in action.values.items()})

    def _read_back(self, file: Any, dtypes: dict[str, Any]) -> None:
        """Takes the rows of a resumed run in again."""
        if not file.size:
            return
        with file.path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step, epoch = int(row.pop("step")), int(row.pop("epoch"))
                fresh = {name: cell != MISSING for name, cell in row.items()}
                values = {
                    name: np.asarray(float(cell) if fresh[name] else 0).astype(dtypes.get(name, np.float32))
                    for name, cell in row.items()
                }
                self.history.add(step, epoch, values, fresh)
        self._gone = [name for name in self.history if name not in dtypes]

    def write(self, record: Any) -> None:
        action = record.action
        gone = dict.fromkeys(self._gone, np.float32("nan"))  # what was reported before the run was resumed
        self.history.add(record.step, record.epoch, gone | action.values, dict.fromkeys(gone, np.False_) | action.fresh)
        if self._table is not None:
            place = {"step": str(record.step), "epoch": str(record.epoch)}
            self._table.write(place | row_text(action.values, action.fresh))

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
