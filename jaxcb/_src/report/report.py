"""`write_report`: runs as one HTML file: curves with marks, decisions, configuration, sweeps, and runs compared."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcb._src.history.event_files import images_in
from jaxcb._src.plotting import page
from jaxcb._src.plotting.series import Curves
from jaxcb._src.plotting.svg import parallel_coordinates
from jaxcb._src.report.curves import curves_of
from jaxcb._src.report.run_folder import RunFolder, flat
from jaxcb._src.storage.ownership import read_bytes

_EVENTS = 200  # rows of the table of decisions; the rest is counted
_MEMBERS = 60  # curves of a sweep
_ROWS = 200  # of the table of a sweep
_IMAGE_BYTES = 800_000  # of all images together
_TABLE_BYTES = 1 << 24


def write_report(runs: Sequence[RunFolder], names: Sequence[str], path: Path) -> Path:
    """Writes a report of one or several runs.

    Args:
        runs: the runs.
        names: a name for each.
        path: the HTML file; an existing one is replaced once the new one is complete.

    Raises:
        DataError: for a damaged history.
    """
    title = f"jaxcb: {names[0]}" if len(runs) == 1 else f"jaxcb: {len(runs)} runs"
    parts = list(_single(runs[0], names[0]) if len(runs) == 1 else _several(runs, names))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    half.write_text(page.document(title, parts), encoding="utf-8")
    half.replace(path)
    return path


def _single(run: RunFolder, name: str) -> Iterator[str]:
    run.check_history()
    at, best = run.standing, run.best()
    name_of_metric = run.monitor[0] if run.monitor else "metric"
    yield page.facts(
        [
            ("state", at.state),
            ("reason", at.reason),
            ("epochs", f"{at.epoch}" if at.epochs is None else f"{at.epoch} of {at.epochs}"),
            ("steps", at.step),
            (f"best {name_of_metric}", f"{best[0]:.6g} in epoch {best[1] + 1}" if best else None),
            ("seconds of training", None if at.elapsed is None else f"{at.elapsed:.1f}"),
            ("run", run.facts.get("run")),
        ]
    )
    if run.is_sweep:
        yield from _sweep(run, name)
    else:
        curves = curves_of(run, None, name)
        yield page.heading("Curves")
        yield from page.charts([] if curves is None else [curves])
        yield from _decisions(run)
    yield from _images(run)
    yield page.heading("Configuration")
    yield page.facts(sorted((key, value) for key, value in run.settings.items()))
    for number, process in enumerate(run.processes):
        yield page.heading(f"What ran ({number + 1} of {len(run.processes)})")
        yield page.facts([(key, flat(value)) for key, value in process.items() if value is not None])
    yield page.heading("Checkpoints")
    rows = [(os.path.relpath(c.path, run.path), c.step, c.bytes, c.reason or "complete") for c in run.checkpoints]
    yield page.table(("checkpoint", "step", "bytes", "state"), rows)


def _decisions(run: RunFolder) -> Iterator[str]:
    from jaxcb._src.report.explain import explain

    found = explain(run)
    yield page.heading("Decisions")
    rows = [(e.epoch + 1 if e.epoch >= 0 else None, e.step, e.callback, e.action, e.text) for e in found.events]
    shown = rows[: _EVENTS // 2] + rows[-_EVENTS // 2 :] if len(rows) > _EVENTS else rows
    if rows:
        yield page.table(("epoch", "step", "callback", "action", "numbers"), shown, "What fired")
        if len(shown) < len(rows):
            yield f"<p>{len(rows) - len(shown)} more in the middle: jaxcb explain shows all.</p>"
    else:
        yield "<p>No action fired.</p>"
    if found.nearest:
        near = [(n.epoch + 1, n.step, n.callback, n.text) for n in found.nearest]
        yield page.table(("epoch", "step", "callback", "what it lacked"), near, "What nearly fired")
    for callback, why in found.unexplained.items():
        yield f"<p>{page.text(callback)} is not explained: {page.text(why)}</p>"
    for problem in found.problems:
        yield f"<p>Note: {page.text(problem)}.</p>"


def _sweep(run: RunFolder, name: str) -> Iterator[str]:
    members = list(run.members)[:_MEMBERS]
    curves = [c for m in members if (c := curves_of(run, m, f"member {m}")) is not None]
    yield page.heading("Members")
    columns = _columns(run.table) if run.table is not None else {}
    rows = list(zip(*columns.values(), strict=True))
    if rows:
        yield page.table(list(columns), rows[:_ROWS], "Members")
    swept = [c for c in columns if c.startswith(("optimizer.", "callbacks.", "controls.", "model.")) or c == "seed"]
    if run.monitor is not None:
        metric, mode = run.monitor
        last = f"best_{metric}"
        if swept and last in columns:
            numbers = {c: [_number(cell) for cell in columns[c]] for c in (*swept, last)}
            if any(x == x for x in numbers[last]):
                drawing = parallel_coordinates(numbers, last, mode == "min")
                yield f"<figure><figcaption><b>Parallel coordinates</b></figcaption>{drawing}</figure>"
    yield page.heading("Curves of the members")
    yield from page.charts([Curves(c.name, c.series, None) for c in curves])
    if len(run.members) > len(members):
        yield f"<p>The first {len(members)} of {len(run.members)} members of {page.text(name)} are drawn.</p>"


def _columns(path: Path) -> dict[str, list[Any]]:
    """Returns the table of a sweep by columns; a row that is too short or too long is left out."""
    lines = read_bytes(path, _TABLE_BYTES).decode("utf-8", "replace").splitlines()
    rows = list(csv.reader(lines))
    if not rows:
        return {}
    whole = [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: [_cell(row[i]) for row in whole] for i, name in enumerate(rows[0])}


def _cell(cell: str) -> Any:
    number = _number(cell)
    return number if number == number else cell or None


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _images(run: RunFolder) -> Iterator[str]:
    """Yields the last logged image of each tag, up to a size."""
    found = images_in(run.path, _IMAGE_BYTES)
    if found:
        yield page.heading("Images")
    for tag, (step, data) in found.items():
        yield page.image(data, f"{tag} at step {step}")


def _several(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    rows = []
    for run, name in zip(runs, names, strict=True):
        run.check_history()
        at, best = run.standing, run.best()
        value = None if best is None else best[0]
        rows.append((name, at.state, at.reason, at.epoch, value, None if best is None else best[1] + 1, at.elapsed))
    monitor = runs[0].monitor[0] if runs[0].monitor else "metric"
    columns = ("run", "state", "reason", "epochs", f"best {monitor}", "in epoch", "seconds")
    yield page.table(columns, rows)
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    different = [k for k in keys if len({str(run.settings.get(k)) for run in runs}) > 1]
    if different:
        shown = [(key, *(run.settings.get(key) for run in runs)) for key in different]
        yield page.table(("setting", *names), [tuple(map(_shown, row)) for row in shown], "What differs")
    yield page.heading("Curves")
    curves = [
        c
        for run, n in zip(runs, names, strict=True)
        if (c := curves_of(run, next(iter(run.members), None), n)) is not None
    ]
    yield from page.charts(curves)


def _shown(value: Any) -> Any:
    return None if value is None else str(value)
