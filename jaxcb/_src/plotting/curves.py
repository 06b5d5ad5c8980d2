"""Plots of a run's curves."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.names import is_rate

_LOG_RATIO = 20  # a loss that falls by more than this factor is drawn on a logarithmic axis
_MARKED_ROWS = 60  # up to this number of rows, each one is marked by a dot


def curves(result: Any, path: str | Path | None = None) -> Any:
    """Draws each metric together with its validation metric, and the learning rate, over the epochs.

    Marks the stop, the best epoch of an `EarlyStopping`, and the callbacks' reductions of the learning rate.

    Args:
        result: a `Result`.
        path: an image file to save.

    Returns:
        The matplotlib figure.
    """
    path = None if path is None else local_path("Result.plot", "path", path)
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ImportError("plot() needs matplotlib: pip install jaxcb[plot].") from None
    history = result.history
    panels = _panels(history)
    rates = _shown_rates(history)
    count = len(panels) + bool(rates)
    figure = Figure(figsize=(7.5, 2.2 * max(count, 1) + 0.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(max(count, 1), 1, sharex=True))
    at = _positions(history)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        _draw_metric(axis, history, at, name, lines)
    for rate in rates:
        _draw_rate(axes[-1], history, at, rate, alone=len(rates) == 1)
    marks = {}
    for axis in axes:
        marks = _mark(axis, result, at)
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
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


def _panels(history: Any) -> dict[str, list[tuple[str, str]]]:
    """Returns the panels by name, the loss first, each with its lines: a metric's name and a label."""
    scalars = [n for n in history if not is_rate(n) and history[n].ndim == 1]
    train = sorted((n for n in scalars if not n.startswith("val_")), key=lambda n: n != "loss")
    panels = {n: [(n, "train")] for n in train}
    for name in (n for n in scalars if n.startswith("val_")):
        panel = name.removeprefix("val_")
        twins = [n for n in train if panel == n or panel.endswith(f"_{n}")]
        twin = max(twins, key=len, default=panel)  # val_wiki_loss belongs to loss if there is no wiki_loss
        label = "validation" if panel == twin else panel.removesuffix(f"_{twin}")
        panels.setdefault(twin, []).append((name, label))
    return panels


def _positions(history: Any) -> np.ndarray:
    """Returns the position of each row in epochs: the end of epoch n at n + 1, validations within it in between."""
    ends = np.r_[history.epoch[1:] != history.epoch[:-1], True] if len(history.epoch) else np.zeros(0, bool)
    steps = np.interp(history.step, np.r_[0, history.step[ends]], np.r_[0, history.epoch[ends] + 1])
    return np.asarray(steps, float)


def _draw_metric(axis: Any, history: Any, at: np.ndarray, name: str, lines: list[tuple[str, str]]) -> None:
    marker = "." if len(at) <= _MARKED_ROWS else None
    drawn = [np.zeros(0)]
    for curve, label in lines:
        reported = history.reported(curve)
        drawn.append(history[curve][reported])
        axis.plot(at[reported], drawn[-1], marker=marker, markersize=4, linewidth=1.4, label=label)
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if name.endswith("loss") and values.size and values.min() > 0 and values.max() > _LOG_RATIO * values.min():
        axis.set_yscale("log")
    axis.set_ylabel(name.replace("_", " "))


def _shown_rates(history: Any) -> list[str]:
    """Returns the names of the rates to draw: in force, or else the callbacks' factors."""
    kinds = ([n for n in history if n.partition("/")[0] == kind] for kind in ("learning_rate", "lr_scale"))
    return next(filter(None, kinds), [])


def _draw_rate(axis: Any, history: Any, at: np.ndarray, name: str, *, alone: bool) -> None:
    rate, base = history[name], history.get("base_learning_rate")
    kind, _, of = name.partition("/")
    if not alone:
        axis.plot(at, rate, linewidth=1.4, drawstyle="steps-pre", label=of)
        axis.set_ylabel(kind.replace("_", " ").replace("lr", "rate"))
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


def _mark(axis: Any, result: Any, at: np.ndarray) -> dict[str, Any]:
    """Draws the vertical lines, and returns one of each kind by its name."""
    marks = {}
    for state in result.callback_states.values():
        best = getattr(state, "best_epoch", None)
        if best is not None and int(best) >= 0:
            marks["best epoch"] = axis.axvline(int(best) + 1, color="tab:green", linestyle="--", linewidth=1.1)
    for epoch in cuts(result.history):
        marks["rate cut"] = axis.axvline(epoch, color="tab:purple", linestyle=":", linewidth=1.3)
    if result.stopped_epoch is not None and len(at):
        marks["stop"] = axis.axvline(at[-1], color="tab:red", linewidth=1.1)
    return marks


def cuts(history: Any) -> list[float]:
    """Returns the positions at which the callbacks' factor on a learning rate decreased, in epochs."""
    at, found = _positions(history), set[float]()
    for name in history:
        kind, slash, of = name.partition("/")
        if kind == "lr_scale":
            scale = history[name]
        elif kind == "learning_rate":
            base = history[f"base_learning_rate{slash}{of}"]
            scale = history[name] / np.where(base == 0, 1, base)
        else:
            continue
        # a row has the rate of its last update, so a reduction took place at the row before the first lower rate
        found |= {float(at[i]) for i in range(len(scale) - 1) if scale[i + 1] < scale[i] * 0.999}
    return sorted(found)
