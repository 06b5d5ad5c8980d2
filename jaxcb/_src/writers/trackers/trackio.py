"""`TrackioLog` actions: runs in Trackio."""

from dataclasses import dataclass
from typing import Any

from jaxcb._src.writers.trackers.base import HeldValues, Status, TrackedRecord, TrackedRun, Tracker
from jaxcb._src.writers.trackers.writer import TrackerWriter


class TrackioWriter(TrackerWriter):
    """Logs by step. Trackio's local database is read back, so that a record comes exactly once there."""

    def tracker(self, action: Any) -> Tracker:
        return TrackioTracker(action.project, action.run_name, dict(action.options))


@dataclass(eq=False)
class TrackioTracker(Tracker):
    """A run in Trackio.

    Trackio resumes by name, and several runs may have one name. So the run's id is part of the name.

    Args:
        project: the project.
        run_name: the run's name, to which the run's id is appended; None for a name that contains only that id.
        options: further arguments of `trackio.init`.
    """

    project: str
    run_name: str | None
    options: dict[str, Any]

    service = "Trackio"
    package = "trackio"
    batch = 1000
    confirms = False  # `log` puts the record into a queue, which a killed process loses

    _run: Any = None

    @property
    def _is_local(self) -> bool:
        """Whether the records are in a database on this machine."""
        return self._run.url is None

    def open(self, run: TrackedRun) -> str | None:
        import trackio

        if self._run is None:
            name = run.key if self.run_name is None else f"{self.run_name}-{run.key}"
            config = {**self.options.get("config", {}), "jaxcb": dict(run.what_ran)}
            given: dict[str, Any] = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False} | self.options
            # its current run is a context variable, which is this thread's own: the user's run is not touched
            start: Any = trackio.init  # pyright: ignore[reportAttributeAccessIssue]
            self._run = start(self.project, name, **given | {"config": config, "resume": "allow"})
        return self._run.name

    def send(self, records: list[TrackedRecord]) -> None:
        for record in records:
            self._run.log(dict(record.values), step=record.step)

    def missing(self, records: list[TrackedRecord]) -> list[TrackedRecord]:
        if not self._is_local:
            return records
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

        held = HeldValues(records)
        for row in SQLiteStorage.get_logs(self.project, self._run.name, run_id=self._run.id):
            for name, value in row.items():
                # a reserved name, such as "time", is stored with two underscores before it
                held.add(row["step"], name.removeprefix("__"), _number(value))
        return held.missing()

    def close(self, status: Status) -> None:
        run, self._run = self._run, None
        run.finish()


def _number(value: Any) -> Any:
    """Returns a value as it was logged: the database holds non-finite numbers as strings."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
