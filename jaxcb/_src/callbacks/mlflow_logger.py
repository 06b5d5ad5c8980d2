"""`MLflowLogger`: logs the metrics to MLflow."""

from collections.abc import Mapping
from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import MLflowLog
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_text
from jaxcb._src.utils.pytree import static


class MLflowLogger(Reporter):
    """Logs the metrics to a run in MLflow, by step. Requires `pip install jaxcb[mlflow]`.

    A thread sends them, so training never waits for the server. If the server is down, there is one warning; waiting
    values are sent when it is up again. In a run with a `run_dir` they wait there, and a resumed run is one run in
    MLflow, with each value once. Metrics that are arrays are left out.

    Args:
        experiment: the experiment's name, created if it does not exist; None for the one that the environment variables
            `MLFLOW_EXPERIMENT_ID` or `MLFLOW_EXPERIMENT_NAME` set, else "Default".
        tracking_uri: URI of the server or of a local database, such as "sqlite:///mlflow.db"; None for the one set by
            `mlflow.set_tracking_uri` or `MLFLOW_TRACKING_URI`.
        run_name: the run's name; None lets MLflow choose one.
        tags: tags of the run, a dict.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.

    Raises:
        TypeError: if an argument is not a string, or `tags` not a dict.
        ValueError: for an invalid `every`.

    Example:
        >>> import jaxcb as jc
        >>> jc.callbacks.MLflowLogger("digits", tags={"model": "small"}).tags
        (('model', 'small'),)

    Source: `mlflow.keras.MlflowCallback`.
    """

    experiment: str | None = static(default=None)
    tracking_uri: str | None = static(default=None)
    run_name: str | None = static(default=None, kw_only=True)
    tags: Any = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("experiment", "tracking_uri", "run_name"):
            if getattr(self, name) is not None:
                check_text("MLflowLogger", name, getattr(self, name))
        tags = {} if self.tags is None else self.tags
        if not isinstance(tags, Mapping):
            raise TypeError(f"MLflowLogger: tags must be a dict, got {tags!r}.")
        self._set("tags", tuple(sorted((str(k), str(v)) for k, v in tags.items())))  # hashable, as static fields are
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # opens the run, or fails, before the first step

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> MLflowLog:
        return MLflowLog(values, fresh, self.experiment, self.tracking_uri, self.run_name, self.tags, when=when)
