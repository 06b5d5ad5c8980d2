"""The run's own history: in memory, and in `history.csv` where there is a `run_dir`."""

from typing import Any

from jaxcb._history import RunHistory
from jaxcb._rows import row_text
from jaxcb.writers._table import Table
from jaxcb.writers._writer import Writer

_RATES = ("base_learning_rate", "learning_rate", "lr_scale")


class HistoryWriter(Writer):
    """Keeps every row, and writes it where it can be read back."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.history = RunHistory()
        self._table: Table | None = None

    def prepare(self, action: Any) -> None:
        self.history.declare(action.values)
        if self.context.run_dir is not None and self._table is None:
            rates = [n for n in _RATES if n in action.values]
            names = sorted(set(action.values) - set(rates))
            path = self.context.run_dir / "history.csv"
            self.context.claim(path, "the run's history")
            self._table = Table(path, ["step", "epoch", *rates, *names])

    def write(self, record: Any) -> None:
        action = record.action
        self.history.add(record.step, record.epoch, action.values, action.fresh)
        if self._table is not None:
            place = {"step": str(record.step), "epoch": str(record.epoch)}
            self._table.write(place | row_text(action.values, action.fresh))

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
