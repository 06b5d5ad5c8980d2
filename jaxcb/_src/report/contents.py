"""`Contents`: what the report of a run shows, whether it is read from the run's directory or is still in memory."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.history.event_files import images_in
from jaxcb._src.plotting.series import Curves
from jaxcb._src.report.curves import curves_of
from jaxcb._src.report.explain import Explanation, explain
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage.ownership import read_bytes

MOST_MEMBERS = 60  # of a sweep whose curves are drawn
_IMAGE_BYTES = 800_000  # of all images together
_TABLE_BYTES = 1 << 24


class Contents(NamedTuple):
    """What a report shows of a run.

    Attributes:
        name: of the run.
        facts: where it stands, by name; those that are None are left out.
        monitor: the metric by which it is judged, and "min" or "max"; None if no name implies a direction.
        curves: of the run, or of the first members of a sweep.
        members: their number in a sweep; None for a single run.
        table: the columns of a sweep's table, by name.
        explanation: its decisions; None for a sweep, and if they are not known.
        images: tag -> step and the last image, as PNG or JPEG.
        settings: what it was made with, by name.
        processes: what ran, for each process that has trained it.
        checkpoints: of each its path, step, bytes and state.
    """

    name: str
    facts: Sequence[tuple[str, Any]]
    monitor: tuple[str, str] | None
    curves: Sequence[Curves]
    members: int | None = None
    table: Mapping[str, Sequence[Any]] = {}
    explanation: Explanation | None = None
    images: Mapping[str, tuple[int, bytes]] = {}
    settings: Mapping[str, Any] = {}
    processes: Sequence[Mapping[str, Any]] = ()
    checkpoints: Sequence[tuple[str, int, int, str]] = ()


def of_run(run: RunFolder, name: str, member: int | None = None) -> Contents:
    """Reads what a report shows of a run.

    Args:
        run: the run.
        name: of the run.
        member: a member of a sweep, which is shown as a single run; None for the run itself.

    Raises:
        DataError: for a damaged history, or a member that does not exist.
    """
    run.check_history()
    whole = run.is_sweep and member is None
    at, best = run.standing, run.best(member) if member is None or member in run.members else None
    monitored = run.monitor[0] if run.monitor else "metric"
    facts = [
        ("state", at.state),
        ("reason", at.reason),
        ("epochs", f"{at.epoch}" if at.epochs is None else f"{at.epoch} of {at.epochs}"),
        ("steps", at.step),
        (f"best {monitored}", f"{best[0]:.6g} in epoch {best[1] + 1}" if best else None),
        ("seconds of training", None if at.elapsed is None else f"{at.elapsed:.1f}"),
        ("run", run.facts.get("run")),
    ]
    drawn = [(m, f"member {m}") for m in list(run.members)[:MOST_MEMBERS]] if whole else [(member, name)]
    return Contents(
        name,
        facts,
        run.monitor,
        [curves for m, label in drawn if (curves := curves_of(run, m, label)) is not None],
        len(run.members) if whole else None,
        _columns(run.table) if whole and run.table is not None else {},
        None if whole else explain(run, member),
        images_in(run.path, _IMAGE_BYTES),
        run.settings,
        run.processes,
        [(os.path.relpath(c.path, run.path), c.step, c.bytes, c.reason or "complete") for c in run.checkpoints],
    )


def _columns(path: Path) -> dict[str, list[Any]]:
    """Returns the table of a sweep by columns; a row that is too short or too long is left out."""
    lines = read_bytes(path, _TABLE_BYTES).decode("utf-8", "replace").splitlines()
    rows = list(csv.reader(lines))
    if not rows:
        return {}
    whole = [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: [_cell(row[i]) for row in whole] for i, name in enumerate(rows[0])}


def _cell(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell or None
