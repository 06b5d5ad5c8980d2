"""`TrackerLogger`: logs the metrics to a tracking service of the user's choice."""

from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import LogTracker
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.pytree import static


class TrackerLogger(Reporter):
    """Logs the metrics to a tracking service, by step, with a `jc.writers.Tracker`.

    A thread sends them, so training never waits for the service. In a run with a `run_dir`, records wait there while
    the service is down, and a resumed run is one run in the service. Metrics that are arrays are left out.

    Args:
        tracker: the client of the service, an instance of a subclass of `jc.writers.Tracker`.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.

    Raises:
        TypeError: if `tracker` is not a tracker, or not hashable.
        ValueError: for an invalid `every`.

    Example:
        >>> import jaxcb as jc
        >>> tracker = jc.writers.HTTPTracker("http://localhost:9000/metrics", timeout=5.0)
        >>> jc.callbacks.TrackerLogger(tracker, every=100).tracker.timeout
        5.0
    """

    tracker: Any = static()

    def __post_init__(self) -> None:
        given = self.tracker
        methods = ("check", "open", "send", "missing", "close")
        if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in methods):
            raise TypeError(
                f"TrackerLogger: tracker must be an instance of a subclass of jc.writers.Tracker, got {given!r}."
            )
        try:
            hash(given)
        except TypeError:
            raise TypeError(
                f"TrackerLogger: tracker must be hashable, got a {type(given).__name__}. Make it an ordinary class, or "
                "a dataclass with @dataclass(frozen=True) or @dataclass(eq=False)."
            ) from None
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # opens the service's run

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> LogTracker:
        return LogTracker(values, fresh, self.tracker, when=when)
