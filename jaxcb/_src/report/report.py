"""The report: runs as one HTML file, with curves, marks, decisions and configuration, sweeps, and runs compared."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcb._src.plotting import page
from jaxcb._src.plotting.series import Curves
from jaxcb._src.plotting.svg import parallel_coordinates
from jaxcb._src.report.contents import Contents, of_run
from jaxcb._src.report.curves import curves_of
from jaxcb._src.report.explain import Explanation
from jaxcb._src.report.run_folder import RunFolder, flat

_EVENTS = 200  # rows of the table of decisions; the rest is counted
_ROWS = 200  # of the table of a sweep


def write_report(runs: Sequence[RunFolder], names: Sequence[str], path: Path) -> Path:
    """Writes a report of one or several runs.

    Args:
        runs: the runs.
        names: a name for each.
        path: the HTML file; an existing one is replaced once the new one is complete.

    Raises:
        DataError: for a damaged history.
    """
    if len(runs) == 1:
        return write_page(f"jaxcb: {names[0]}", page_parts(of_run(runs[0], names[0])), path)
    return write_page(f"jaxcb: {len(runs)} runs", _several(runs, names), path)


def write_page(title: str, parts: Iterable[str], path: Path) -> Path:
    """Writes a page; an existing one is replaced once the new one is complete."""
    text = page.document(title, list(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
    return path


def page_parts(run: Contents) -> Iterator[str]:
    """Yields the parts of the page of one run."""
    yield page.facts(run.facts)
    if run.members is not None:
        yield from _sweep(run)
    else:
        yield page.heading("Curves")
        yield page.charts(run.curves)
        if run.explanation is not None:
            yield from _decisions(run.explanation)
    if run.images:
        yield page.heading("Images")
    for tag, (step, data) in run.images.items():
        yield page.image(data, f"{tag} at step {step}")
    if run.settings:
        yield page.heading("Configuration")
        yield page.facts(sorted(run.settings.items()))
    for number, process in enumerate(run.processes):
        yield page.heading(f"What ran ({number + 1} of {len(run.processes)})")
        yield page.facts([(key, flat(value)) for key, value in process.items() if value is not None])
    if run.checkpoints:
        yield page.heading("Checkpoints")
        yield page.table(("checkpoint", "step", "bytes", "state"), run.checkpoints)


def _decisions(found: Explanation) -> Iterator[str]:
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


def _sweep(run: Contents) -> Iterator[str]:
    columns, rows = run.table, list(zip(*run.table.values(), strict=True))
    yield page.heading("Members")
    if rows:
        yield page.table(list(columns), rows[:_ROWS])
    if len(rows) > _ROWS:
        yield f"<p>The first {_ROWS} of {len(rows)} rows.</p>"
    swept = [c for c in columns if c.startswith(("optimizer.", "callbacks.", "controls.", "model.")) or c == "seed"]
    if run.monitor is not None:
        metric, mode = run.monitor
        last = f"best_{metric}"
        if swept and last in columns:
            numbers = {c: [_number(cell) for cell in columns[c]] for c in (*swept, last)}
            if any(x == x for x in numbers[last]):
                drawing = parallel_coordinates(numbers, last, mode == "min")
                yield page.figure("Parallel coordinates", drawing, wide=True)
    yield page.heading("Curves of the members")
    yield page.charts([Curves(c.name, c.series, None) for c in run.curves])
    if run.members is not None and run.members > len(run.curves):
        yield f"<p>The first {len(run.curves)} of {run.members} members of {page.text(run.name)} are drawn.</p>"


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


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
    different = [k for k in keys if len({str(run.settings.get(k)) for run in runs}) > 1 and _is_in_all(k, runs)]
    if different:
        shown = [(key, *(run.settings.get(key) for run in runs)) for key in different]
        yield page.table(("setting", *names), [tuple(map(_shown, row)) for row in shown], "What differs")
    yield page.heading("Curves")
    curves = [
        c
        for run, n in zip(runs, names, strict=True)
        if (c := curves_of(run, next(iter(run.members), None), n)) is not None
    ]
    yield page.charts(curves)


def _is_in_all(setting: str, runs: Sequence[RunFolder]) -> bool:
    """Returns whether all runs have the callback of a setting; where some have not, its name alone says so."""
    owner, field, _ = setting.partition(".")
    return not field or len({owner in run.settings for run in runs}) == 1


def _shown(value: Any) -> Any:
    return None if value is None else str(value)
