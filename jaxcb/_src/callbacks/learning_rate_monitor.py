"""`LearningRateMonitor`: logs the learning rate to TensorBoard."""

from typing import Any, Literal

from jaxcb._src.core.actions.tensorboard import Scalars
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.pytree import static


class LearningRateMonitor(Callback):
    """Logs the learning rate of the last update to TensorBoard.

    It is the effective rate, including the factors of all callbacks: `learning_rate`. A ready-made optimizer hides its
    rate; then only the callbacks' factor is logged: `lr_scale`.

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

    every: int | Literal["epoch"] = static(default="epoch")

    def __post_init__(self) -> None:
        if self.every == "epoch":
            return
        if isinstance(self.every, str):
            raise ValueError(f"LearningRateMonitor: every must be 'epoch' or a number of steps, got {self.every!r}.")
        self._set("every", check_int("LearningRateMonitor", "every", self.every, least=1))

    def hooks(self) -> frozenset[str]:
        return frozenset({"on_epoch_end" if self.every == "epoch" else "on_batch_end"})

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Scalars(_rate(metrics), when=metrics.step % self.every == 0)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Scalars(_rate(metrics))


def _rate(metrics: Metrics) -> dict[str, Any]:
    name = "lr_scale" if "lr_scale" in metrics and "learning_rate" not in metrics else "learning_rate"
    return {name: metrics[name]}
