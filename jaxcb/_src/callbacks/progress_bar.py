"""`ProgressBar`: the display of a run's progress."""

from typing import Any, ClassVar, Literal

from jaxcb._src.core.actions.logging import LogProgress
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars
from jaxcb._src.utils.pytree import static
from jaxcb._src.utils.validate import check_choice


class ProgressBar(Callback):
    """Shows a live bar on a terminal, and a line an epoch elsewhere.

    `fit` adds one unless `verbose=0`.

    Args:
        verbose: 0 for silence, 1 for the bar (metrics, time left, steps a second), 2 for a line an epoch. None is the
            bar on a terminal, and lines elsewhere.

    Raises:
        ValueError: for another `verbose`.

    Example:
        >>> import jaxcb as jc
        >>> jc.ProgressBar(verbose=2).verbose
        2

    Source: `keras.callbacks.ProgbarLogger`.
    """

    affects_run: ClassVar[bool] = False  # `fit` adds and drops it with `verbose`

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
