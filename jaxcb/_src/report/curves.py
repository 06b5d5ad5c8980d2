"""The curves of a recorded run with its marks: stops, best epochs, cuts of the rate."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcb._src.history.reader import Records
from jaxcb._src.plotting.series import Curves, Mark, curves_of_records, cut_rows, positions
from jaxcb._src.report.run_folder import RunFolder, best_of

_MOST_MARKS = 200  # of a kind; a picture of more is a wall


def curves_of(run: RunFolder, member: int | None, name: str) -> Curves | None:
    """Returns the curves of a run, or of a member of a sweep; None before the first record."""
    records = run.members.get(member)
    if records is None:
        return None
    return curves_of_records(name, records, sorted(marks_of(run, records, run.stops(member)), key=lambda mark: mark.x))


def marks_of(run: RunFolder, records: Records, stops: Any) -> Iterator[Mark]:
    """Yields the marks of a run."""
    at = positions(records.step, records.epoch)
    if run.monitor is not None and (best := best_of(records, *run.monitor)) is not None:
        row = int(np.flatnonzero(records.epoch == best[1])[-1])
        yield Mark(float(at[row]), "best", f"best {run.monitor[0]} {best[0]:.6g} in epoch {best[1] + 1}")
    for of, rate in records.rates.items():
        if rate.scale is None:
            continue
        for row in cut_rows(rate.scale)[:_MOST_MARKS].tolist():
            factor = rate.scale[row + 1] / rate.scale[row]
            text = f"learning rate{f' of {of}' if of else ''} times {factor:.4g} after epoch"
            yield Mark(float(at[row]), "cut", f"{text} {records.epoch[row] + 1}")
    for owner, reason, step, epoch, *_ in stops[:_MOST_MARKS]:
        row = min(int(np.searchsorted(records.step, step)), len(at) - 1)
        yield Mark(float(at[row]), "stop", f"{owner}: {reason} (epoch {epoch + 1})")
