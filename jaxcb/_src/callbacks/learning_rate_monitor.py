"""`LearningRateMonitor`: logs the learning rate to TensorBoard."""

from typing import Any, ClassVar, Literal

from jaxcb._src.core.actions.tensorboard import Scalars
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_interval
from jaxcb._src.utils.names import is_rate
from jaxcb._src.utils.pytree import static


class LearningRateMonitor(Callback):
    """Logs the learning rate of the last update to TensorBoard.

    It is the effective rate, including the factors of all callbacks: `learning_rate`. A ready-made optimizer hides its
    rate; then only the callbacks' factor is logged: `lr_scale`. Of several rates each has its curve, such as
    `learning_rate/head`.

    Args:
        every: "epoch" for a point at the end of each epoch, or a number of steps for a point where
            `step % every == 0`.

    Raises:
        ValueError: for an invalid `every`.
        MissingMetricError: before the first step, if the optimizer has no learning rate that callbacks can read.

    Example:
        >>> import jaxcb as jc
        >>> monitor = jc.callbacks.LearningRateMonitor()
        >>> _, action = monitor.on_epoch_end((), jc.Metrics({"learning_rate": 0.125}))
        >>> {name: float(value) for name, value in action.values.items()}
        {'learning_rate': 0.125}

    Source: `lightning.pytorch.callbacks.LearningRateMonitor`.
    """

    logs_only: ClassVar[bool] = True

    every: int | Literal["epoch"] = static(default="epoch")

    def __post_init__(self) -> None:
        self._set("every", check_interval("LearningRateMonitor", "every", self.every))

    def hooks(self) -> frozenset[str]:
        return frozenset({"on_epoch_end" if self.every == "epoch" else "on_batch_end"})

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Scalars(_rates(metrics), when=metrics.step % self.every == 0)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Scalars(_rates(metrics))


def _rates(metrics: Metrics) -> dict[str, Any]:
    """Returns the effective rates, and the factor of each optimizer that hides its rate."""
    found = {}
    for name in filter(is_rate, metrics):
        kind, slash, of = name.partition("/")
        hidden = kind == "lr_scale" and f"learning_rate{slash}{of}" not in metrics
        if kind == "learning_rate" or hidden:
            found[name] = metrics[name]
    return found or {"learning_rate": metrics["learning_rate"]}
