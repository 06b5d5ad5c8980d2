"""`WandbLog` actions: runs in Weights & Biases."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcb._src.history.wandb_files import logged_rows
from jaxcb._src.utils.errors import DataError
from jaxcb._src.writers.trackers.base import HeldValues, Status, TrackedRecord, TrackedRun, Tracker
from jaxcb._src.writers.trackers.writer import TrackerWriter

_FINISH_SECONDS = 60.0  # W&B's own default waits forever


class WandbWriter(TrackerWriter):
    """Logs by step. What a run holds is read back, from the service or from the folders of an offline run."""

    def tracker(self, action: Any) -> Tracker:
        return WandbTracker(action.options)


@dataclass(eq=False)
class WandbTracker(Tracker):
    """A run in Weights & Biases. The wandb package sends from its own process.

    Online, a resumed run continues at the last step that the service holds, and W&B ignores earlier steps. Offline,
    each process has a folder of its own, all with one id; the folders together hold the run.

    Args:
        options: arguments of `wandb.init`; None for the user's active run, if there is one.
    """

    options: Mapping[str, Any] | None

    service = "Weights & Biases"
    package = "wandb"
    confirms = False  # `log` hands the record to another process, and a row is complete when the next step begins
    opens_first = True  # so that a missing login is an error before the first step
    close_seconds = _FINISH_SECONDS + 10

    _run: Any = None
    _is_ours: bool = True

    def open(self, run: TrackedRun) -> str | None:
        import wandb

        if self._run is not None:
            return self._run.id
        if self.options is None and wandb.run is not None:
            self._run, self._is_ours = wandb.run, False
            return self._run.id
        # started before the first step, and separate from the user's active run
        settings = wandb.Settings(finish_timeout=_FINISH_SECONDS, silent=run.quiet)
        given: dict[str, Any] = {"settings": settings, "reinit": "create_new"}
        if run.directory is not None:
            given["dir"] = str(run.directory)
        given |= dict(self.options or {})
        if not {"resume", "resume_from", "fork_from"} & given.keys():
            given |= {"id": run.id or given.get("id") or run.key, "resume": "allow"}
        self._run = wandb.init(**given)
        self._run.config.update({"jaxcb": dict(run.what_ran)}, allow_val_change=True)
        return self._run.id

    def is_fatal(self, error: Exception) -> bool:
        from wandb.errors import AuthenticationError, UsageError

        return isinstance(error, UsageError | AuthenticationError)

    def send(self, records: list[TrackedRecord]) -> None:
        for record in records:
            self._run.log(dict(record.values), step=record.step)

    def missing(self, records: list[TrackedRecord]) -> list[TrackedRecord]:
        if not self._run.offline:
            return [record for record in records if record.step >= self._run.starting_step]
        own = Path(self._run.dir).parent
        held = HeldValues(records)
        for folder in sorted(own.parent.glob(f"offline-run-*-{self._run.id}")):
            if folder != own:  # its own file is still being written
                for path in folder.glob("*.wandb"):
                    _add_rows(held, path)
        return held.missing()

    def close(self, status: Status) -> None:
        run, self._run = self._run, None
        if self._is_ours:
            run.finish(exit_code=0 if status == "finished" else 1)


def _add_rows(held: HeldValues, path: Path) -> None:
    """Adds what the file of an earlier process holds; what follows damage is sent again."""
    with contextlib.suppress(DataError):
        for row in logged_rows(path):
            for name, value in row.items():
                held.add(row["_step"], name, value)
