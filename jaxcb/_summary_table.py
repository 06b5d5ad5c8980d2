"""A `Summary` as a table, with rich."""

import io
import math
import sys
from typing import Any

from jaxcb._summary import Line, Summary

_PREFIXES = {1000: ("", "k", "M", "G", "T", "P"), 1024: ("", "Ki", "Mi", "Gi", "Ti", "Pi")}


def as_text(summary: Summary) -> str:
    """Draws the table; on a terminal within its width and in colour, elsewhere as wide as it needs to be."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=tty, width=None if tty else 10_000)
    with console.capture() as capture:
        console.print(table(summary))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*(line for line in lines if line), totals(summary)])


def table(summary: Summary) -> Any:
    """Returns a summary as a `rich.table.Table`."""
    from rich import box
    from rich.table import Table

    counted = summary.flops is not None
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("path", "shape", "dtype"):
        out.add_column(name, overflow="fold")
    for name in ("parameters", "bytes", *(["FLOPs"] if counted else [])):
        out.add_column(name, justify="right", no_wrap=True)
    for trainable in (True, False):
        own = [line for line in summary.lines if line.trainable is trainable]
        if own and not trainable:
            out.add_section()
            out.add_row("not trained:")
        for line in own:
            out.add_row(*_cells(line)[: len(out.columns)], style=None if trainable else "dim")
    if summary.between:
        out.add_section()
        out.add_row("between activations:", "", "", "", "", shown(summary.between, ""))
    return out


def _cells(line: Line) -> tuple[str, ...]:
    shape = f"{line.arrays} arrays" if line.shape is None else str(line.shape)
    flops = "" if not line.flops else shown(line.flops, "")
    return line.path, shape, line.dtype, f"{line.parameters:,}", shown(line.bytes, "B", base=1024), flops


def totals(summary: Summary) -> str:
    """Returns the totals as a line."""
    parts = [
        f"{summary.parameters:,} parameters",
        f"{summary.trainable:,} trained, {summary.parameters - summary.trainable:,} not",
        shown(summary.bytes, "B", base=1024),
    ]
    if summary.flops is not None:
        parts.append(f"forward pass {shown(summary.flops, 'FLOP')} a batch")
        if summary.step is not None and summary.step > summary.flops:
            parts.append(f"training step {shown(summary.step, 'FLOP')}")
    return " · ".join(parts)


def shown(quantity: float, unit: str, *, base: int = 1000) -> str:
    """Writes a quantity for reading: `shown(1.5e9, "FLOP")` is `1.50 GFLOP`."""
    names, power = _PREFIXES[base], 0
    while quantity >= base and power < len(names) - 1:
        quantity, power = quantity / base, power + 1
    digits = 0 if not power else max(0, 2 - int(math.log10(quantity)))
    return f"{quantity:,.{digits}f} {names[power]}{unit}"
