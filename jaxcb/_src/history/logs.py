"""`read_log`: the log of any library, read as records."""

import functools
import importlib.metadata
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxcb._src.history import event_files as _event_files  # both register their formats
from jaxcb._src.history import wandb_files as _wandb_files  # noqa: F401
from jaxcb._src.history.log_formats import FORMATS, LogFormat, Row
from jaxcb._src.history.reader import HISTORY, JOURNAL, POSITIONS, Records, read_records
from jaxcb._src.storage.buckets.download import downloaded
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.local_path import local_path_or_address

ENTRY_POINT = "jaxcb.log_formats"
_MOST_ROWS = 20_000_000
_STEP_NAMES = ("step", "_step", "global_step", "trainer/global_step")
_EPOCH_NAMES = ("epoch", "_epoch")
_POSITIONS = (_STEP_NAMES, _EPOCH_NAMES)
_NO_METRICS = {"_runtime", "_timestamp", "_wandb", "wall_time", "time", "timestamp"}


def read_log(source: Any) -> Records:
    r"""Reads a recorded run: that of jaxcb, or a log of another library.

    Args:
        source: the directory of a run, a `history.csv`, or a log of a known format; a path or an address. Anything else
            is read as in `read_records`.

    Raises:
        FileNotFoundError: if nothing is there.
        DataError: for a format that is not known, or an invalid log.
        OSError: for a bucket that does not exist, does not answer or denies.
        ImportError: for an address without obstore.

    Example:
        >>> import jaxcb as jc, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = pathlib.Path(folder, "log.jsonl")
        ...     _ = log.write_text('{"epoch": 0, "loss": 2}\n{"epoch": 1, "loss": 1}\n')
        ...     records = jc.logs.read_log(log)
        >>> records.names, records.values[:, 0].tolist()
        (('loss',), [2.0, 1.0])
    """
    if not isinstance(source, str | Path):
        return read_records(source)
    place = local_path_or_address("replay", "source", source)
    return _from_path(place) if isinstance(place, Path) else _from_bucket(place)


def _from_bucket(address: Address) -> Records:
    """Downloads a run's history, or another log, and reads it."""
    is_history = address.key.rpartition("/")[2] == HISTORY
    with downloaded(address.parent if is_history else address, choose=_logs_among) as folder:
        path = folder / HISTORY if is_history else folder
        try:
            return _from_path(path)
        except (FileNotFoundError, DataError) as error:  # they name the folder, which is removed
            raise type(error)(str(error).replace(str(path), str(address))) from error


def _logs_among(names: list[str]) -> list[str]:
    """Returns the files of a folder that are its log: a run's history, else those of any format."""
    if HISTORY in names:
        return [name for name in names if name in (HISTORY, JOURNAL)]
    return [name for name in names if "/" not in name or name.rpartition("/")[2].startswith(_event_files.NAME)]


def _from_path(path: Path) -> Records:
    if not path.exists() or path.name == HISTORY or (path / HISTORY).is_file():
        return read_records(path)
    for one in _formats():
        if one.matches(path):
            return tidy(one.read(path), str(path))
    known = ", ".join(one.name for one in _formats())
    raise DataError(f"{path} is neither the directory of a run nor a log of a known format. Known: {known}.")


def _formats() -> Iterator[LogFormat]:
    """Yields the registered formats; the last one that was registered is asked first."""
    _load()
    yield from reversed(FORMATS)


@functools.cache
def _load() -> None:
    """Imports the formats of installed packages."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT):
        entry.load()


def tidy(rows: Iterable[Row], where: str) -> Records:
    """Makes records of rows: one per epoch, and one per validation within it.

    Rows of the same step are one. Values of the training within an epoch join the next record, since callbacks see
    them there. Without epochs, each record is one. Steps that count from 0 are counted from 1, as updates done.

    Args:
        rows: as a format yields them.
        where: the log, for errors.

    Raises:
        DataError: if there are no rows, or steps fall.
    """
    merged = _merged(rows, where)
    if not merged:
        raise DataError(f"{where}: it has no records, so there is nothing to replay.")
    validated = any(name.startswith("val_") for row in merged for name in row)
    kept: list[dict[str, Any]] = []
    waiting: dict[str, Any] = {}
    for i, row in enumerate(merged):
        waiting |= row
        last = i + 1 == len(merged)
        closes = last or ("epoch" in row and merged[i + 1].get("epoch") != row["epoch"])
        reports = any(name.startswith("val_") for name in row)
        if closes or reports or (not validated and "epoch" not in row):
            kept.append(waiting)
            waiting = {}
    if kept[0].get("step") == 0:
        for row in kept:
            row["step"] += 1
    return read_records(kept)


def _merged(rows: Iterable[Row], where: str) -> list[dict[str, Any]]:
    """Returns the rows with positions under their own names, those of the same position as one."""
    found: list[dict[str, Any]] = []
    known: tuple[Any, Any] | None = None
    for number, row in enumerate(rows):
        if number >= _MOST_ROWS:
            raise DataError(f"{where}: it has more than {_MOST_ROWS} rows.")
        step, epoch = (next((row[n] for n in names if row.get(n) is not None), None) for names in _POSITIONS)
        values = {n: v for n, v in row.items() if v is not None and n not in _STEP_NAMES + _EPOCH_NAMES}
        values = {n: v for n, v in values.items() if n not in _NO_METRICS}
        if not values and epoch is None:
            continue
        epoch = math.floor(epoch) if epoch is not None and math.isfinite(epoch) else epoch
        place = (step, epoch)
        if found and place == known and place != (None, None):
            found[-1] |= values
            continue
        known = place
        found.append({n: v for n, v in zip(POSITIONS, place, strict=True) if v is not None} | values)
    _complete(found)
    return found


def _complete(rows: list[dict[str, Any]]) -> None:
    """Gives each row the epoch of the row before, or the first known one; drops steps that not all rows have."""
    known = next((row["epoch"] for row in rows if "epoch" in row), None)
    for row in rows if known is not None else ():
        known = row.setdefault("epoch", known)
    if any("step" not in row for row in rows):
        for row in rows:
            row.pop("step", None)
