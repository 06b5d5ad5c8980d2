"""Figures of matplotlib, a package that need not be installed: it is imported when the first one is made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcb._src.plotting.series import Mark

# kind of mark -> its name in a legend, color and line style
_MARKS = {
    "best": ("best epoch", "tab:green", "--"),
    "cut": ("rate cut", "tab:purple", ":"),
    "alert": ("alert", "tab:olive", ":"),
    "restart": ("restart", "tab:orange", "-."),
    "stop": ("stop", "tab:red", "-"),
}


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


def draw_marks(axis: Any, marks: Iterable[Mark]) -> dict[str, Any]:
    """Draws a vertical line for each mark, and returns one of each kind by its name."""
    drawn = {}
    for mark in marks:
        name, color, style = _MARKS[mark.kind]
        drawn[name] = axis.axvline(mark.x, color=color, linestyle=style, linewidth=1.2)
    return drawn


def save(figure: Any, path: Path | None) -> None:
    """Saves a figure as an image file, in a directory that need not exist; nothing for None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
