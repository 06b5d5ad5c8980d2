"""Pictures of several runs: their curves over one another, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.plotting.figure import draw_marks, new_figure, save, whole_ticks
from jaxcb._src.plotting.series import Curves, is_logarithmic, panels, thinned

_MOST = 2000  # points of a curve
_LEGEND = 12  # runs with a name of their own


def overlay(runs: Sequence[Curves], path: Path, metrics: Sequence[str] = ()) -> Any:
    """Draws each metric of all runs, that of the validation as a full line; marks of a single run are drawn, too.

    Args:
        runs: the runs.
        path: the image file to save.
        metrics: those to draw; all if empty.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: without matplotlib (`pip install jaxcb[plot]`).
    """
    shown = {name: [m for m in inside if not metrics or m in metrics] for name, inside in panels(runs).items()}
    shown = {name: inside for name, inside in shown.items() if inside}
    rated = [run for run in runs if run.rate is not None and not metrics]
    count = max(1, len(shown) + bool(rated))
    figure = new_figure((8, 2.4 * count + 0.8), "a picture")
    axes = np.atleast_1d(figure.subplots(count, 1, sharex=True))
    for axis, (name, inside) in zip(axes, shown.items(), strict=False):
        for number, run in enumerate(runs):
            for metric in (m for m in inside if m in run.series):
                x, y = thinned(*run.series[metric], _MOST)
                dashed = not metric.startswith("val_") and len(inside) > 1
                label = run.name if metric == inside[-1] and number < _LEGEND and len(runs) > 1 else None
                label = metric if len(runs) == 1 else label
                axis.plot(x, y, "--" if dashed else "-", color=f"C{number % 10}", linewidth=1.2, label=label)
        if is_logarithmic(name, np.concatenate([run.series[m][1] for run in runs for m in inside if m in run.series])):
            axis.set_yscale("log")
        axis.set_ylabel(name.replace("_", " "))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="best")
    for number, run in enumerate(rated):
        assert run.rate is not None
        axes[-1].plot(*thinned(*run.rate, _MOST), color=f"C{number % 10}", drawstyle="steps-pre", linewidth=1.2)
        axes[-1].set_ylabel("learning rate")
    for axis in axes:
        axis.grid(alpha=0.25)
        draw_marks(axis, runs[0].marks if len(runs) == 1 else ())
    axes[-1].set_xlabel("epoch")
    whole_ticks(axes[-1])
    save(figure, path)
    return figure
