"""A picture of what configurations of callbacks would have done: epochs saved against value lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.plotting.figure import new_figure, save, whole_ticks


def picture(columns: Mapping[str, list[Any]], monitor: str, path: Path) -> Any:
    """Draws each configuration whose stop is known as a point, and counts the others.

    Args:
        columns: of `WhatIf.columns`.
        monitor: the metric by which they are judged.
        path: the image file to save.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: without matplotlib (`pip install jaxcb[plot]`).
    """
    known = [i for i, saved in enumerate(columns["epochs_saved"]) if saved is not None]
    saved = np.asarray([columns["epochs_saved"][i] for i in known], float)
    lost = np.asarray([columns["value_lost"][i] for i in known], float)
    # the first swept number gives the color
    first = next(iter(columns))
    figure = new_figure((7.5, 4.5), "a picture")
    axis = figure.subplots()
    color = None if first == "outcome" else np.asarray([columns[first][i] for i in known], float)
    points = axis.scatter(saved, lost, c=color, s=18, alpha=0.7)
    if color is not None and len(known):
        figure.colorbar(points, label=first)
    axis.set_xlabel("epochs saved")
    axis.set_ylabel(f"{monitor} lost")
    whole_ticks(axis)
    axis.grid(alpha=0.25)
    axis.set_title(f"{len(known)} configurations stop; for {len(columns['outcome']) - len(known)} no stop is known")
    save(figure, path)
    return figure
