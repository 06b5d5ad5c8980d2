"""`jaxcb ls` and `jaxcb show`: what runs there are, and what one of them is."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from jaxcb._src.checkpointing.layout import RESULT, described_fields
from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import FOLDER, as_json, one_run
from jaxcb._src.report.find import NotARunError, Running, find_runs
from jaxcb._src.report.run_folder import RunFolder, flat
from jaxcb._src.report.stored_arrays import UnreadableError, callback_states
from jaxcb._src.storage.buckets.progress import shown_bytes
from jaxcb._src.storage.ownership import is_inside
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import did_you_mean

_DEPTH = 8
_NUMBER = re.compile(r"-?\d[\d.e+-]*")
_MOST_DIFFERENCES = 6  # in a table; JSON has all
_LONGEST = 30  # characters of a value in the list
_FEW = 6  # numbers of an array that are shown
_HIDDEN = ("name=", "verbose=")


@click.command()
@click.argument("directory", type=FOLDER, default=".")
@click.option("--depth", type=click.IntRange(min=0), default=_DEPTH, show_default=True, help="Levels to look into.")
@as_json
def ls(directory: Path | Address, depth: int, as_json: bool) -> None:
    """Lists the runs below DIRECTORY: state, epoch, best, time, and what differs between them."""
    folder, running = _folder(directory)
    runs = list(find_runs(folder, depth, running))
    names = [os.path.relpath(run.path, folder) for run in runs]
    different = differences([run.settings for run in runs])
    if as_json:
        output.emit_json([_listed(run, name, d) for run, name, d in zip(runs, names, different, strict=True)])
        return
    if not runs:
        output.say(f"There are no runs in {directory}.")
        return
    rows = []
    for run, name, own in zip(runs, names, different, strict=True):
        at, best = run.standing, run.best()
        state = f"{at.state}: {at.reason}" if at.reason else at.state
        shown = [f"{key}={_clip(_several(value), _LONGEST)}" for key, value in own.items()]
        rest = len(shown) - _MOST_DIFFERENCES
        text = " ".join(shown[:_MOST_DIFFERENCES]) + (f" and {rest} more" if rest > 0 else "")
        value = f"{run.monitor[0]} {best[0]:.6g} @{best[1] + 1}" if run.monitor and best else "-"
        rows.append((name, _clip(state), _progress(run), value, output.duration(at.elapsed), text))
    output.table(("run", "state", "epoch", "best", "time", "differs in"), rows)


@click.command()
@one_run
@as_json
def show(run: RunFolder, as_json: bool) -> None:
    """Shows RUN: what ran, where it stands, callbacks with their state, checkpoints with sizes, files."""
    at, best = run.standing, run.best()
    states, problem = _states(run)
    described = run.config.get("callbacks", {})
    files = made_files(run)
    if as_json:
        about = {name: value for name, value in run.facts.items() if name not in ("files", "writers")}
        output.emit_json(
            _listed(run, run.shown, run.settings)
            | {
                "facts": about,
                "processes": run.processes,
                "members": len(run.members),
                "callback_states": states,
                "states_problem": problem,
            }
            | {"checkpoints": [_checkpoint(c) for c in run.checkpoints], "files": files}
        )
        return
    request = [(n, v) for n, v in run.settings.items() if n not in described and n.partition(".")[0] not in described]
    progress: list[tuple[str, Any]] = [("state", at.state), ("reason", at.reason or run.history_problem)]
    progress += [("epoch", _progress(run)), ("step", at.step)]
    if run.monitor and best:
        progress.append((f"best {run.monitor[0]}", f"{best[0]:.6g} in epoch {best[1] + 1}"))
    progress += [("time", output.duration(at.elapsed)), ("members", len(run.members) if run.is_sweep else None)]
    output.facts([("run", run.facts.get("run")), *progress], title=run.shown)
    output.facts(request, title="request")
    for process in run.processes[-1:]:
        ran = [(name, flat(value)) for name, value in process.items() if value is not None]
        output.facts(ran, title="what ran last")
    rows = [(n, _arguments(w), _state_text(states.get(n, {}))) for n, w in described.items()]
    output.table(("callback", "arguments", "state"), rows, title="callbacks")
    if problem:
        output.say(f"States of callbacks cannot be read: {problem}")
    rows = [
        (os.path.relpath(c.path, run.path), c.step, shown_bytes(c.bytes) if c.saved else None, c.reason or "ok")
        for c in run.checkpoints
    ]
    output.table(("checkpoint", "step", "size", "manifest"), rows, title="checkpoints")
    output.table(("file", "size"), [(name, shown_bytes(count)) for name, count in files.items()], title="files")


def _folder(directory: Path | Address) -> tuple[Path, Running | None]:
    """Returns a folder of this machine with the runs, and functions that find out whether they are being trained."""
    if isinstance(directory, Address):
        from jaxcb._src.report.fetched import fetch_runs

        return fetch_runs(directory)
    if not directory.is_dir():
        near = [path.name for path in directory.parent.iterdir()] if directory.parent.is_dir() else []
        what = "is a file" if directory.exists() else "does not exist"
        raise NotARunError(
            f"{directory} {what}, expected a folder that has runs in it.{did_you_mean(directory.name, near)}"
        )
    return directory, None


def differences(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each run the settings in which not all runs agree; with a single run, none.

    The fields of a callback are compared among the runs that have it. Hashes come last.
    """
    names = {name: None for own in settings for name in own}

    def differs(name: str) -> bool:
        owner = name.partition(".")[0]
        among = [own for own in settings if owner in own] if owner in names else settings
        return len({str(own.get(name)) for own in among}) > 1 or (owner == name and len(among) < len(settings))

    differing = sorted(filter(differs, names), key=lambda n: any("#" in str(own.get(n)) for own in settings))
    return [{name: own[name] for name in differing if name in own} for own in settings]


def made_files(run: RunFolder) -> dict[str, int]:
    """Returns the files of a run besides its checkpoints, with sizes in bytes: those that its records name."""
    names = {*run.facts.get("files", {}), *(run.record.made if run.record is not None else ()), *run.written}
    there = {name: run.path / name for name in names if is_inside(name)}
    return {name: path.stat().st_size for name, path in sorted(there.items()) if path.is_file()}


def _states(run: RunFolder) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns the states of the callbacks in the newest checkpoint, and why they cannot be read."""
    usable = [c for c in run.checkpoints if c.saved is not None]
    newest = max(usable, key=lambda c: (c.step, c.kind == RESULT), default=None)
    if newest is None or newest.saved is None:
        return {}, ""
    if run.address is not None:
        from jaxcb._src.report.fetched import fetch_arrays

        if why := fetch_arrays(run, newest):
            return {}, why
    try:
        return callback_states(newest.saved), ""
    except UnreadableError as error:
        return {}, str(error)


def _listed(run: RunFolder, name: str, different: Mapping[str, Any]) -> dict[str, Any]:
    best, at = run.best(), run.standing
    found = {
        "run": name,
        "id": run.facts.get("run"),
        **at._asdict(),
        "monitor": run.monitor[0] if run.monitor else None,
    }
    return found | {
        "best": best[0] if best else None,
        "best_epoch": best[1] if best else None,
        "differs_in": dict(different),
    }


def _checkpoint(checkpoint: Any) -> dict[str, Any]:
    names = ("path", "step", "kind", "reason", "bytes")
    return {name: getattr(checkpoint, name) for name in names} | {"usable": checkpoint.saved is not None}


def _progress(run: RunFolder) -> str:
    at = run.standing
    return f"{at.epoch}" if at.epochs is None else f"{at.epoch}/{at.epochs}"


def _arguments(words: str) -> str:
    """Returns the arguments of a callback; those of the members of a sweep as their number."""
    fields = described_fields(words)[1]
    shown = {name: value for name, value in fields.items() if f"{name}=" not in _HIDDEN and value != "None"}
    return ", ".join(f"{name}={_several(value)}" for name, value in shown.items())


def _state_text(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_several(value)}" for name, value in state.items())


def _several(value: Any) -> str:
    """Returns a value as text; of many numbers, such as those of the members of a sweep, their count and range."""
    if isinstance(value, str) and value.startswith("Array(["):
        found = _NUMBER.findall(value.partition("dtype")[0])
        value = [float(number) for number in found] if found else value
    if isinstance(value, list) and len(value) > _FEW and all(isinstance(x, int | float) for x in value):
        return f"<{len(value)} numbers, {output.shown(min(value))} to {output.shown(max(value))}>"
    return output.shown(value)


def _clip(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
