"""A sweep's members as a table on the terminal."""

import math
from typing import Any

from jaxcb._modes import resolve_mode

_WIDE = 200


def show(result: Any, monitor: str, mode: str, rows: int) -> None:
    """Prints the members, the best ones first.

    Args:
        result: a `SweepResult`.
        monitor: the metric to sort by.
        mode: "min", "max" or "auto".
        rows: at most so many members.
    """
    from rich.console import Console
    from rich.table import Table

    mode = resolve_mode("SweepResult.show", monitor, mode)
    columns = result.table()
    best = result.bests(monitor, mode)
    order = sorted(range(len(columns["member"])), key=lambda i: _rank(best[columns["member"][i]], mode))
    paths = list(result.points[0])
    table = Table(title=f"{len(result)} members by their best {monitor}")
    names = ["member", *_short(paths), "epochs", monitor, f"best {monitor}", "end"]
    for name in names:
        table.add_column(name, justify="left" if name == "end" else "right", overflow="fold")
    for i in order[:rows]:
        own = [columns[name][i] for name in ("member", *paths, "epochs", monitor)]
        ended = (columns["stop_reason"][i] or "ran to its end").split(":")[0]
        table.add_row(*map(_text, [*own, float(best[own[0]])]), ended)
    if len(result) > rows:
        table.caption = f"and {len(result) - rows} more"
    console = Console()
    if not console.is_terminal:  # a file has no width
        console = Console(width=_WIDE)
    console.print(table)


def _rank(value: float, mode: str) -> float:
    if math.isnan(value):
        return math.inf
    return value if mode == "min" else -value


def _short(paths: list[str]) -> list[str]:
    """The last part of each path, where it is the only one of that name."""
    ends = [path.rpartition(".")[2] for path in paths]
    return [end if ends.count(end) == 1 else path for end, path in zip(ends, paths, strict=True)]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
