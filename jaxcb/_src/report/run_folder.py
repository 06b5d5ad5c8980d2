"""`RunFolder`: the directory of a run, read without JAX and without executing anything of the run's.

All that is read here may be a stranger's: manifests, records and histories are checked by their forms, and sizes are
bounded. Nothing is unpickled, and no name in a run is imported.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.layout import (
    CHECKPOINTS,
    FACTS,
    RESULT,
    TABLE,
    checkpoint_place,
    checkpoints_in,
    described_fields,
)
from jaxcb._src.checkpointing.manifest import Saved, UnusableError
from jaxcb._src.core.metric_names import infer_mode_or_none
from jaxcb._src.history.reader import HISTORY, RATES, Records, read_members
from jaxcb._src.storage.ownership import FOLDER, RECORD, RunRecord
from jaxcb._src.storage.schema import FormError
from jaxcb._src.utils.errors import DataError, did_you_mean
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.platforms import is_locked

_STORES = (CHECKPOINTS, RESULT)
_NEVER_RUNS = {".git", ".jaxcb", "__pycache__", "node_modules", ".venv", CHECKPOINTS, RESULT}


class NotARunError(ValueError):
    """A path that is not the directory of a run; the message says what was looked for."""


class Checkpoint(NamedTuple):
    """A checkpoint of a run, as its manifest describes it.

    Attributes:
        path: its directory.
        step: updates done, by its name.
        kind: "checkpoints" for one of the training, "result" for the result of a completed run.
        saved: its contents; None if the manifest cannot be used.
        reason: why it cannot be used; empty otherwise.
        bytes: the size of its files, by the manifest.
    """

    path: Path
    step: int
    kind: str
    saved: Saved | None
    reason: str
    bytes: int


class Standing(NamedTuple):
    """Where a run stands.

    Attributes:
        state: "running", "finished", "stopped", "killed", or "damaged" if no checkpoint or the history can be used.
        reason: which callback stopped it and why; empty otherwise.
        step: updates done.
        epoch: complete epochs.
        epochs: epochs that it was to do; None if it was not limited in epochs.
        elapsed: seconds of training until the last checkpoint, resumes included; None if unknown.
    """

    state: str
    reason: str
    step: int
    epoch: int
    epochs: int | None
    elapsed: float | None


def open_path(text: str | Path) -> Path:
    """Returns the local path of a run or a log that a user names. Addresses of buckets are to be fetched here."""
    return local_path("jaxcb", "path", text)


def is_run(directory: Path) -> bool:
    """Returns whether a directory contains a run: its record, or a checkpoint of it."""
    return (directory / FOLDER / RECORD).is_file() or any(checkpoints_in(directory / name) for name in _STORES)


def find_runs(directory: Path, depth: int = 8) -> Iterator["RunFolder"]:
    """Yields the runs in a directory and below it, in the order of their names. Links are not followed.

    Args:
        directory: where to look.
        depth: levels of directories below it to look into.
    """
    if is_run(directory):
        run = RunFolder(directory)
        parts = [part for part in _directories(directory) if is_run(part)]
        # a sweep whose members needed several programs has a part for each, and is none itself
        if not parts or checkpoints_in(directory / CHECKPOINTS):
            yield run
        for part in parts:
            yield from find_runs(part, depth)
        return  # what else a run has made is not looked into
    for found in _directories(directory) if depth else ():
        yield from find_runs(found, depth - 1)


def _directories(directory: Path) -> list[Path]:
    """Returns the directories in a directory, sorted, without those that never are runs."""
    try:
        entries = [entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [directory / name for name in sorted(entries) if name not in _NEVER_RUNS]


class RunFolder:
    """The directory of a run.

    Args:
        path: the directory.

    Raises:
        NotARunError: if it is none; the message names what was looked for, and runs below it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = open_path(path)
        if not self.path.is_dir():
            near = [p.name for p in self.path.parent.iterdir() if p.is_dir()] if self.path.parent.is_dir() else []
            what = "is a file" if self.path.exists() else "does not exist"
            raise NotARunError(
                f"{path} {what}, expected the directory of a run, the run_dir= of fit."
                f"{did_you_mean(self.path.name, near)}"
            )
        if not is_run(self.path):
            below = [str(run.path.relative_to(self.path)) for run in find_runs(self.path, depth=2)][:5]
            more = f" Runs below it: {', '.join(below)}." if below else ""
            raise NotARunError(
                f"{path} is not the directory of a run: it has neither {FOLDER}/{RECORD} nor a checkpoint in "
                f"{CHECKPOINTS}/ or {RESULT}/.{more}"
            )

    @functools.cached_property
    def record(self) -> RunRecord | None:
        """The record of the run's files; None for a run without one.

        Raises:
            ValueError: for a damaged record.
        """
        return RunRecord.read(self.path)

    @property
    def processes(self) -> list[dict[str, Any]]:
        """What ran, for each process that has trained the run: command, commit, versions, devices. Oldest first."""
        return [] if self.record is None else self.record.processes

    @functools.cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All checkpoints, the oldest first; the result of a completed run is the last one."""
        found = [_checkpoint(path, kind) for kind in _STORES for path in checkpoints_in(self.path / kind)]
        return tuple(sorted(found, key=lambda c: (c.kind == RESULT, *checkpoint_place(c.path.name))))

    @functools.cached_property
    def saved(self) -> Saved | None:
        """The newest checkpoint of the training that can be used, with its arrays; None if there is none."""
        training = (c.saved for c in reversed(self.checkpoints) if c.kind == CHECKPOINTS)
        return next((saved for saved in training if saved is not None), None)

    @functools.cached_property
    def facts(self) -> Mapping[str, Any]:
        """The metadata of the newest checkpoint of the training that can be used; empty if there is none."""
        return _newest_facts(self.path / CHECKPOINTS)

    @property
    def written(self) -> list[str]:
        """The files that writers had a position in at the newest checkpoint."""
        sizes = (p.get("sizes") for p in self.facts.get("writers", {}).values() if isinstance(p, dict))
        return [name for own in sizes if isinstance(own, dict) for name in own]

    @property
    def config(self) -> Mapping[str, Any]:
        """The request of the run, as its newest checkpoint has it; empty if there is none."""
        return self.facts.get("config", {})

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended by itself, and its result was saved."""
        result = _newest_facts(self.path / RESULT)
        return bool(self.facts.get("over")) and result.get("step") == self.facts["step"]

    @functools.cached_property
    def _history(self) -> tuple[dict[int | None, Records], DataError | OSError | None]:
        """The recorded metrics, and why they cannot be read."""
        try:
            path = self.path / HISTORY
            return (read_members(path) if path.is_file() else {}), None
        except (DataError, OSError) as error:
            return {}, error

    @property
    def members(self) -> dict[int | None, Records]:
        """The recorded metrics of each member; of a single run under None.

        Empty before the first record, and for a history that is damaged; then `history_problem` says why.
        """
        return self._history[0]

    @property
    def history_problem(self) -> str:
        """Why the history cannot be read; empty if it can."""
        return "" if self._history[1] is None else str(self._history[1])

    def check_history(self) -> None:
        """Raises the error of a history that cannot be read.

        Raises:
            DataError: it says what is wrong.
            OSError: if the file cannot be opened.
        """
        if self._history[1] is not None:
            raise self._history[1]

    @property
    def records(self) -> Records | None:
        """The recorded metrics of a single run, or of the first member; None before the first record."""
        return next(iter(self.members.values()), None)

    @property
    def is_sweep(self) -> bool:
        """Whether it is a population."""
        return self.facts.get("strategy") is not None or None not in (self.members or {None: None})

    def stops(self, member: int | None = None) -> list[Any]:
        """Returns the stops in the newest checkpoint, each with owner, reason, step and epoch.

        Args:
            member: a member of a sweep; None for all.
        """
        return [stop for stop in self.facts.get("stops", []) if member is None or stop[4:] == [member]]

    @functools.cached_property
    def standing(self) -> Standing:
        """Where the run stands."""
        facts, stops = self.facts, self.stops()
        last = [(int(r.step[-1]), int(r.epoch[-1]) + 1) for r in self.members.values()]
        step = max([facts.get("step", 0), *(step for step, _ in last)])
        epoch = max([facts.get("epoch", 0), *(epoch for _, epoch in last)])
        if is_locked(self.path):
            state = "running"
        elif self.history_problem or (not facts and self.checkpoints):
            state = "damaged"
        elif not facts:
            state = "killed"
        elif self.is_complete:
            state = "stopped" if stops and not self.is_sweep else "finished"
        else:
            state = "killed"
        reasons = [f"{owner}: {reason}" if owner else reason for owner, reason, *_ in stops]
        if self.is_sweep:
            stopped = len({stop[4] for stop in stops if len(stop) > 4})
            reasons = [f"{stopped} of {len(self.members)} members stopped"] if stops else []
        return Standing(state, "; ".join(reasons), step, epoch, self.config.get("epochs"), facts.get("elapsed"))

    @functools.cached_property
    def monitor(self) -> tuple[str, str] | None:
        """The metric by which the run is judged, and "min" or "max"; None if no name implies a direction.

        That of the first callback with a monitor, otherwise `val_loss`, another metric of the validation, or a loss.
        """
        names = [] if self.records is None else self.records.names
        for words in self.facts.get("callbacks", {}).values():
            given = dict(word.split("=", 1) for word in words.split(" ")[1:] if "=" in word)
            if given.get("monitor") in names and given.get("mode") in ("min", "max"):
                return given["monitor"], given["mode"]
        return monitor_of(names)

    def best(self, member: int | None = None) -> tuple[float, int] | None:
        """Returns the best report of the monitor and its epoch, from 0; None if there is none.

        Args:
            member: a member of a sweep; None for all.
        """
        whose = self.members.values() if member is None else [self.members[member]]
        if self.monitor is None:
            return None
        name, mode = self.monitor
        found = [best for records in whose if (best := best_of(records, name, mode)) is not None]
        return min(found, key=lambda best: best[0] if mode == "min" else -best[0], default=None)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the run was made with, name -> value, by which runs differ.

        Numbers of callbacks are named `EarlyStopping.patience`. Of data and functions there are lengths and hashes.
        """
        config, found = self.config, {}
        found |= {name: config[name] for name in ("epochs", "steps") if config.get(name) is not None}
        found |= dict(config.get("data", {}))
        for name, value in config.get("request", {}).items():
            if name == "validation":
                found |= {f"validation {part}".strip(): _short(v) for part, v in value.items()}
            else:
                found[name] = _short(value)
        for name, words in config.get("callbacks", {}).items():
            kind, fields = described_fields(words)
            found[name] = kind
            found |= {f"{name}.{field}": value for field, value in fields.items() if field != "name"}
        found |= {"layout": config.get("layout"), "executor": self.facts.get("executor")}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def table(self) -> Path | None:
        """The table of a sweep's members; None if there is none."""
        path = self.path / TABLE
        return path if path.is_file() else None


def monitor_of(names: Any) -> tuple[str, str] | None:
    """Returns the metric by which a log is judged, and its direction; None if no name implies one."""
    last = {"val_loss": 0, "loss": 2}
    order = sorted(names, key=lambda name: (last.get(name, 1 if name.startswith("val_") else 3), name))
    return next(((n, mode) for n in order if n not in RATES and (mode := infer_mode_or_none(n))), None)


def best_of(records: Records, name: str, mode: str) -> tuple[float, int] | None:
    """Returns the best report of a metric and its epoch, from 0; None if no report is a number."""
    values = reports_of(records, name).astype(np.float64)
    if np.all(np.isnan(values)):
        return None
    row = int(np.nanargmin(values) if mode == "min" else np.nanargmax(values))
    return float(records.values[row, records.names.index(name)]), int(records.epoch[row])


def reports_of(records: Records, name: str) -> np.ndarray:
    """Returns the values of a metric, NaN at records at which it was not reported, float32 (records,)."""
    at = records.names.index(name)
    return np.where(records.fresh[:, at], records.values[:, at], np.float32(np.nan))


def _newest_facts(store: Path) -> dict[str, Any]:
    """Returns the metadata of the newest checkpoint that can be used; empty if there is none."""
    for path in sorted(checkpoints_in(store), key=lambda path: checkpoint_place(path.name), reverse=True):
        with contextlib.suppress(UnusableError, FormError):
            step, facts = _manifest.read_facts(path)
            FACTS(facts, "facts")
            if facts["step"] == step:
                return facts
    return {}


def _checkpoint(path: Path, kind: str) -> Checkpoint:
    """Reads the manifest of a checkpoint."""
    step = checkpoint_place(path.name)[0]
    try:
        saved, files = _manifest.read(path)
        FACTS(saved.facts, "facts")
    except UnusableError as error:
        return Checkpoint(path, step, kind, None, str(error), 0)
    except FormError as error:
        return Checkpoint(path, step, kind, None, f"{_manifest.NAME} has invalid contents: {error}", 0)
    return Checkpoint(path, step, kind, saved, "", sum(size for size, _ in files.values()))


def _short(fact: Any) -> Any:
    """Returns a fact about data or a function as one value: its length and hash."""
    if not isinstance(fact, dict):
        return fact
    parts = [f"{fact[part]} {part}" for part in ("rows", "batches") if part in fact]
    return " ".join([*parts, *([f"#{fact['hash'][:8]}"] if fact.get("hash") else [])]) or str(fact)


def flat(value: Any) -> str:
    """Returns a fact of what ran as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
