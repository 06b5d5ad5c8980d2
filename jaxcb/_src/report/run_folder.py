"""`RunFolder`: the directory of a run, read without JAX and without executing anything of the run's.

All that is read here may be a stranger's: manifests, records and histories are checked by their forms, and sizes are
bounded. Nothing is unpickled, and no name in a run is imported.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.checkpointing.layout import (
    CHECKPOINTS,
    RESULT,
    TABLE,
    checkpoint_place,
    checkpoints_in,
    described_fields,
)
from jaxcb._src.checkpointing.manifest import Saved
from jaxcb._src.history.reader import HISTORY, Records, read_members
from jaxcb._src.report.checkpoints import Checkpoint, newest_facts, read_checkpoint
from jaxcb._src.report.judge import best_of, monitor_of
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.platforms import is_locked

STORES = (CHECKPOINTS, RESULT)  # the folders of a run that hold checkpoints


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


class RunFolder:
    """The directory of a run; `open_run` opens one that a user names.

    Args:
        path: the directory.
        address: where in a bucket it was fetched from; None for a directory of this machine.
        is_running: whether the run is being trained, or a function that finds out; None to look at the lock.

    Attributes:
        path: the directory on this machine.
        address: where it was fetched from, or None.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        address: Address | None = None,
        is_running: bool | Callable[[], bool] | None = None,
    ) -> None:
        self.path, self.address, self._is_running = Path(path), address, is_running

    @property
    def shown(self) -> str:
        """What people call it: its address, or its path."""
        return str(self.address or self.path)

    @functools.cached_property
    def is_running(self) -> bool:
        """Whether the run is being trained."""
        if self._is_running is None:
            return is_locked(self.path)
        return self._is_running if isinstance(self._is_running, bool) else self._is_running()

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
        found = [read_checkpoint(path, kind) for kind in STORES for path in checkpoints_in(self.path / kind)]
        return tuple(sorted(found, key=lambda c: (c.kind == RESULT, *checkpoint_place(c.path.name))))

    @functools.cached_property
    def saved(self) -> Saved | None:
        """The newest checkpoint of the training that can be used, with its arrays; None if there is none."""
        training = (c.saved for c in reversed(self.checkpoints) if c.kind == CHECKPOINTS)
        return next((saved for saved in training if saved is not None), None)

    @functools.cached_property
    def facts(self) -> Mapping[str, Any]:
        """The metadata of the newest checkpoint of the training that can be used; empty if there is none."""
        return newest_facts(self.path / CHECKPOINTS)

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
        result = newest_facts(self.path / RESULT)
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
        if self.is_running:
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
