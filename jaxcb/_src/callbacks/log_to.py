"""`LogTo`: passes the metrics to a function, to log to any service."""

from collections.abc import Callable
from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import LogToFunction
from jaxcb._src.utils.pytree import static


class LogTo(Reporter):
    """Passes the metrics to a function, without interrupting the run.

    The function is called on the run's thread, in order, when the values have arrived from the device. An `OSError`
    (a service that is down, a full disk) leads to one warning, and later calls still take place; any other exception
    ends the run. Metrics that are arrays are left out.

    Args:
        fn: `fn(step, {name: float})`, called with the values reported in this hook call.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.

    Raises:
        TypeError: if `fn` is not callable.
        ValueError: for an invalid `every`.

    Example:
        >>> import jaxcb as jc
        >>> seen = []
        >>> logger = jc.callbacks.LogTo(lambda step, values: seen.append((step, values)))
        >>> _, action = logger.on_epoch_end((), jc.Metrics({"loss": 0.5, "val_loss": None}, step=10))
        >>> bool(action.fresh["loss"]), bool(action.fresh["val_loss"])
        (True, False)
    """

    fn: Callable[[int, dict[str, float]], Any] = static()

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"LogTo: fn must be a function of (step, values), got {self.fn!r}.")
        self._check_every()

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> LogToFunction:
        return LogToFunction(values, fresh, self.fn, when=when)
