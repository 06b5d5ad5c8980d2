"""What came nearest to firing without doing so: patience that was nearly used up, thresholds that were nearly reached.

A callback is measured by its fields: one with `patience` and a state with `wait`, one with `best` and `min_delta`, and
one with a threshold. So a user's callback with these names is measured, too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.history.reader import Records
from jaxcb._src.replay.program import Replayed

_THRESHOLDS = ("stopping_threshold", "divergence_threshold", "baseline")


class NearMiss(NamedTuple):
    """A decision that nearly was another one.

    Attributes:
        epoch: from 0.
        step: updates done.
        callback: the name of the callback.
        text: what it lacked.
        share: how near it came: 1 for a decision that fired.
    """

    epoch: int
    step: int
    callback: str
    text: str
    share: float


def near_misses(names: Mapping[str, Any], records: Records, out: Replayed) -> list[NearMiss]:
    """Returns for each callback and each of its conditions the nearest miss, the nearest of all first."""
    found = []
    # the record at which the run stopped is the last one that decided
    alive = np.concatenate([[True], ~np.asarray(out.stopped)[:-1]])
    for name, callback in names.items():
        fires = np.zeros(len(records.step), bool)
        for action in out.actions:
            if action.owner == name:
                fires |= np.asarray(action.when)
        monitor = getattr(callback, "monitor", None)
        values = fresh = None
        if isinstance(monitor, str) and monitor in records.names:
            at = records.names.index(monitor)
            values, fresh = records.values[:, at].astype(np.float64), records.fresh[:, at] & alive
        state = out.each.get(name)
        for row, text, share in (
            *_patience(callback, state, fires | ~alive),
            *_improvement(callback, state, values, fresh),
            *_thresholds(callback, values, fresh, fires),
        ):
            found.append(NearMiss(int(records.epoch[row]), int(records.step[row]), name, text, float(share)))
    return sorted(found, key=lambda miss: -miss.share)


Miss = tuple[int, str, float]


def _patience(callback: Any, state: Any, fires: np.ndarray) -> Iterator[Miss]:
    """Yields where the most of the patience was used up without an action."""
    patience, wait = getattr(callback, "patience", None), getattr(state, "wait", None)
    if patience is None or wait is None or np.ndim(wait) != 1:
        return
    waited = np.where(fires, 0, np.asarray(wait))
    row = int(np.argmax(waited))
    if waited[row]:
        unit = getattr(callback, "patience_in", "reports")
        yield row, f"patience {waited[row]} of {int(patience)} {unit}", waited[row] / max(int(patience), 1)


def _improvement(callback: Any, state: Any, values: Any, fresh: Any) -> Iterator[Miss]:
    """Yields where a report came nearest to an improvement without being one."""
    best, mode = getattr(state, "best", None), getattr(callback, "mode", None)
    if best is None or values is None or mode not in ("min", "max") or np.ndim(best) != 1:
        return
    before = np.concatenate([[np.nan], np.asarray(best, np.float64)[:-1]])
    delta = abs(float(getattr(callback, "min_delta", 0.0)))
    if getattr(callback, "threshold_mode", "abs") == "rel":
        delta = delta * np.abs(before)
    limit = before - delta if mode == "min" else before + delta
    short = values - limit if mode == "min" else limit - values
    # as a callback compares, in float32: what improved is in its state
    missed = fresh & np.isfinite(short) & (np.asarray(best)[:] == before.astype(np.float32))
    if missed.any():
        row = int(np.argmin(np.where(missed, short, np.inf)))
        lacked, name = max(short[row], 0), callback.monitor
        text = f"{name} {values[row]:.6g} was {lacked:.3g} short of an improvement on {before[row]:.6g}"
        yield row, text, 1 - min(1.0, lacked / max(abs(before[row]), 1e-12))


def _thresholds(callback: Any, values: Any, fresh: Any, fires: np.ndarray) -> Iterator[Miss]:
    for field in _THRESHOLDS:
        limit = getattr(callback, field, None)
        if limit is None or values is None:
            continue
        limit = float(limit)
        off = np.where(fresh & ~fires & np.isfinite(values), np.abs(values - limit), np.inf)
        row = int(np.argmin(off))
        if np.isfinite(off[row]):
            text = f"{callback.monitor} {values[row]:.6g} was {off[row]:.3g} away from {field}={limit:.6g}"
            yield row, text, 1 - min(1.0, off[row] / max(abs(limit), 1e-12))
