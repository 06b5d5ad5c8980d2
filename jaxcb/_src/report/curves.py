"""The curves of a recorded run with its marks: stops, best epochs, cuts, restarts, numbers that are not finite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcb._src.history.reader import Records
from jaxcb._src.plotting.series import Curves, Mark, curves_of_records, cut_rows, positions
from jaxcb._src.report.judge import best_of
from jaxcb._src.report.run_folder import RunFolder

_MOST_MARKS = 200  # of a kind; a picture of more is a wall


def curves_of(run: RunFolder, member: int | None, name: str) -> Curves | None:
    """Returns the curves of a run, or of a member of a sweep; None before the first record."""
    records = run.members.get(member)
    if records is None:
        return None
    marks = marks_of(records, run.stops(member), run.monitor, run.processes)
    return curves_of_records(name, records, sorted(marks, key=lambda mark: mark.x))


def marks_of(
    records: Records, stops: Any, monitor: tuple[str, str] | None, processes: Sequence[Mapping[str, Any]]
) -> Iterator[Mark]:
    """Yields the marks of a run.

    Args:
        records: of the run.
        stops: of its record, each with owner, reason, step and epoch.
        monitor: the metric by which it is judged, and its direction; None for no best epoch.
        processes: what ran, each with the step from which it trained.
    """
    at = positions(records.step, records.epoch)
    if monitor is not None and (best := best_of(records, *monitor)) is not None:
        row = int(np.flatnonzero(records.epoch == best[1])[-1])
        yield Mark(float(at[row]), "best", f"best {monitor[0]} {best[0]:.6g} in epoch {best[1] + 1}")
    for of, rate in records.rates.items():
        if rate.scale is None:
            continue
        for row in cut_rows(rate.scale)[:_MOST_MARKS].tolist():
            factor = rate.scale[row + 1] / rate.scale[row]
            text = f"learning rate{f' of {of}' if of else ''} times {factor:.4g} after epoch"
            yield Mark(float(at[row]), "cut", f"{text} {records.epoch[row] + 1}")
    for i, name in enumerate(records.names):
        broken = np.flatnonzero(records.fresh[:, i] & ~np.isfinite(records.values[:, i]))
        if len(broken):
            text = f"{name} is {records.values[broken[0], i]} for the first time in epoch"
            yield Mark(float(at[broken[0]]), "alert", f"{text} {records.epoch[broken[0]] + 1}")
    for process in processes[1:][:_MOST_MARKS]:
        step = process.get("from_step")  # runs of earlier versions do not say it
        if isinstance(step, int):
            x = float(np.interp(step, np.r_[0, records.step], np.r_[0, at]))
            yield Mark(x, "restart", f"resumed at step {step}, {process.get('began', '')}")
    for owner, reason, step, epoch, *_ in stops[:_MOST_MARKS]:
        row = min(int(np.searchsorted(records.step, step)), len(at) - 1)
        yield Mark(float(at[row]), "stop", f"{owner}: {reason} (epoch {epoch + 1})")
