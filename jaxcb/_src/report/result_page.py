"""Pages of results in memory: `Result.report`, `SweepResult.report`, and what a notebook shows of them.

A result with a run directory that still is this run's has the page of `jaxcb report`. Otherwise the page shows what the
result itself knows; its callbacks need not be made again, so those of the user's own classes are explained, too.
"""

from pathlib import Path
from typing import Any

from jaxcb._src.core.metric_names import infer_mode_or_none
from jaxcb._src.history.reader import Records, read_records
from jaxcb._src.plotting import page
from jaxcb._src.plotting.series import Curves, curves_of_history, curves_of_records, marks_of_result
from jaxcb._src.report.contents import MOST_MEMBERS, Contents, of_run
from jaxcb._src.report.curves import marks_of
from jaxcb._src.report.explain import Explanation, explain_records
from jaxcb._src.report.find import is_run
from jaxcb._src.report.judge import best_of, monitor_of
from jaxcb._src.report.recorded import live_callbacks
from jaxcb._src.report.report import page_parts, write_page
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.errors import DataError


def write(result: Any, path: Path) -> Path:
    """Writes the page of a `Result` or a `SweepResult`, and returns its path."""
    contents = contents_of(result)
    return write_page(f"jaxcb: {contents.name}", page_parts(contents), path)


def fragment(result: Any) -> str:
    """Returns the page of a `Result` or a `SweepResult` as a part of another page, such as a notebook."""
    contents = contents_of(result)
    return page.fragment(f"jaxcb: {contents.name}", page_parts(contents))


def contents_of(result: Any) -> Contents:
    """Returns what the report of a `Result` or a `SweepResult` shows."""
    is_sweep = hasattr(result, "parts")
    name = "a sweep" if is_sweep else "a run"
    if result.run_dir is not None:
        name = result.run_dir.name
    member = None if is_sweep else result.member
    name = name if member is None else f"{name}, member {member}"
    steps = [int(s) for part in result.parts for s in part.state.step] if is_sweep else [int(result.state.step)]
    folder = _folder(result.run_dir, max(steps, default=0), member)
    if folder is not None:
        return of_run(folder, name, member)
    return _of_sweep(result, name) if is_sweep else _of_result(result, name)


def _folder(run_dir: Path | None, step: int, member: int | None) -> RunFolder | None:
    """Returns the run's directory; None if there is none, or if it has another run, or a later state of this one."""
    if run_dir is None or not is_run(run_dir):
        return None
    try:
        folder = RunFolder(run_dir)
        folder.check_history()
        is_same = folder.standing.step == step if member is None else member in folder.members
    except (DataError, OSError):  # moved or damaged since; the result in memory is whole
        return None
    return folder if is_same else None


def _of_result(result: Any, name: str) -> Contents:
    history, records = result.history, _records(result.history)
    monitor = None if records is None else monitor_of(records.names)
    best = None if records is None or monitor is None else best_of(records, *monitor)
    facts = [
        ("state", "finished" if result.stop_reason is None else "stopped"),
        ("reason", result.stop_reason),
        ("epochs", len(set(history.epoch.tolist()))),
        ("steps", int(result.state.step)),
        (f"best {monitor[0]}" if monitor else "best", f"{best[0]:.6g} in epoch {best[1] + 1}" if best else None),
        *((name, value) for name, value in result._facts().items() if name not in ("trained", "stopped")),
    ]
    deciding = result._deciding
    if records is None or deciding is None:
        curves, explanation = curves_of_history(name, history, marks_of_result(result)), None
    else:
        curves, explanation = _decided(name, records, result, monitor)
    settings = {} if deciding is None else deciding.settings
    return Contents(
        name, facts, monitor, [curves], explanation=explanation, settings=settings, processes=result.what_ran
    )


def _decided(
    name: str, records: Records, result: Any, monitor: tuple[str, str] | None
) -> tuple[Curves, Explanation | None]:
    deciding = result._deciding
    marks = sorted(marks_of(records, deciding.stops, monitor, result.what_ran), key=lambda mark: mark.x)
    recorded = live_callbacks(deciding.callbacks, records)
    return curves_of_records(name, records, marks), explain_records(recorded, records, deciding.stops, ended=True)


def _records(history: Any) -> Records | None:
    """Returns a history as records; None before the first one."""
    scalars = [name for name in history if history[name].ndim == 1]
    if not len(history.step) or not scalars:
        return None
    columns = {"step": history.step.tolist(), "epoch": history.epoch.tolist()}
    for name in scalars:
        seen = zip(history[name].tolist(), history.reported(name).tolist(), strict=True)
        columns[name] = [value if new else None for value, new in seen]
    return read_records(columns)


def _of_sweep(result: Any, name: str) -> Contents:
    columns = result.table()
    monitor = monitor_of([n for n in result.history if infer_mode_or_none(n) and result.history[n].ndim == 2])
    members = columns["member"]
    stopped = sum(reason is not None for reason in columns["stop_reason"])
    facts = [
        ("members", f"{len(members)} of {len(result)}" if len(members) < len(result) else len(result)),
        ("stopped", f"{stopped} of {len(members)} members" if stopped else None),
        ("epochs", max(columns["epochs"], default=0)),
        ("run_dir", result.run_dir),
    ]
    drawn = [result.member(m) for m in members[:MOST_MEMBERS]]
    curves = [curves_of_history(f"member {one.member}", one.history) for one in drawn]
    return Contents(name, facts, monitor, curves, len(members), columns)
