"""`LogTo`: a logger for any service in five lines."""

from collections.abc import Callable
from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import LogToFunction
from jaxcb._src.utils.pytree import static


class LogTo(Reporter):
    """Hands the metrics to a function of yours, without interrupting the run.

    The function is called on the run's thread when the values have arrived from the device, in order. An `OSError`
    (a service that is down, a full disk) is warned of once, and the function is called again the next time; any
    other exception ends the run. Metrics that are arrays are left out.

    Args:
        fn: `fn(step, {name: float})`, given what was reported at this moment.
        every: "epoch" for the values at the end of each epoch and at each validation in its middle; a number of
            steps for those and, when `step % every == 0`, the step's own values, as `batch_loss`.

    Raises:
        TypeError: for what is no function.
        ValueError: for another `every`.

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
