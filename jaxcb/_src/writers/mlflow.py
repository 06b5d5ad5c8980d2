"""Writer for runs in MLflow."""

import importlib.util
import os
import time
from typing import Any

from jaxcb._src.writers.base import Writer
from jaxcb._src.writers.queue import AsyncSender, RefusedError
from jaxcb._src.writers.scalars import fresh_floats

_WAITING = 10_000  # maximum number of waiting records
_AT_ONCE = 100  # records per batch
_METRICS = 1000  # MLflow's maximum per request
_CLOSE_SECONDS = 30.0


class MLflowWriter(Writer):
    """Logs by step from a background thread, because MLflow's client waits minutes for a server that is down."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._outboxes: dict[str, AsyncSender] = {}

    def prepare(self, action: Any) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise ImportError(f"{action.owner} needs the package mlflow: pip install jaxcb[mlflow].")

    def write(self, record: Any) -> None:
        owner = record.action.owner
        if self.context.trial:
            return
        if owner not in self._outboxes:
            send = _Run(record.action).send
            outbox = AsyncSender(f"{owner}'s MLflow", send, self.context.warn, capacity=_WAITING, batch=_AT_ONCE)
            self._outboxes[owner] = outbox
            self._outboxes[owner].put({})  # creates the run
        values = fresh_floats(record.action)
        if values:
            now = int(1000 * time.time())
            self._outboxes[owner].put({"step": record.step, "timestamp": now, "values": values})

    def tick(self, status: Any) -> None:
        for outbox in self._outboxes.values():
            outbox.check()

    def close(self) -> None:
        status = "FINISHED" if self.context.failure is None else "FAILED"
        for outbox in self._outboxes.values():
            outbox.put({"status": status})
            outbox.close(_CLOSE_SECONDS)


class _Run:
    """A new MLflow run; the user's active run is not used."""

    def __init__(self, action: Any) -> None:
        from mlflow import MlflowClient

        # An invalid store raises an error here, before the first step; a server is not contacted yet.
        self._client = MlflowClient(tracking_uri=action.tracking_uri)
        self._action = action
        self._id: str | None = None

    def send(self, items: list[dict[str, Any]]) -> None:
        """Sends records in order. Called on the sender's thread."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        try:
            if self._id is None:
                self._id = self._create()
            metrics = [
                Metric(name, value, item["timestamp"], item["step"])
                for item in items
                for name, value in item.get("values", {}).items()
            ]
            for start in range(0, len(metrics), _METRICS):
                self._client.log_batch(self._id, metrics[start : start + _METRICS])
            for item in items:
                if "status" in item:
                    self._client.set_terminated(self._id, item["status"])
        except MlflowException as error:
            if 400 <= error.get_http_status_code() < 500:
                raise RefusedError(str(error)) from error
            raise

    def _create(self) -> str:
        name = self._action.experiment
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") if name is None else None
        if experiment is None:
            name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
            known = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        run = self._client.create_run(experiment, tags=dict(self._action.tags), run_name=self._action.run_name)
        return run.info.run_id
