"""Figures of matplotlib, a package that need not be installed: it is imported when the first one is made."""

from pathlib import Path
from typing import Any


def new_figure(size: tuple[float, float], what: str = "plot()") -> Any:
    """Returns an empty figure.

    Args:
        size: width and height, in inches.
        what: what needs it, for the error.

    Raises:
        ImportError: without matplotlib (`pip install jaxcb[plot]`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"{what} needs matplotlib: pip install jaxcb[plot].") from None
    return Figure(figsize=size, layout="constrained")


def whole_ticks(axis: Any) -> None:
    """Puts the ticks of a horizontal axis at integers, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def save(figure: Any, path: Path | None) -> None:
    """Saves a figure as an image file, in a directory that need not exist; nothing for None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
