"""`Reporter`: base class of the loggers that take scalars by step."""

from typing import Any, ClassVar, Literal

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars, fresh_values
from jaxcb._src.utils.errors import check_interval
from jaxcb._src.utils.names import is_rate
from jaxcb._src.utils.pytree import static


class Reporter(Callback):
    """Abstract base of loggers of the fresh scalars, at the end of epochs and every few steps."""

    takes_arrays: ClassVar[bool] = False  # whether metrics that are arrays are reported as well
    logs_only: ClassVar[bool] = True

    every: int | Literal["epoch"] = static(default="epoch", kw_only=True)

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> Action:
        """Returns the action that logs these values."""
        raise NotImplementedError

    def _values(self, metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
        return fresh_values(metrics) if self.takes_arrays else fresh_scalars(metrics)

    def _check_every(self) -> None:
        self._set("every", check_interval(type(self).__name__, "every", self.every))

    def hooks(self) -> frozenset[str]:
        hooks = Callback.hooks(self)
        return hooks - {"on_batch_end"} if self.every == "epoch" else hooks

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        # At an epoch's last step both a step's own loss and the epoch's mean are reported, so they need two names.
        # A rate is no mean over an epoch: one name serves the curves by step and by epoch.
        values, fresh = (
            {name if is_rate(name) else f"batch_{name}": x for name, x in part.items()}
            for part in self._values(metrics)
        )
        due = metrics.step % self.every == 0 if isinstance(self.every, int) else False
        return state, self._report(values, fresh, due)

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report(*self._values(metrics), when=~metrics.closes_epoch)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report(*self._values(metrics), when=True)
