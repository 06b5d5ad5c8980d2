"""The curves of a run as numbers, for pictures, the terminal and the report."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxcb._src.utils.names import is_rate, rate_metric

LOG_RATIO = 20  # a loss that falls by more than this factor is drawn on a logarithmic axis
_DROP = 0.999  # of the factor on the rate that counts as a cut
KINDS = ("cut", "alert", "restart", "best", "stop")  # of marks, from the least to the most important


@dataclass(frozen=True)
class Mark:
    """A point in a run that is marked.

    Attributes:
        x: in epochs; the end of the first epoch is 1.
        kind: one of `KINDS`.
        text: what happened there.
    """

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Curves:
    """The curves of a run.

    Attributes:
        name: of the run.
        series: metric -> positions in epochs and values, float64 (reports,) each.
        rate: the same of the effective learning rate; None if it is not known.
        marks: in order.
    """

    name: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    rate: tuple[np.ndarray, np.ndarray] | None = None
    marks: tuple[Mark, ...] = field(default=())


def positions(steps: Any, epochs: Any) -> np.ndarray:
    """Returns the position of each record in epochs: the end of epoch n at n + 1, validations within it in between."""
    steps, epochs = np.asarray(steps), np.asarray(epochs)
    ends = np.r_[epochs[1:] != epochs[:-1], True] if len(epochs) else np.zeros(0, bool)
    return np.asarray(np.interp(steps, np.r_[0, steps[ends]], np.r_[0, epochs[ends] + 1]), float)


def cut_rows(scale: np.ndarray) -> np.ndarray:
    """Returns the rows at which the callbacks' factor on the learning rate was reduced.

    A row has the rate of its last update, so a reduction took place at the row before the first lower rate.
    """
    return np.flatnonzero(scale[1:] < scale[:-1] * _DROP)


def curves_of_records(name: str, records: Any, marks: Sequence[Mark] = ()) -> Curves:
    """Returns the curves of records: of each metric its reports."""
    at = positions(records.step, records.epoch)
    fresh = records.fresh
    series = {
        metric: (at[fresh[:, i]], records.values[fresh[:, i], i].astype(np.float64))
        for i, metric in enumerate(records.names)
        if fresh[:, i].any()
    }
    found = {of: rate.effective for of, rate in records.rates.items() if rate.effective is not None}
    if "" not in found:  # of several rates each has its own curve
        series |= {rate_metric("learning_rate", of): (at, x.astype(np.float64)) for of, x in found.items()}
    rate = (at, found[""].astype(np.float64)) if "" in found else None
    return Curves(name, series, rate, tuple(marks))


def curves_of_history(name: str, history: Any, marks: Sequence[Mark] = ()) -> Curves:
    """Returns the curves of a `RunHistory`; metrics that are arrays are left out."""
    at = positions(history.step, history.epoch)
    series = {
        metric: (at[history.reported(metric)], np.asarray(history[metric], np.float64)[history.reported(metric)])
        for metric in history
        if not is_rate(metric) and history[metric].ndim == 1
    }
    rate = (at, np.asarray(history["learning_rate"], np.float64)) if "learning_rate" in history else None
    return Curves(name, series, rate, tuple(marks))


def marks_of_result(result: Any) -> tuple[Mark, ...]:
    """Returns the marks of a `Result`: best epochs of callbacks, cuts of the rate, and the stop."""
    history = result.history
    at = positions(history.step, history.epoch)
    marks = [Mark(x, "cut", f"the learning rate was reduced after epoch {x:g}") for x in _cuts(history, at)]
    for name, state in result.callback_states.items():
        best = getattr(state, "best_epoch", None)
        if best is not None and int(best) >= 0:
            marks.append(Mark(int(best) + 1.0, "best", f"best of {name} in epoch {int(best) + 1}"))
    if result.stopped_epoch is not None and len(at):
        marks.append(Mark(float(at[-1]), "stop", str(result.stop_reason)))
    return tuple(sorted(marks, key=lambda mark: mark.x))


def _cuts(history: Any, at: np.ndarray) -> set[float]:
    """Returns the positions at which the callbacks' factor on a learning rate decreased, in epochs."""
    found = set[float]()
    for name in history:
        kind, slash, of = name.partition("/")
        if kind == "lr_scale":
            scale = history[name]
        elif kind == "learning_rate":
            base = history[f"base_learning_rate{slash}{of}"]
            scale = history[name] / np.where(base == 0, 1, base)
        else:
            continue
        found |= {float(x) for x in at[cut_rows(scale)]}
    return found


def panels(runs: Sequence[Curves]) -> dict[str, list[str]]:
    """Returns the panels of a picture: a name, and the metrics in it, a metric and that of the validation together."""
    found: dict[str, list[str]] = {}
    names = dict.fromkeys(name for run in runs for name in run.series)
    for name in sorted(names, key=lambda n: (n.removeprefix("val_") != "loss", n.removeprefix("val_"), n)):
        found.setdefault(name.removeprefix("val_"), []).append(name)
    return found


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most so many points that look the same: of each piece its lowest and its highest, in order."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
    keep = {0, len(x) - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        piece = y[start:end]
        finite = np.flatnonzero(np.isfinite(piece))
        if len(finite):
            keep |= {start + int(finite[np.argmin(piece[finite])]), start + int(finite[np.argmax(piece[finite])])}
    kept = np.asarray(sorted(keep))
    return x[kept], y[kept]


def is_logarithmic(name: str, values: np.ndarray) -> bool:
    """Returns whether a metric is drawn on a logarithmic axis: a loss that falls by more than `LOG_RATIO`."""
    finite = values[np.isfinite(values)]
    return name.endswith("loss") and finite.size > 0 and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min()
