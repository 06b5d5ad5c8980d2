"""`History`: records the metrics of the run."""

from typing import Any, ClassVar

from jaxcb._src.core.actions.logging import LogHistory
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_values


class History(Callback):
    """Records a row at the end of each epoch and at each validation within an epoch.

    A metric that is an array is recorded as one: with a column of `history.csv` for each of its numbers.

    `fit` and `Loop` add one automatically; the rows are `result.history` and, with a `run_dir`, its
    `history.csv`.

    Example:
        >>> import jaxcb as jc
        >>> _, row = jc.History().on_epoch_end((), jc.Metrics({"loss": 0.5}))
        >>> float(row.values["loss"])
        0.5

    Source: `keras.callbacks.History`.
    """

    logs_only: ClassVar[bool] = True

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        values, fresh = fresh_values(metrics)
        return state, LogHistory(values, fresh, when=~metrics.closes_epoch)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        values, fresh = fresh_values(metrics)
        return state, LogHistory(values, fresh)
