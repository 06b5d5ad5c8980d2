"""Charts as inline SVG: curves with marks, and parallel coordinates, without scripts and without other files."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxcb._src.plotting.series import KINDS, LOG_RATIO, Curves, Mark, is_logarithmic, thinned

COLORS = ("#1f6fb4", "#d1602b", "#2e8b57", "#8e5bb5", "#b33a3a", "#6d6d1f", "#2f8f9d", "#a8527f", "#555f6d", "#b8860b")
MARK_COLORS = {"stop": "#c62828", "cut": "#7b3fa0", "best": "#2e7d32", "restart": "#ef6c00", "alert": "#9e9d24"}
_WIDTH, _HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 38
_MARK_WIDTH = 44  # of the word of a mark
_POINTS = 700  # of a curve; more than a screen can show
_TICKS = 5
_DASHES = ("", "5 4", "2 3")


def text(value: Any) -> str:
    """Returns a value as text of a page; control characters, which XML does not have, are left out."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    return escape("".join(c for c in str(value) if c in "\t\n" or (c.isprintable() or c == "\xa0")))


def chart(runs: Sequence[Curves], metrics: Sequence[str], title: str, *, marks: bool = True) -> str:
    """Draws metrics of runs over one another.

    Args:
        runs: the runs, each with a color of its own; in a single run, each metric has one.
        metrics: the metrics, each with a dash of its own.
        title: of the chart, for those who do not see it.
        marks: whether the marks of the runs are drawn.

    Returns:
        An `svg` element.
    """
    given = {
        (r, m): ((run.rate if metric == "learning_rate" else run.series.get(metric)), metric)
        for r, run in enumerate(runs)
        for m, metric in enumerate(metrics)
    }
    lines = {key: curve for key, (curve, _) in given.items() if curve is not None and len(curve[0])}
    values = np.concatenate([y for _, y in lines.values()]) if lines else np.zeros(0)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f"<p>{text(title)}: no report is a number.</p>"
    logarithmic = is_logarithmic(metrics[-1], values) or ("learning_rate" in metrics and bool(finite.min() > 0))
    right = max(float(x[-1]) for x, _ in lines.values())
    to_x, to_y, ticks = _axes(right, float(finite.min()), float(finite.max()), logarithmic)
    body = [*_grid(ticks, to_y, right, to_x)]
    for (r, m), (x, y) in lines.items():
        color = COLORS[(r if len(runs) > 1 else m) % len(COLORS)]
        dash = _DASHES[(m if len(runs) > 1 else 0) % len(_DASHES)]
        x, y = thinned(x, y, _POINTS)
        if metrics[m] == "learning_rate":  # a row has the rate of the steps before it
            x, y = np.r_[0, np.repeat(x, 2)[:-1]], np.repeat(y, 2)
        body += _curve(x, y, to_x, to_y, color, dash)
    body += _marks([mark for run in runs for mark in run.marks] if marks else (), to_x)
    described = f"{title}: {', '.join(metrics)} of {len(runs)} run{'s' * (len(runs) > 1)} over {right:g} epochs, "
    described += f"from {finite.min():.6g} to {finite.max():.6g}{', logarithmic' if logarithmic else ''}."
    return _svg(body, described)


def _svg(body: Sequence[str], described: str, height: int = _HEIGHT) -> str:
    # all that an element needs is its own attribute: a notebook does not have the style of the page
    look = 'fill="none" font-family="system-ui, sans-serif" font-size="12" style="width:100%;height:auto"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {look} role="img"'
    return f'{head} aria-label="{text(described)}"><title>{text(described)}</title>{"".join(body)}</svg>'


def _axes(right: float, low: float, high: float, logarithmic: bool):
    """Returns functions from numbers to pixels, and the numbers at the ticks."""
    lowest, highest = low, high
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    span, width = high - low, max(right, 1e-9)
    decades = [10.0**i for i in range(math.ceil(low), math.floor(high) + 1)] if logarithmic else []
    if logarithmic and len(decades) < 2 and highest > lowest:
        decades = _ticks(lowest, highest)
    ticks = decades if logarithmic and decades else _ticks(low, high)

    def to_x(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / width

    def to_y(y: float) -> float:
        if logarithmic:
            y = math.log10(y) if y > 0 else low
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * ((y - low) / span)

    return to_x, to_y, ticks if decades or not logarithmic else [10**tick for tick in ticks]


def _grid(ticks, to_y, right, to_x):
    for tick in ticks:
        y = to_y(tick)
        yield f'<path stroke="#e3e7ec" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield _label(_LEFT - 6, y + 4, f"{tick:.4g}", "end")
    for x in _ticks(0.0, max(right, 1.0)):
        yield _label(to_x(x), _HEIGHT - _BOTTOM + 16, f"{x:.6g}")
    yield _label(_WIDTH / 2, _HEIGHT - 4, "epoch")


def _label(x: float, y: float, label: str, anchor: str = "middle", color: str = "#3d4550") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text(label)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Returns some round numbers between two numbers."""
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _curve(x, y, to_x, to_y, color: str, dash: str):
    """Yields the pieces of a curve between numbers that are not finite; a single number is a dot."""
    known = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.r_[False, known, False].astype(int)))
    style = f'stroke="{color}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        points = [f"{to_x(float(a)):.1f} {to_y(float(b)):.1f}" for a, b in zip(x[start:end], y[start:end], strict=True)]
        if len(points) == 1:
            cx, cy = points[0].split()
            yield f'<circle cx="{cx}" cy="{cy}" r="2.5" fill="{color}"/>'
        else:
            yield f'<path class="curve" stroke-width="1.6" {style} d="M{"L".join(points)}"/>'


def _marks(marks: Sequence[Mark], to_x):
    """Yields marks. One whose word would cover that of another one has a line only."""
    taken: list[float] = []
    for mark in sorted(marks, key=lambda mark: -KINDS.index(mark.kind)):
        x, color = to_x(mark.x), MARK_COLORS[mark.kind]
        word = ""
        if all(abs(x - other) >= _MARK_WIDTH for other in taken):
            taken.append(x)
            middle = min(max(x, _LEFT + _MARK_WIDTH / 2), _WIDTH - _MARK_WIDTH / 2)
            word = _label(middle, _TOP - 5, mark.kind, color=color)
        line = f'<path stroke="{color}" stroke-dasharray="3 3" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        yield f"<g><title>{text(mark.text)}</title>{line}{word}</g>"


def parallel_coordinates(columns: Mapping[str, Sequence[float]], color_by: str, lower_is_better: bool) -> str:
    """Draws a line for each member of a sweep over one axis for each number, colored by the last one.

    Args:
        columns: axis -> the number of each member; NaN for none.
        color_by: the axis that gives the color.
        lower_is_better: whether its low numbers are the good ones.

    Returns:
        An `svg` element.
    """
    names = list(columns)
    table = np.asarray([columns[name] for name in names], float)
    finite = np.isfinite(table)
    lows = np.where(finite, table, np.inf).min(axis=1, keepdims=True)
    highs = np.where(finite, table, -np.inf).max(axis=1, keepdims=True)
    # numbers that span decades, such as learning rates, would lie on one another
    decades = (lows > 0) & (highs > LOG_RATIO * lows)
    low, high, height = (np.where(decades, np.log(np.where(decades, x, 1)), x) for x in (lows, highs, table))
    share = np.where(high > low, (height - low) / np.where(high > low, high - low, 1), 0.5)
    xs = [_LEFT + (_WIDTH - 2 * _LEFT) * i / max(1, len(names) - 1) for i in range(len(names))]
    good = share[names.index(color_by)] if not lower_is_better else 1 - share[names.index(color_by)]
    body = []
    for member in np.argsort(np.nan_to_num(good, nan=-1)).tolist():  # the best ones on top
        points = [
            f"{x:.1f} {_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP - 10) * float(s):.1f}"
            for x, s in zip(xs, share[:, member], strict=True)
            if np.isfinite(s)
        ]
        if len(points) > 1:
            value = 0.0 if not np.isfinite(good[member]) else float(good[member])
            body.append(f'<path stroke-width="1.6" stroke="{_shade(value)}" d="M{"L".join(points)}"/>')
    for i, (x, name) in enumerate(zip(xs, names, strict=True)):
        body.append(f'<path stroke="#8993a1" d="M{x:.1f} {_TOP + 10}V{_HEIGHT - _BOTTOM}"/>')
        body.append(_label(x, _TOP + 4, f"{highs[i, 0]:.4g}"))
        body.append(_label(x, _HEIGHT - _BOTTOM + 14, f"{lows[i, 0]:.4g}"))
        # names are long: those at the ends begin, or end, at the frame
        end, anchor = {0: (4, "start"), len(names) - 1: (_WIDTH - 4, "end")}.get(i, (x, "middle"))
        body.append(_label(end, _HEIGHT - 4, name.rpartition("callbacks.")[2], anchor))
    described = f"Parallel coordinates of {table.shape[1]} members over {', '.join(names)}; the darkest are the best."
    return _svg(body, described)


def _shade(good: float) -> str:
    """Returns a color from light gray to dark blue."""
    light, dark = (205, 211, 219), (20, 82, 150)
    return "#" + "".join(f"{round(a + (b - a) * good):02x}" for a, b in zip(light, dark, strict=True))
