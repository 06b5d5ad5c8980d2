"""How commands print: a table for people, JSON for programs. Texts of a run never reach the terminal as they are."""

import datetime
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 160  # characters of a line that goes to a file or another program
_MOST_FOLDED = 200  # rows of a table whose cells are folded to the width of the terminal
_STYLES = {
    "running": "green",
    "finished": "blue",
    "stopped": "cyan",
    "killed": "yellow",
    "damaged": "red",
    "ok": "green",
}


def console(*, error: bool = False) -> Console:
    """Returns the console of standard output or error; `NO_COLOR`, `TERM` and `COLUMNS` are respected by rich."""
    made = Console(stderr=error, highlight=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made = Console(stderr=error, highlight=False, width=_PIPE_WIDTH)
    return made


def plain(value: Any) -> str:
    """Returns a text for the terminal: control characters, which could move the cursor or hide text, are escaped."""
    text = value if isinstance(value, str) else shown(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """Returns a value as a short text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    return str(value)


def say(text: str, *, style: str = "") -> None:
    """Prints a line."""
    console().print(Text(plain(text), style=style), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Prints a table. Columns of numbers are aligned to the right; a state has its color."""
    rows = [list(row) for row in rows]
    if len(rows) > _MOST_FOLDED:
        _print_aligned(columns, rows)
        return
    made = Table(box=box.SIMPLE_HEAD, title=plain(title) or None, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        cells = [row[i] for row in rows if row[i] is not None]
        is_number = bool(cells) and all(
            isinstance(c, int | float | np.number) and not isinstance(c, bool) for c in cells
        )
        made.add_column(Text(plain(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell), style=_STYLES.get(cell, "") if isinstance(cell, str) else "") for cell in row))
    _print(made)


def _print_aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a long table with a line for each row: rich folds cells, which takes a millisecond a row."""
    lines = [[plain(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, Any]], *, title: str = "") -> None:
    """Prints names and values, one pair a line; pairs without a value are left out."""
    made = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value not in (None, ""):
            made.add_row(Text(plain(name), style="bold"), Text(plain(value)))
    if title:
        console().print(Text(plain(title), style="bold"))
    _print(made)
    console().print()


def _print(made: Any) -> None:
    """Prints a table; without the spaces at the ends of lines where it goes to a file."""
    to = console()
    if to.is_terminal:
        to.print(made)
        return
    with to.capture() as captured:
        to.print(made)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def emit_json(value: Any) -> None:
    """Prints JSON, in one line. Numbers that JSON does not have are the texts "nan", "inf" and "-inf"."""
    sys.stdout.write(json.dumps(jsonable(value), allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Returns a value as JSON has it."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def duration(seconds: float | None) -> str | None:
    """Returns seconds as a text: `1:02:03`, or `4.2 s` for less than a minute."""
    if seconds is None:
        return None
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=int(seconds)))


def fail(message: str, code: int) -> None:
    """Prints an error and ends the program.

    Args:
        message: what was received, expected, and what to do.
        code: exit code.
    """
    click.echo(f"jaxcb: {plain(message)}", err=True)
    raise SystemExit(code)
