"""Records: the metrics that a run reported, read from a file, columns or rows.

Why the parser is our own: `numpy.loadtxt` does not support missing cells, `numpy.genfromtxt` is ten times
slower than the standard library's `csv`, and pandas would be a dependency.
"""

import bisect
import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from jaxcb._src.core.metric_names import MISSING
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.names import is_rate, rate_metric

POSITIONS = ("step", "epoch")
RATES = ("learning_rate", "base_learning_rate", "lr_scale")  # columns of a run with one learning rate
HISTORY = "history.csv"
JOURNAL = "host_metrics.csv"  # next to a run's history: host metrics, each row with the position from which it holds
PLACE = ("epoch", "step", "evaluated")  # columns of the journal: the position from which a row holds
_LINE = 1 << 24  # characters
_BLOCK = 65_536  # lines of a file that are in memory as text at the same time


class RecordedRate(NamedTuple):
    """A recorded learning rate; None for what has no column.

    Attributes:
        effective: the rate of the last update, float32 (records,).
        base: that without the callbacks' factor, float32 (records,).
        scale: the callbacks' factor, float32 (records,).
    """

    effective: np.ndarray | None
    base: np.ndarray | None
    scale: np.ndarray | None


class Records(NamedTuple):
    """A recorded run; each record is the end of an epoch or a validation within it.

    Attributes:
        names: the names of the metrics, in order.
        values: the last reported value at each record, float32 (records, names); NaN before the first report.
        reported: the step of that report, int32 (records, names); -1 before the first report.
        step: updates done, int32 (records,), increasing.
        epoch: from 0, int32 (records,).
        rates: the recorded learning rates, by their names; the only one of a run has the name "".
    """

    names: tuple[str, ...]
    values: np.ndarray
    reported: np.ndarray
    step: np.ndarray
    epoch: np.ndarray
    rates: Mapping[str, RecordedRate]

    @property
    def fresh(self) -> np.ndarray:
        """Whether a value was reported at that record, bool (records, names)."""
        return self.reported == self.step[:, None]

    @property
    def closes(self) -> np.ndarray:
        """Whether a record ends its epoch, bool (records,): the last one of each epoch does."""
        return np.append(self.epoch[1:] != self.epoch[:-1], True)

    @property
    def validated(self) -> frozenset[str]:
        """The names that validations report."""
        return frozenset(name for name in self.names if name.startswith("val_"))

    @property
    def old(self) -> dict[str, frozenset[str]]:
        """Hook -> names that no record reports in it."""
        others = frozenset(self.names) - self.validated
        old = {
            "on_epoch_end": self.validated,
            "on_train_end": frozenset(self.names),
        }  # reported by the validation before
        return old | {"on_eval_end": others} if self.closes.all() else old


class _Column(NamedTuple):
    values: np.ndarray  # float64 (records,)
    present: np.ndarray  # bool (records,)


def read_records(source: Any) -> Records:
    """Reads a recorded run.

    Args:
        source: the path of a CSV file (or of a run's directory, which contains `history.csv`), a dict of
            columns, or a sequence of dicts. None, "NA" and a missing key mean not reported; nan is a value.

    Returns:
        The records.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: if there are no records, columns of different lengths, a cell that is not a number, or steps that do
            not increase.
        TypeError: for another type of source.
    """
    if isinstance(source, str | os.PathLike | bytes):
        return _from_path(local_path("replay", "source", source))
    if isinstance(source, Mapping):
        return _from_columns(source)
    if isinstance(source, Sequence):
        return _from_rows(source)
    raise TypeError(
        "metrics to replay are the path of a history.csv, a dict of lists or a list of dicts, got "
        f"{type(source).__name__}. "
        'Pass a data frame as `frame.to_dict("list")`.'
    )


def read_members(path: Path) -> dict[int | None, Records]:
    """Reads the `history.csv` of a run, with the host metrics next to it.

    Args:
        path: the file.

    Returns:
        The records of each member of a population, by its number; those of a single run under None. Members without a
        record are missing, and so is a run without one. An incomplete last line, of a run that writes it or was killed,
        is left out.

    Raises:
        DataError: for a file that is not the history of a run.
    """
    columns, at = _table(path, incomplete=True)
    if not len(at):
        return {}
    numbers = columns.pop("member", None)
    members = None if numbers is None else _whole(numbers, "member", lambda i: f"{path}, line {at[i]}")
    journal = path.with_name(JOURNAL)
    table = _table(journal) if journal.is_file() else None
    found: dict[int | None, Records] = {}
    for member in (None,) if members is None else np.unique(members).tolist():
        rows = slice(None) if member is None else np.flatnonzero(members == member)
        own = {name: _Column(column.values[rows], column.present[rows]) for name, column in columns.items()}
        records = _records(own, lambda i, lines=at[rows]: f"{path}, line {lines[i]}")
        found[member] = records if table is None else _with_journal(records, journal, *table)
    return found


def _from_path(path: Path) -> Records:
    path = path / HISTORY if path.is_dir() else path
    records, journal = _from_file(path), path.with_name(JOURNAL)
    return _with_journal(records, journal, *_table(journal)) if path.name == HISTORY and journal.is_file() else records


def _from_file(path: Path) -> Records:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r} to replay. A run with run_dir= writes run_dir/history.csv; "
            "or pass the values themselves: {'val_loss': [...]}."
        )
    columns, at = _table(path)
    if not len(at):
        raise DataError(f"{path}: it has no records, so there is nothing to replay.")
    return _records(columns, lambda i: f"{path}, line {at[i]}")


def _table(path: Path, *, incomplete: bool = False) -> tuple[dict[str, _Column], np.ndarray]:
    """Reads a table of numbers, of which no program says that a run has written it.

    Args:
        path: the file.
        incomplete: whether a last line without an end is left out.

    Returns:
        The columns by name, and the line of each row.

    Raises:
        DataError: for a file that is not such a table.
    """
    parts: list[list[_Column]] = []
    at: list[np.ndarray] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(path, file, incomplete)
            first = next(lines, "")
            separator = max(",;\t", key=first.count)
            reader = csv.reader(itertools.chain([first], lines), delimiter=separator)
            names = next(reader, [])  # of several lines, if a name contains a line break
            twice = sorted({n for n in names if names.count(n) > 1}) if len({*names}) < len(names) else []
            if twice:
                raise DataError(f"{path}: the header has the column {twice[0]!r} {names.count(twice[0])} times.")
            line = reader.line_num + 1
            while block := list(itertools.islice(reader, _BLOCK)):
                kept = range(len(block)) if [] not in block else [i for i, cells in enumerate(block) if cells]
                numbers = line + np.asarray(kept, np.int64)  # blank lines are skipped
                parts.append(_block(path, names, [block[i] for i in kept], numbers))
                at.append(numbers)
                line += len(block)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table of text in UTF-8 ({error}); expected the history.csv of a run."
        ) from None
    joined = [_Column(*map(np.concatenate, zip(*part, strict=True))) for part in zip(*parts, strict=True)]
    joined = joined or [_Column(np.zeros(0), np.zeros(0, bool))] * len(names)
    return dict(zip(names, joined, strict=True)), np.concatenate(at) if at else np.zeros(0, np.int64)


def _lines(path: Path, file: TextIO, incomplete: bool) -> Iterator[str]:
    """Yields the lines of a file. A line that is longer than any of a table is not read into memory."""
    while line := file.readline(_LINE):
        if incomplete and len(line) < _LINE and not line.endswith(("\n", "\r")):
            return
        if len(line) == _LINE:
            raise DataError(
                f"{path} has a line of more than {_LINE} characters, so it is not the history.csv of a run."
            )
        yield line


def _block(path: Path, names: Sequence[str], rows: list[list[str]], lines: np.ndarray) -> list[_Column]:
    if set(map(len, rows)) - {len(names)}:
        cells, line = next((c, n) for c, n in zip(rows, lines, strict=True) if len(c) != len(names))
        raise DataError(
            f"{path}, line {line}: {len(cells)} cells, expected {len(names)} as in the header. "
            "Was the file truncated while it was written?"
        )
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return [
        _numbers(cells, len(rows), lambda i, name=name: f"{path}, line {lines[i]}, column {name!r}")
        for name, cells in zip(names, columns, strict=True)
    ]


def _from_columns(source: Mapping[Any, Any]) -> Records:
    columns, lengths = {}, {}
    for name, cells in source.items():
        if isinstance(cells, np.ndarray) and cells.ndim > 1:
            continue  # a metric that is an array, as in the history of a run: no callback can monitor it
        if isinstance(cells, str | bytes | Mapping) or not hasattr(cells, "__len__") or getattr(cells, "ndim", 1) != 1:
            raise DataError(f"the column {name!r} is {cells!r}, expected a list with one value per record.")
        lengths[str(name)] = len(cells)
        columns[str(name)] = cells
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(
            f"the columns have different lengths ({shown}). Each column needs one entry per record: None where a "
            "metric was not reported."
        )
    if not lengths or not next(iter(lengths.values())):
        raise DataError("the source has no records, so there is nothing to replay.")

    def number(name: str, cells: Any) -> _Column:
        return _numbers(cells, lengths[name], lambda i: f"record {i}, column {name!r}")

    return _records({n: number(n, c) for n, c in columns.items()}, lambda i: f"record {i}")


def _from_rows(source: Sequence[Any]) -> Records:
    names: dict[str, None] = {}
    for i, row in enumerate(source):
        if not isinstance(row, Mapping):
            raise DataError(f"record {i} is of type {type(row).__name__}, expected a dict of names to values.")
        if row.keys() != names.keys():
            names.update(dict.fromkeys(row))
    if not source:
        raise DataError("the source has no records, so there is nothing to replay.")
    if not names:
        raise DataError("the records are empty dicts, so there is nothing to replay.")
    # without metrics that are arrays, which are lists in JSON lines
    scalars = [name for name in names if not any(isinstance(row.get(name), list | np.ndarray) for row in source)]
    return _from_columns({name: [row.get(name) for row in source] for name in scalars})


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip() == MISSING)


def _with_journal(records: Records, path: Path, columns: Mapping[str, _Column], at: np.ndarray) -> Records:
    """Adds the host metrics at each record: those of the last row before it in the journal, a table."""
    names = [name for name in columns if name not in PLACE]
    for name in PLACE:
        if name not in columns and (len(at) or columns or path.stat().st_size):
            raise DataError(f"{path}: it has no column {name!r}, so a run did not write it. Put it back, or remove it.")
        if len(at) and not columns[name].present.all():
            raise DataError(f"{path}: expected a number in each row of the column {name!r}. Put it back, or remove it.")
    if not len(at):
        return records
    both = sorted({*names} & {*records.names, *POSITIONS, *filter(is_rate, names)})
    if both:
        raise DataError(f"{path}: the column {both[0]!r} is in history.csv, too. Put the file back, or remove it.")
    table = np.stack([columns[name].values for name in (*PLACE, *names)], axis=1)
    # Sorted by (epoch, step, closes): a record that closes an epoch comes after a validation at the same step.
    starts = [tuple(row[:3]) for row in table.tolist()]
    if starts != sorted(starts):
        raise DataError(f"{path}: its rows are not in the order of epoch and step. Put it back, or remove it.")
    moments = zip(records.epoch.tolist(), records.step.tolist(), records.closes.tolist(), strict=True)
    last = np.asarray([bisect.bisect_right(starts, begin) - 1 for begin in moments]).clip(0)
    return records._replace(
        names=(*records.names, *names),
        values=np.concatenate([records.values, table[last, 3:].astype(np.float32)], axis=1),
        reported=np.concatenate([records.reported, np.repeat(records.step[:, None], len(names), axis=1)], axis=1),
    )


def _numbers(cells: Iterable[Any], count: int, where: Callable[[int], str]) -> _Column:
    """Parses cells as numbers; `where` describes the position of a cell for an error."""
    if getattr(getattr(cells, "dtype", None), "kind", "O") in "biuf":
        return _Column(np.asarray(cells, np.float64), np.ones(count, bool))
    cells = cells if isinstance(cells, Sequence) else list(cells)
    try:
        return _Column(np.fromiter(map(float, cells), np.float64, count), np.ones(count, bool))
    except (TypeError, ValueError):  # some are missing or not numbers
        present = np.fromiter((not _is_missing(c) for c in cells), bool, count)
    values = np.full(count, np.nan)
    for i in np.flatnonzero(present).tolist():
        try:
            values[i] = float(cells[i])
        except (TypeError, ValueError):
            raise DataError(
                f"{where(i)}: {cells[i]!r} is not a number. Write unreported values as "
                f"{MISSING} (or None); nan is a value."
            ) from None
    return _Column(values, present)


def _records(columns: dict[str, _Column], where: Callable[[int], str]) -> Records:
    count = len(next(iter(columns.values())).values)
    index = np.arange(count)
    positions = {name: _whole(columns[name], name, where) if name in columns else None for name in POSITIONS}
    epoch = index.astype(np.int32) if positions["epoch"] is None else positions["epoch"]
    step = (index + 1).astype(np.int32) if positions["step"] is None else positions["step"]
    # a stop in a validation within an epoch closes the epoch at the same step
    stands = (np.diff(step) == 0) & (np.diff(epoch) != 0)
    for name, falls, rule in (
        ("step", (np.diff(step) < 0) | stands, "rises from record to record"),
        ("epoch", np.diff(epoch) < 0, "never falls"),
    ):
        if falls.any():
            at = int(np.argmax(falls)) + 1
            now = {"step": step, "epoch": epoch}[name]
            raise DataError(f"{where(at)}: {name} is {now[at]} after {now[at - 1]}, expected one that {rule}.")
    names = tuple(n for n in columns if n not in POSITIONS and not is_rate(n))
    values = np.full((count, len(names)), np.nan, np.float32)
    reported = np.full((count, len(names)), -1, np.int32)
    for i, name in enumerate(names):
        last = _last(columns[name].present)
        known = last >= 0
        values[known, i] = columns[name].values[last[known]]
        reported[known, i] = step[last[known]]
    return Records(names, values, reported, step, epoch, _rates(columns))


def _rates(columns: Mapping[str, _Column]) -> dict[str, RecordedRate]:
    """Returns the learning rates among the columns, by their names."""
    found = {}
    for of in dict.fromkeys(name.partition("/")[2] for name in columns if is_rate(name)):
        named = (columns.get(rate_metric(kind, of)) for kind in RATES)
        rate, base, scale = (None if column is None else _filled(column) for column in named)
        if scale is None and rate is not None and base is not None:
            scale = rate / np.where(base == 0, np.float32(1), base)
        if any(x is not None for x in (rate, base, scale)):
            found[of] = RecordedRate(rate, base, scale)
    return found


def _last(present: np.ndarray) -> np.ndarray:
    """Returns for each record the index of the last present value up to it, -1 for none."""
    return np.maximum.accumulate(np.where(present, np.arange(len(present)), -1))


def _filled(column: _Column) -> np.ndarray | None:
    """Fills the gaps of a column from before, and its start from after; None if no value is present."""
    if not column.present.any():
        return None
    last = _last(column.present)
    last = np.where(last < 0, int(np.argmax(column.present)), last)
    return column.values[last].astype(np.float32)


def _whole(column: _Column, name: str, where: Callable[[int], str]) -> np.ndarray:
    limit = np.iinfo(np.int32).max
    bad = ~column.present | (column.values != np.floor(column.values)) | ~(np.abs(column.values) <= limit)
    bad |= column.values < 0
    if bad.any():
        at = int(np.argmax(bad))
        got = column.values[at] if column.present[at] else MISSING
        raise DataError(f"{where(at)}: {name} is {got}, expected an integer from 0 to {limit}.")
    return column.values.astype(np.int32)
