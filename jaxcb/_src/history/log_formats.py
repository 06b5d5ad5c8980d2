"""Formats of logs: what reads a file of another library as rows. CSV and JSON lines are here.

TensorBoard's event files and W&B's offline files are in modules of their own. Packages add formats by the entry point
`jaxcb.log_formats`, a module that calls `log_format`.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.core.metric_names import MISSING
from jaxcb._src.history.reader import POSITIONS, RATES
from jaxcb._src.utils.errors import DataError

_LONGEST = 1 << 24  # characters of a line of JSON
_TEXT_LINES = 2  # a column whose first cell is a text has texts; a later text among numbers is damage

Row = Mapping[str, float | None]  # name -> value; None if it was not reported


class LogFormat(NamedTuple):
    """A format of logs.

    Attributes:
        name: for messages.
        matches: whether a path is such a log.
        read: yields its rows, in order, each with the positions `step` and `epoch` if they are known.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Iterable[Row]]


FORMATS: list[LogFormat] = []


def log_format(name: str, matches: Callable[[Path], bool]) -> Callable[[Any], Any]:
    r"""Registers a function that reads the rows of a format of logs, for `replay`, `read_log` and the command line.

    The function takes the path, and returns rows in order: name of a metric -> number, or None where it was not
    reported. The names `step` and `epoch` are positions. A format that was registered later is asked first. A package
    names the module that registers its formats by the entry point `jaxcb.log_formats`, so that the command line finds
    them.

    Args:
        name: of the format, for messages.
        matches: whether a path is such a log; called with files and directories.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        TypeError: if `matches` or the function is not callable, or the name is not a text.

    Example:
        >>> import jaxcb as jc, pathlib, tempfile
        >>> @jc.logs.log_format("numbers, one a line", lambda path: path.suffix == ".numbers")
        ... def read_numbers(path):
        ...     return [{"val_loss": float(line)} for line in path.read_text().splitlines()]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = pathlib.Path(folder, "run.numbers")
        ...     _ = log.write_text("3\n2\n2.5\n")
        ...     jc.replay([jc.EarlyStopping(patience=1)], log).stopped_epoch
        2
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"log_format: name must be a text that messages show, got {name!r}.")
    if not callable(matches):
        raise TypeError(f"log_format: matches must be a function of a path that returns a boolean, got {matches!r}.")

    def register(read: Callable[[Path], Iterable[Row]]) -> Callable[[Path], Iterable[Row]]:
        if not callable(read):
            raise TypeError(f"log_format: {name!r} needs a function of a path that returns rows, got {read!r}.")
        FORMATS.append(LogFormat(name, matches, read))
        return read

    return register


def _is_csv(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


@log_format("CSV (Keras's CSVLogger, Lightning's metrics.csv, jaxcb's CSVLogger)", _is_csv)
def read_csv(path: Path) -> Iterator[Row]:
    """Yields the rows of a table; an empty cell and NA were not reported. Columns of text are left out."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(_LONGEST)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            names = list(reader.fieldnames or ())
            texts: set[str] = set()
            for line, cells in enumerate(reader, start=2):
                if None in cells or None in cells.values():
                    count = sum(value is not None for name, value in cells.items() if name is not None)
                    count += len(cells.get(None) or ())  # pyright: ignore[reportArgumentType, reportCallIssue]
                    raise DataError(
                        f"{path}, line {line}: {count} cells, expected {len(names)} as in the header. "
                        "Was the file truncated while it was written?"
                    )
                row: dict[str, float | None] = {}
                for name, cell in cells.items():
                    if name in texts:
                        continue
                    try:
                        row[name] = None if cell.strip() in ("", MISSING) else float(cell)
                    except ValueError:
                        if name in (*POSITIONS, *RATES) or line > _TEXT_LINES:
                            raise DataError(
                                f"{path}, line {line}, column {name!r}: {cell!r} is not a number. Write unreported "
                                f"values as {MISSING}; nan is a value."
                            ) from None
                        texts.add(name)
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table of text in UTF-8 ({error}).") from None


def _is_json_lines(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson", ".json")


@log_format("JSON lines", _is_json_lines)
def read_json_lines(path: Path) -> Iterator[Row]:
    """Yields the objects of a file with one a line; values that are not numbers are left out."""
    with path.open(encoding="utf-8") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith("\n") and number > 1:
                    return  # a program that was killed has left an incomplete line
                raise DataError(f"{path}, line {number}: it is not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object with names and numbers, got {row!r:.60}.")
            yield dict(numbers_of(row))


def numbers_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yields the numbers of an object; the texts "nan", "inf" and "-inf" are numbers, and null was not reported."""
    for name, value in row.items():
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield name, value
        elif isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            yield name, float(value)
