"""`ProgressBar`: shows the progress of the run."""

from typing import Any, ClassVar, Literal

from jaxcb._src.core.actions.logging import LogProgress
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars
from jaxcb._src.utils.errors import check_choice
from jaxcb._src.utils.pytree import static


class ProgressBar(Callback):
    """Shows a live bar on a terminal, and one line per epoch elsewhere.

    `fit` adds one automatically unless `verbose=0`.

    Args:
        verbose: 1 for the bar (metrics, time left, steps per second), 2 for one line per epoch, 0 for no output.
            None is the bar on a terminal and lines elsewhere.

    Raises:
        ValueError: for an invalid `verbose`.

    Example:
        >>> import jaxcb as jc
        >>> jc.ProgressBar(verbose=2).verbose
        2

    Source: `keras.callbacks.ProgbarLogger`.
    """

    affects_run: ClassVar[bool] = False  # `fit` adds and drops it with `verbose`
    logs_only: ClassVar[bool] = True

    verbose: Literal[0, 1, 2] | None = static(default=None)

    def __post_init__(self) -> None:
        check_choice("ProgressBar", "verbose", self.verbose, (None, 0, 1, 2))

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._progress(metrics, when=~metrics.closes_epoch)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._progress(metrics, when=True)

    def _progress(self, metrics: Metrics, when: Any) -> Any:
        if self.verbose == 0:
            return None
        values, fresh = fresh_scalars(metrics)
        return LogProgress(values, fresh, self.verbose, when=when)
