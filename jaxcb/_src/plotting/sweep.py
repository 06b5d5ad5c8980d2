"""Plots of a sweep: the curves of all members, and parallel coordinates."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.plotting.figure import new_figure, save
from jaxcb._src.utils.local_path import local_path

_DECADES = 20  # values that span a larger factor are drawn on a logarithmic axis


def picture(result: Any, monitor: str, mode: str, path: str | Path | None) -> Any:
    """Draws a sweep.

    Args:
        result: a `SweepResult`.
        monitor: the metric.
        mode: "min" or "max".
        path: an image file to save.

    Returns:
        The matplotlib figure: at the top the curve of each member with its end marked, at the bottom a line per member
        through its swept values and its best report.
    """
    path = None if path is None else local_path("SweepResult.plot", "path", path)
    figure = new_figure((9.0, 7.5))
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    best = result.bests(monitor, mode)
    score = best if mode == "min" else -best  # low is good
    colors = colormaps["viridis"](Normalize(np.nanmin(_ranked(score)), np.nanmax(_ranked(score)))(_ranked(score)))
    above, below = figure.subplots(2, 1)
    winner = int(np.nanargmin(score)) if np.isfinite(score).any() else 0
    _curves(above, result, monitor, colors, winner)
    _coordinates(below, result, monitor, best, colors, winner)
    figure.suptitle(f"{len(result)} members; yellow ones end worse, the best is drawn in red", fontsize=10)
    save(figure, path)
    return figure


def _ranked(score: np.ndarray) -> np.ndarray:
    """Returns the rank of each score, because ranks spread the colours evenly, whatever the outliers."""
    order = np.argsort(np.argsort(np.where(np.isnan(score), np.inf, score), kind="stable"), kind="stable")
    return order.astype(float)


def _curves(axis: Any, result: Any, monitor: str, colors: np.ndarray, winner: int) -> None:
    drawn = []
    for part in result.parts:
        if monitor not in part.history:
            continue
        values, epochs = part.history[monitor], part.history.epoch + 1
        for row, member in enumerate(part.members):
            known = part.history.rows_of(row)
            known = known[np.isfinite(values[known, row])]
            if not len(known):
                continue
            drawn.append(values[known, row])
            first = member.number == winner
            color = "tab:red" if first else colors[member.number]
            axis.plot(epochs[known], drawn[-1], color=color, linewidth=2.0 if first else 0.9, zorder=3 if first else 2)
            if part.reason_of(row) is not None:
                axis.plot(epochs[known[-1]], drawn[-1][-1], "x", color=color, markersize=6, zorder=4)
    everything = np.concatenate(drawn) if drawn else np.zeros(0)
    if everything.size and everything.min() > 0 and everything.max() > _DECADES * everything.min():
        axis.set_yscale("log")
    axis.plot([], [], "x", color="gray", label="stopped")
    axis.legend(fontsize=8)
    axis.set_xlabel("epoch")
    axis.set_ylabel(monitor.replace("_", " "))
    axis.grid(alpha=0.25)


def _coordinates(axis: Any, result: Any, monitor: str, best: np.ndarray, colors: np.ndarray, winner: int) -> None:
    names = [*result.points[0], monitor]
    columns = [np.asarray([p[n] for p in result.points], float) for n in names[:-1]] + [best.astype(float)]
    heights = np.stack([_height(column) for column in columns])
    at = np.arange(len(names))
    for i in sorted(range(len(result)), key=lambda i: i == winner):
        color = "tab:red" if i == winner else colors[i]
        axis.plot(at, heights[:, i], color=color, linewidth=2.2 if i == winner else 0.9, alpha=0.9)
    for x, column in zip(at, columns, strict=True):
        axis.axvline(x, color="gray", linewidth=0.8)
        known = column[np.isfinite(column)]
        if known.size:
            axis.text(x, 1.03, f"{known.max():.3g}", ha="center", fontsize=8)
            axis.text(x, -0.08, f"{known.min():.3g}", ha="center", fontsize=8)
    axis.set_xticks(at, [n.replace(".", "\n") for n in names[:-1]] + [f"best\n{monitor}"], fontsize=8)
    axis.tick_params(axis="x", pad=14)
    axis.set_yticks([])
    axis.set_ylim(-0.12, 1.12)
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _height(column: np.ndarray) -> np.ndarray:
    """Returns the height of each value on its axis, from 0 to 1; logarithmic if the values span decades."""
    known = column[np.isfinite(column)]
    if not known.size:
        return np.full(len(column), np.nan)
    if known.min() > 0 and known.max() > _DECADES * known.min():
        column, known = np.log(column), np.log(known)
    span = known.max() - known.min()
    return (column - known.min()) / span if span > 0 else np.where(np.isfinite(column), 0.5, np.nan)
