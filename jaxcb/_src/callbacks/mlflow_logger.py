"""`MLflowLogger`: the metrics in MLflow."""

from collections.abc import Mapping
from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import MLflowLog
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.pytree import static


class MLflowLogger(Reporter):
    """Logs the metrics to a run in MLflow, by step. Needs `pip install jaxcb[mlflow]`.

    A thread sends them, so the training never waits for the server. A server that is down is warned of once; what
    waits is sent when it is back. Metrics that are arrays are left out.

    Args:
        experiment: the experiment's name, made where there is none; where None the one that `MLFLOW_EXPERIMENT_ID`
            or `MLFLOW_EXPERIMENT_NAME` in the environment name, else "Default".
        tracking_uri: of the server or the local store; where None what `mlflow.set_tracking_uri` or
            `MLFLOW_TRACKING_URI` say.
        run_name: the run's name; MLflow chooses one where None.
        tags: of the run, a dict.
        every: "epoch" for the values at the end of each epoch and at each validation in its middle; a number of
            steps for those and, when `step % every == 0`, the step's own values, as `batch_loss`.

    Raises:
        TypeError: for an argument that is no text, or tags that are no dict.
        ValueError: for another `every`.

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
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"MLflowLogger: {name} must be a text, got {value!r}.")
        tags = {} if self.tags is None else self.tags
        if not isinstance(tags, Mapping):
            raise TypeError(f"MLflowLogger: tags must be a dict, got {tags!r}.")
        self._set("tags", tuple(sorted((str(k), str(v)) for k, v in tags.items())))  # hashable, as static fields are
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # so that it opens, or fails, before the first step

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> MLflowLog:
        return MLflowLog(values, fresh, self.experiment, self.tracking_uri, self.run_name, self.tags, when=when)
