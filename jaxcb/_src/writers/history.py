"""The run's own history: in memory, and in `history.csv` if there is a `run_dir`."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxcb._src.core.metric_names import MISSING, columns, in_columns, row_text
from jaxcb._src.history.history import RunHistory
from jaxcb._src.storage.failures import write_elsewhere
from jaxcb._src.utils.names import is_rate
from jaxcb._src.writers.base import Writer
from jaxcb._src.writers.csv import Table

MOST_COLUMNS = 1024  # of the file, for one metric that is an array
_PLACES = ("member", "step", "epoch")


class HistoryWriter(Writer):
    """Keeps every row in memory, and writes it to `history.csv`, from which a resumed run reads it."""

    everywhere = True  # each process returns a result with the history

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.history = RunHistory()
        self._table: Table | None = None  # only in process 0
        self._shape: tuple[int, ...] | None = None  # shape of the member axis, once prepared
        self._gone: list[str] = []
        self._arrays: dict[str, tuple[int, ...]] = {}  # metrics that are arrays -> their shapes
        self._large: set[str] = set()  # those that are too large for the file

    def prepare(self, action: Any) -> None:
        self.history.declare(action.values)
        if self.context.run_dir is None or self._shape is not None:
            return
        self._shape = np.shape(action.when)
        dtypes = {name: value.dtype for name, value in action.values.items()}
        lead = len(self._shape)
        shapes = {name: tuple(value.shape[lead:]) for name, value in action.values.items()}
        self._large = {name for name, shape in shapes.items() if math.prod(shape) > MOST_COLUMNS}
        for name in sorted(self._large):
            self.context.warn(
                f"the metric {name!r} has {math.prod(shapes[name])} numbers, more than the {MOST_COLUMNS} columns that "
                "history.csv has for a metric. It is in result.history and not in the file, so a resumed run has only "
                "its later values."
            )
        self._arrays = {name: shape for name, shape in shapes.items() if shape and name not in self._large}
        if self.context.processes.is_primary:
            rates = sorted(filter(is_rate, action.values))
            names = sorted(set(action.values) - set(rates) - self._large)
            names = [column for name in names for column in columns(name, shapes[name])]
            path = self.context.run_dir / "history.csv"
            self.context.claim(path, "the run's history")
            file = self.context.append_file(path, "CSV file")
            whose = ["member"] if self._shape else []
            self._table = Table(file, [*whose, "step", "epoch", *rates, *names])
        for record in self.context.processes.broadcast_from_primary(lambda: self._read_back(dtypes)):
            self.history.add(*self._assembled(*record))
        self._gone = [name for name in self.history if name not in dtypes]

    def _assembled(self, step: int, epoch: int, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> Any:
        """Returns a row that was read back, with the arrays instead of their columns."""
        members = np.shape(when)
        for name, shape in self._arrays.items():
            parts = [(values.pop(c, None), fresh.pop(c, None)) for c in columns(name, shape)]
            known = all(value is not None for value, _ in parts)
            numbers = [value for value, _ in parts] if known else [np.full(members, np.nan, np.float32)] * len(parts)
            values[name] = np.stack(numbers, -1).reshape(*members, *shape)
            fresh[name] = parts[0][1] if known else np.zeros(members, bool)
        return step, epoch, values, fresh, when

    def _read_back(self, dtypes: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Returns the rows of a resumed run; in the file, each member has a line of its own."""
        assert self._table is not None
        assert self._shape is not None
        if not self._table.file.size:
            return []
        path = self._table.file.path
        try:
            with path.open(newline="", encoding="utf-8") as lines:
                moments = itertools.groupby(_rows(csv.reader(lines)), key=_moment(bool(self._shape)))
                return [(int(step), int(epoch), *_row(rows, dtypes, self._shape)) for (step, epoch, _), rows in moments]
        except (ValueError, KeyError, IndexError, csv.Error) as error:
            raise ValueError(
                f"{path} is not the history of this run ({error}). Put it back from a backup, or start again with "
                "checkpointing=jc.Checkpointing(overwrite=True)."
            ) from None

    def write(self, record: Any) -> None:
        action = record.action
        gone = dict.fromkeys(self._gone, np.float32("nan"))  # names that were reported only before the run was resumed
        fresh = dict.fromkeys(gone, np.False_) | action.fresh
        self.history.add(record.step, record.epoch, gone | action.values, fresh, action.when)
        if self._table is not None:
            for line in self._lines(record.step, record.epoch, action.values, action.fresh, action.when):
                self._table.write(line)

    def _lines(self, step: int, epoch: int, values: Any, fresh: Any, when: Any) -> Iterator[dict[str, str]]:
        """Yields the lines of a row in the file: one for each member."""
        place = {"step": str(step), "epoch": str(epoch)}
        for member in np.flatnonzero(when) if np.ndim(when) else (None,):
            whose = {} if member is None else {"member": str(member)}
            kept = {n: x if member is None else x[member] for n, x in values.items() if n not in self._large}
            new = {name: fresh[name] if member is None else fresh[name][member] for name in kept}
            yield whose | place | row_text(*in_columns(kept, new))

    def close(self) -> None:
        if self._table is None:
            return
        file = self._table.file
        try:
            self._table.close()
        except OSError as error:
            shown = f"{error.strerror}. {self._write_elsewhere()}"
            raise type(error)(error.errno, shown, error.filename) from None
        if not file.is_whole:
            self.context.failures.report_loss(f"{file.path}: {self._write_elsewhere()}")

    def _write_elsewhere(self) -> str:
        """Writes the complete history outside of the run's directory, and says where it is."""
        assert self._table is not None
        lines = (line for row in self.history.rows() for line in self._lines(*row))
        name = f"jaxcb-history-{self.context.record.run}.csv"
        path = write_elsewhere(name, self._table.text(lines), (self.context.began_in,))
        return "No other directory takes the history." if path is None else f"The complete history is in {path}."


def _rows(lines: Any) -> Iterator[dict[str, str]]:
    """Yields the rows of a table by name."""
    names = next(lines, [])
    for cells in lines:
        if len(cells) != len(names):
            raise ValueError(f"line {lines.line_num} has {len(cells)} cells, and the header {len(names)}")
        row = dict(zip(names, cells, strict=True))
        if int(row["step"]) < 0 or int(row["epoch"]) < 0:
            raise ValueError(f"line {lines.line_num} is of step {row['step']} and epoch {row['epoch']}")
        yield row


def _row(
    lines: Iterable[dict[str, str]], dtypes: dict[str, Any], members: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Returns the values of a row, which of them were reported, and for which members."""
    values: dict[str, Any] = {}
    fresh: dict[str, Any] = {}
    when = np.zeros(members, bool)
    for line in lines:
        at = int(line["member"]) if members else ()
        when[at] = True
        for name, cell in line.items():
            if name not in _PLACES:
                known = cell != MISSING
                values.setdefault(name, np.zeros(members, dtypes.get(name, np.float32)))[at] = (
                    float(cell) if known else 0
                )
                fresh.setdefault(name, np.zeros(members, bool))[at] = known
    return values, fresh, when


def _moment(members: bool) -> Callable[[dict[str, str]], tuple[str, str, int]]:
    """Returns a key that groups the lines of one row; in a single run each line is a row."""
    seen: list[int] = [0, -1]  # rows so far, and the last member

    def key(row: dict[str, str]) -> tuple[str, str, int]:
        member = int(row["member"]) if members else 0
        if member <= seen[1] or not members:
            seen[0] += 1
        seen[1] = member
        return row["step"], row["epoch"], seen[0]

    return key
