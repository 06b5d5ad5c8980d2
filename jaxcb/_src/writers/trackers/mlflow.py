"""`MLflowLog` actions: runs in MLflow."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxcb._src.writers.trackers.base import RefusedError, Status, TrackedRecord, TrackedRun, Tracker
from jaxcb._src.writers.trackers.writer import TrackerWriter

_METRICS = 1000  # MLflow's maximum per request
_TAG = 4000  # characters of a tag
_KEY_TAG = "jaxcb.run"
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflowWriter(TrackerWriter):
    """Logs by step. MLflow's history of each metric is read back, so that a record comes exactly once."""

    def tracker(self, action: Any) -> Tracker:
        return MLflowTracker(action.experiment, action.tracking_uri, action.run_name, action.tags)


@dataclass(eq=False)
class MLflowTracker(Tracker):
    """A run in MLflow; the user's active run is not used.

    MLflow chooses the id of a run. A tag with the run's key finds it again if that id was lost: when the process is
    killed before a checkpoint contains it, or when the response of the server is lost.

    Args:
        experiment: the experiment's name, or None.
        tracking_uri: URI of the server or the local store, or None.
        run_name: the run's name, or None.
        tags: tags of the run, pairs of name and value.
    """

    experiment: str | None
    tracking_uri: str | None
    run_name: str | None
    tags: tuple[tuple[str, str], ...]

    service = "MLflow"
    package = "mlflow"

    _client: Any = None
    _id: str = ""

    def check(self, owner: str) -> None:
        super().check(owner)
        from mlflow import MlflowClient

        # An invalid store raises an error here, before the first step; a server is not contacted yet.
        self._client = MlflowClient(tracking_uri=self.tracking_uri)

    def open(self, run: TrackedRun) -> str | None:
        if run.id is None:
            self._id = self._find_or_create(run)
        else:
            self._id = run.id
            self._client.update_run(self._id, status="RUNNING")
            for name, value in _tags(run.what_ran).items():
                self._client.set_tag(self._id, name, value)
        return self._id

    def _find_or_create(self, run: TrackedRun) -> str:
        name = self.experiment
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") if name is None else None
        if experiment is None:
            name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
            known = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{run.key}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {_KEY_TAG: run.key} | _tags(run.what_ran) | dict(self.tags)
        return self._client.create_run(experiment, tags=tags, run_name=self.run_name).info.run_id

    def send(self, records: list[TrackedRecord]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [
            Metric(name, float(value), int(1000 * record.time), record.step)
            for record in records
            for name, value in record.values.items()
        ]
        try:
            for start in range(0, len(metrics), _METRICS):
                self._client.log_batch(self._id, metrics[start : start + _METRICS])
        except MlflowException as error:
            if 400 <= error.get_http_status_code() < 500:
                raise RefusedError(str(error)) from error
            raise

    def history(self, name: str) -> Iterable[tuple[int, float]]:
        return [(point.step, point.value) for point in self._client.get_metric_history(self._id, name)]

    def close(self, status: Status) -> None:
        self._client.set_terminated(self._id, _STATUS[status])


def _tags(what_ran: Mapping[str, Any]) -> dict[str, str]:
    """Returns what ran as tags: some under the names that MLflow's own pages show, all under those of jaxcb."""
    tags = {f"jaxcb.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in what_ran.items()}
    if what_ran.get("commit"):
        tags["mlflow.source.git.commit"] = what_ran["commit"]
    if what_ran.get("command"):
        tags |= {"mlflow.source.name": " ".join(what_ran["command"]), "mlflow.source.type": "LOCAL"}
    return {name: value[:_TAG] for name, value in tags.items()}
