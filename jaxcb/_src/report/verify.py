"""`verify`: whether all of a run's files are whole and agree, and what can be repaired.

Nothing of the run is executed: manifests and logs are parsed by their forms, and arrays are read by TensorStore.
"""

import csv
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.layout import CHECKPOINT, CHECKPOINTS, FACTS, RESULT, listed
from jaxcb._src.checkpointing.manifest import DamagedError, UnusableError
from jaxcb._src.core.metric_names import MISSING
from jaxcb._src.history.reader import HISTORY, read_members
from jaxcb._src.report.checkpoints import Checkpoint
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.report.stored_arrays import UnreadableError, check_array
from jaxcb._src.storage.ownership import Prefix, RunRecord, is_inside
from jaxcb._src.utils.errors import DataError

_LEFT = re.compile(r"\.saving-([0-9a-f]{16})-.*", re.DOTALL)  # a checkpoint that a killed process has begun
_PLACES = ("epoch", "step", "member")


class Finding(NamedTuple):
    """What was checked, and what was found.

    Attributes:
        what: a path in the run, or a part of it.
        problem: what is wrong; empty if nothing is.
        repair: what a repair would do; empty if there is nothing that can be done, or nothing to do.
        apply: does it.
    """

    what: str
    problem: str = ""
    repair: str = ""
    apply: Callable[[], Any] | None = None


def verify(run: RunFolder, *, arrays: bool = True) -> Iterator[Finding]:
    """Checks a run.

    Args:
        run: the run.
        arrays: whether each array is read, too, and not only its bytes compared with their checksums.

    Yields:
        A finding for each part of the run, in order: its record, checkpoints, logs.
    """
    record: RunRecord | None = None
    try:
        record = run.record
        if record is not None:
            record.check(run.facts.get("record"))
        yield Finding("record of files" if record is not None else "record of files (none: an old run)")
    except ValueError as error:
        yield Finding("record of files", str(error))
    for checkpoint in run.checkpoints:
        yield _checkpoint(run, checkpoint, record, arrays)
    yield from _leftovers(run)
    if run.saved is None and run.checkpoints:
        yield Finding("checkpoints", "none of them can be used, so the run cannot resume")
    yield from _logs(run, record)


def _checkpoint(run: RunFolder, checkpoint: Checkpoint, record: RunRecord | None, arrays: bool) -> Finding:
    what = os.path.relpath(checkpoint.path, run.path)
    try:
        saved = _manifest.verify(checkpoint.path, FACTS)
        if record is not None and saved.run not in (None, record.run):
            return Finding(what, f"it is of another run, {saved.run}")
        for entry in saved.entries if arrays else ():
            check_array(saved, entry)
    except DamagedError as error:
        try:
            _manifest.read(checkpoint.path)
        except UnusableError:  # no one knows which files are its own
            return Finding(what, f"it is damaged: {error}")
        return Finding(what, f"it is damaged: {error}", "delete its files", lambda: _manifest.delete(checkpoint.path))
    except (UnusableError, UnreadableError) as error:
        return Finding(what, str(error))
    return Finding(what)


def _leftovers(run: RunFolder) -> Iterator[Finding]:
    """Yields what killed processes have left: begun checkpoints, and half-deleted ones."""
    for store in (CHECKPOINTS, RESULT):
        for name in sorted(listed(run.path / store)):
            path = run.path / store / name
            left = _LEFT.fullmatch(name)
            if left is not None and run.record is not None and left[1] == run.record.run and not path.is_symlink():
                yield Finding(f"{store}/{name}", "a killed process did not complete it", "delete it", _removing(path))
            elif CHECKPOINT.fullmatch(name) and _manifest.is_being_deleted(path):
                problem = "a killed process did not complete its deletion"
                yield Finding(f"{store}/{name}", problem, "complete it", lambda path=path: _manifest.delete(path))


def _removing(path: Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(path)


def _logs(run: RunFolder, record: RunRecord | None) -> Iterator[Finding]:
    """Yields for each log whether it begins as at the last checkpoint, and agrees with the history."""
    positions = run.facts.get("files", {})
    history = _table(run.path / HISTORY)
    for name in sorted({HISTORY, *positions}):
        path = run.path / name
        if not is_inside(name):
            yield Finding(name, "its name leads out of the run, so it is not read")
            continue
        if not path.exists() and not _holds(positions.get(name)):
            continue  # nothing was written yet
        problem = _difference(path, positions.get(name), record.rewritten(name) if record is not None else 0)
        if not problem and name == HISTORY:
            problem = _history_problem(path)
        if not problem and name.endswith(".csv"):
            problem = _disagreement(path, history)
        torn = _torn(path) if not problem or name == HISTORY else 0
        if torn:
            whole = path.stat().st_size - torn
            problem = f"its last line is incomplete ({torn} bytes)"
            yield Finding(name, problem, "cut it off", lambda path=path, whole=whole: os.truncate(path, whole))
        else:
            yield Finding(name, problem)


def _holds(position: Any) -> bool:
    return bool(position.get("lines") or position.get("end") if isinstance(position, dict) else position)


def _difference(path: Path, position: Any, rewritten: int) -> str:
    """Returns how a file differs from its position in the last checkpoint; empty if it begins as it did."""
    if position is None or not _holds(position):
        return ""
    if not path.is_file():
        return "it is missing, but the last checkpoint names it"
    if isinstance(position, int):  # of a run of an earlier version: a number of lines
        with path.open("rb") as file:
            lines = sum(1 for _ in itertools.islice(file, position))
        return "" if lines >= position else f"it has {lines} lines, but had {position} at the last checkpoint"
    if "end" in position:
        there = path.stat().st_size
        return "" if there >= position["end"] else f"it has {there} bytes, but had {position['end']}"
    if position["rewritten"] != rewritten:
        return ""  # it got further columns since, so its older checksum no longer holds
    difference = Prefix(position["bytes"], position["checksum"]).difference(path)
    return "" if difference is None else f"it {difference} at the last checkpoint"


def _torn(path: Path) -> int:
    """Returns the size of an incomplete last line, which a killed process may leave."""
    if not path.is_file() or not path.stat().st_size:
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        data = file.read()
    return 0 if data.endswith(b"\n") else len(data) - data.rfind(b"\n") - 1


def _history_problem(path: Path) -> str:
    try:
        read_members(path)
    except (DataError, OSError) as error:
        return "" if _torn(path) else str(error)
    return ""


Rows = dict[tuple[str, ...], dict[str, str]]


def _table(path: Path) -> Rows:
    """Returns the rows of a CSV file by their places; empty for another file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"epoch", "step"} <= set(reader.fieldnames or ()):
                return {}
            return {tuple(str(row.get(place)) for place in _PLACES): row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}


def _disagreement(path: Path, history: Rows) -> str:
    """Returns the first number in which a log differs from the history; empty if there is none."""
    if path.name == HISTORY:
        return ""
    for place, row in _table(path).items():
        own = history.get(place, {})
        for name, cell in row.items():
            if name in own and not _equal(cell, own[name]):
                return f"{name} in epoch {place[0]} (step {place[1]}) is {cell}, in {HISTORY} {own[name]}"
    return ""


def _equal(one: Any, other: Any) -> bool:
    if one == other or MISSING in (one, other):
        return True
    try:
        return bool(np.float32(one) == np.float32(other) or (np.isnan(float(one)) and np.isnan(float(other))))
    except (TypeError, ValueError):
        return False
