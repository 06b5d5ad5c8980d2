"""Plots of a run's curves."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.plotting.figure import draw_marks, new_figure, save, whole_ticks
from jaxcb._src.plotting.series import LOG_RATIO, is_logarithmic, marks_of_result, positions
from jaxcb._src.utils.errors import did_you_mean, shown
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.names import is_rate

_RATE_POINTS = 1000  # at which a schedule is drawn
_MARKED_ROWS = 60  # up to this number of rows, each one is marked by a dot


def curves(
    result: Any,
    path: str | Path | None = None,
    names: Sequence[str] | None = None,
    schedule: Callable[[Any], Any] | None = None,
) -> Any:
    """Draws each metric together with its validation metric, and the learning rate, over the epochs.

    The rate is drawn at each update where it follows a schedule, so that a warm-up within an epoch is seen, and left
    out where it is constant. Marks the stop, the best epoch of an `EarlyStopping`, and the callbacks' reductions of the
    learning rate.

    Args:
        result: a `Result`.
        path: an image file to save.
        names: names of metrics to draw, in this order; None for all.
        schedule: the schedule of the learning rate, updates done -> rate; None if there is none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: for a name that was not recorded, or is not that of a scalar.
    """
    path = None if path is None else local_path("Result.plot", "path", path)
    history = result.history
    names = None if names is None else _checked_names(history, names)
    panels = _panels(history, names)
    rates = _rates_to_draw(history, names)
    count = len(panels) + bool(rates)
    figure = new_figure((7.5, 2.2 * max(count, 1) + 0.9))
    axes = np.atleast_1d(figure.subplots(max(count, 1), 1, sharex=True))
    at = positions(history.step, history.epoch)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        _draw_metric(axis, history, at, name, lines)
    for rate in rates:
        _draw_rate(axes[-1], history, at, rate, schedule, alone=len(rates) == 1)
    marks = {}
    for axis in axes:
        marks = draw_marks(axis, marks_of_result(result))
        axis.grid(alpha=0.25)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(fontsize=8, loc="best")
    if marks:
        figure.legend(
            marks.values(), marks.keys(), fontsize=8, ncols=len(marks), loc="outside upper right", frameon=False
        )
    figure.align_ylabels()
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(0, None)
    whole_ticks(axes[-1])
    save(figure, path)
    return figure


def _checked_names(history: Any, names: Any) -> tuple[str, ...]:
    """Returns the names of scalars that `names` lists; one name stands for a list of it."""
    several = isinstance(names, Iterable) and not isinstance(names, str) and not hasattr(names, "dtype")
    listed: tuple[Any, ...] = tuple(names) if several else (names,)
    scalars = [n for n in history if history[n].ndim == 1]
    for name in listed:
        if not isinstance(name, str) or name not in scalars:
            raise ValueError(
                f"Result.plot: names has {shown(name)}, expected names of recorded scalars: {', '.join(scalars)}."
                f"{did_you_mean(str(name), scalars)}"
            )
    if not listed:
        raise ValueError(f"Result.plot: names is empty. Leave it out for all: {', '.join(scalars)}.")
    return listed


def _rates_to_draw(history: Any, names: tuple[str, ...] | None) -> list[str]:
    """Returns the rates to draw: those requested, or those in force (else the callbacks' factors) if one changes."""
    if names is not None:
        return [n for n in names if is_rate(n)]
    kinds = ([n for n in history if n.partition("/")[0] == kind] for kind in ("learning_rate", "lr_scale"))
    found = next(filter(None, kinds), [])
    columns = [history[n] for n in history if is_rate(n)]
    return found if any(len(c) and not np.all(c == c[0]) for c in columns) else []


def _panels(history: Any, names: tuple[str, ...] | None = None) -> dict[str, list[tuple[str, str]]]:
    """Returns the panels by name, the loss first, each with its lines: a metric's name and a label."""
    scalars = [n for n in names or history if not is_rate(n) and history[n].ndim == 1]
    train = sorted((n for n in scalars if not n.startswith("val_")), key=lambda n: n != "loss")
    panels = {n: [(n, "train")] for n in train}
    for name in (n for n in scalars if n.startswith("val_")):
        panel = name.removeprefix("val_")
        twins = [n for n in train if panel == n or panel.endswith(f"_{n}")]
        twin = max(twins, key=len, default=panel)  # val_wiki_loss belongs to loss if there is no wiki_loss
        label = "validation" if panel == twin else panel.removesuffix(f"_{twin}")
        panels.setdefault(twin, []).append((name, label))
    if names is None:
        return panels
    return dict(sorted(panels.items(), key=lambda panel: min(names.index(name) for name, _ in panel[1])))


def _draw_metric(axis: Any, history: Any, at: np.ndarray, name: str, lines: list[tuple[str, str]]) -> None:
    marker = "." if len(at) <= _MARKED_ROWS else None
    drawn = [np.zeros(0)]
    for curve, label in lines:
        reported = history.reported(curve)
        drawn.append(history[curve][reported])
        axis.plot(at[reported], drawn[-1], marker=marker, markersize=4, linewidth=1.4, label=label)
    if is_logarithmic(name, np.concatenate(drawn)):
        axis.set_yscale("log")
    axis.set_ylabel(name.replace("_", " "))


def _scheduled(history: Any, at: np.ndarray, schedule: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the schedule's rate at updates of the run, and their positions in epochs.

    The history has one rate per row, and between rows the schedule is known: it is a function of the updates done. None
    where the rows do not agree with it: a callback has set the rate, or the optimizer began before this run.
    """
    if not len(at) or "base_learning_rate" not in history or "updates" in history:
        return None
    steps = np.unique(np.linspace(1, history.step[-1], min(int(history.step[-1]), _RATE_POINTS)).astype(np.int32))
    counts = np.r_[history.step, steps].astype(np.int32) - 1
    values = np.asarray(jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.float32))(counts))
    rows, values = values[: len(at)], values[len(at) :]
    if not np.allclose(rows, history["base_learning_rate"], rtol=1e-3, atol=0):
        return None
    return values, np.interp(steps, np.r_[0, history.step], np.r_[0, at])


def _draw_rate(
    axis: Any, history: Any, at: np.ndarray, name: str, schedule: Callable[[Any], Any] | None, *, alone: bool
) -> None:
    rate, base = history[name], history.get("base_learning_rate")
    kind, _, of = name.partition("/")
    if not alone:
        axis.plot(at, rate, linewidth=1.4, drawstyle="steps-pre", label=of)
        axis.set_ylabel(kind.replace("_", " ").replace("lr", "rate"))
        return
    by_steps = None if schedule is None or name != "learning_rate" else _scheduled(history, at, schedule)
    if by_steps is not None:
        values, where = by_steps
        # the callbacks' factor of a row holds for the steps up to it
        factor = (rate / np.where(base == 0, 1, base))[np.minimum(np.searchsorted(at, where), len(at) - 1)]
        if not np.allclose(factor, 1.0, rtol=1e-3):
            axis.plot(where, values, color="tab:gray", linestyle="--", linewidth=1.2, label="schedule alone")
        axis.plot(where, values * factor, color="tab:purple", linewidth=1.4, label="in force")
        if np.all(values * factor > 0) and np.max(values) > LOG_RATIO * np.min(values * factor):
            axis.set_yscale("log")
        axis.set_ylabel("learning rate")
        return
    # a row has the rate of its last update, which is that of the epoch that ends there
    if base is not None and name == "learning_rate" and not np.allclose(rate, base, rtol=1e-3):
        axis.plot(
            at, base, color="tab:gray", linestyle="--", linewidth=1.2, drawstyle="steps-pre", label="schedule alone"
        )
    axis.plot(at, rate, color="tab:purple", linewidth=1.4, drawstyle="steps-pre", label="in force")
    if np.all(rate > 0):
        axis.set_yscale("log")
    axis.set_ylabel(name.replace("_", " ").replace("lr", "rate"))
