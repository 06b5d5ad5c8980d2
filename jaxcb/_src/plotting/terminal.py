"""Curves in the terminal, drawn with the dots of braille characters, of which each has two by four."""

import math
from collections.abc import Sequence

import numpy as np

from jaxcb._src.plotting.series import is_logarithmic

_DOTS = np.asarray([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK = 0x2800
_FINE = 4  # points between two of a curve, for each dot


def drawn(curves: Sequence[tuple[np.ndarray, np.ndarray]], title: str, *, width: int = 72, height: int = 12) -> str:
    """Draws curves over one another.

    Args:
        curves: positions and values of each.
        title: the name of the metric, which also decides whether the axis is logarithmic.
        width: of the picture, in characters.
        height: of the picture, in lines.

    Returns:
        The lines of the picture, with the range of the values at their left.

    Example:
        >>> import numpy as np
        >>> print(drawn([(np.arange(3.0), np.asarray([2.0, 1.0, 0.0]))], "loss", width=16, height=2))
        loss
             2 ⠑⢄
             0   ⠑⢄
               0  2
    """
    x, y = (np.concatenate([np.asarray(c[i], float) for c in curves]) for i in (0, 1))
    finite = y[np.isfinite(y)]
    if not len(finite):
        return f"{title}: no report is a number"
    logarithmic = is_logarithmic(title, y)
    low, high = float(finite.min()), float(finite.max())
    scale = np.log if logarithmic else np.asarray
    left, right = float(x.min()), float(x.max())
    columns = max(2, width - 12)
    cells = np.zeros((height, columns), int)
    for one in curves:
        _draw(cells, one, (left, right), (float(scale(low)), float(scale(high))), scale)
    rows = ["".join(chr(_BLANK + cell) if cell else " " for cell in row).rstrip() for row in cells]
    labels = {0: f"{high:.5g}", height - 1: f"{low:.5g}"}
    lines = [f"{labels.get(i, ''):>6} {row}".rstrip() for i, row in enumerate(rows)]
    ends = f"{left:.6g}", f"{right:.6g}"
    gap = max(1, columns - len(ends[0]) - len(ends[1]))
    head = f"{title} (logarithmic)" if logarithmic else title
    return "\n".join([head, *lines, f"{'':7}{ends[0]}{'':{gap}}{ends[1]}"])


def _draw(
    cells: np.ndarray,
    curve: tuple[np.ndarray, np.ndarray],
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
    scale: object,
) -> None:
    """Sets the dots of a curve, with straight lines between its points."""
    x, y = np.asarray(curve[0], float), np.asarray(curve[1], float)
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return
    y = np.asarray(scale(y))  # pyright: ignore[reportCallIssue]
    wide, tall = cells.shape[1] * 2, cells.shape[0] * 4
    across = np.linspace(x[0], x[-1], wide * _FINE) if len(x) > 1 else x
    values = np.interp(across, x, y)
    column = _dots(across, horizontal, wide)
    row = tall - 1 - _dots(values, vertical, tall)
    np.bitwise_or.at(cells, (row // 4, column // 2), _DOTS[row % 4, column % 2])


def _dots(values: np.ndarray, ends: tuple[float, float], count: int) -> np.ndarray:
    span = ends[1] - ends[0]
    share = (values - ends[0]) / span if span > 0 and math.isfinite(span) else np.full(len(values), 0.5)
    return np.clip(np.rint(share * (count - 1)), 0, count - 1).astype(int)
