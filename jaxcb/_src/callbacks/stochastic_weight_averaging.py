"""`StochasticWeightAveraging`: ends the run with the average of the weights of its last epochs."""

from typing import Any, Literal

import jax.numpy as jnp

from jaxcb._src.core.actions.control import Average, Restore, SetLearningRate
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_choice, check_int, check_number
from jaxcb._src.utils.pytree import Struct, static, to_strong_types


class StochasticWeightAveragingState(Struct):
    """State of `StochasticWeightAveraging`."""

    count: Any  # int32 (), epochs in the average


class StochasticWeightAveraging(Callback):
    """Ends the run with the equally weighted average of the weights at the ends of epochs, from `start_epoch` on.

    Training and validation use the raw weights; the average replaces them when the run ends, also if it is stopped
    early. A run that ends before `start_epoch` keeps its weights.

    Batch norms: the statistics in the model's state belong to the raw weights, not to their average. `of="params"`
    keeps those of the last epoch; `of="model"` averages them as well, which is more accurate. Exact statistics need a
    forward pass over the training data with the averaged weights, in training mode, after the run.

    Args:
        start_epoch: the first epoch, from 0, whose weights are averaged.
        every: epochs between two averaged ones, counted from `start_epoch`.
        learning_rate: the base rate from `start_epoch` on, usually high and constant; None for no change. It is set at
            the start of each of these epochs and still multiplied by the callbacks' factors. Requires a learning rate
            that callbacks can set (`fit(optimizer=optax.sgd, learning_rate=...)` or `adjustable_lr`).
        of: "params", or "model" to average the floating arrays of the model's state as well.

    State:
        `count`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> swa = jc.callbacks.StochasticWeightAveraging(start_epoch=1)
        >>> result = jc.fit(jnp.zeros(()), lambda w, batch: jnp.mean(w * batch), jnp.ones(1), optimizer=optax.sgd,
        ...                 learning_rate=1.0, epochs=4, callbacks=[swa], verbose=0)
        >>> float(result.params)  # of -2, -3 and -4
        -3.0

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
    """

    start_epoch: Any
    every: int = static(default=1)
    learning_rate: Any = None
    of: Literal["params", "model"] = static(default="params")

    def __post_init__(self) -> None:
        self._set("start_epoch", check_int("StochasticWeightAveraging", "start_epoch", self.start_epoch))
        self._set("every", check_int("StochasticWeightAveraging", "every", self.every, least=1))
        if self.learning_rate is not None:
            rate = check_number("StochasticWeightAveraging", "learning_rate", self.learning_rate, least=0.0)
            self._set("learning_rate", rate)
        check_choice("StochasticWeightAveraging", "of", self.of, ("params", "model"))

    def init(self) -> StochasticWeightAveragingState:
        return to_strong_types(StochasticWeightAveragingState(count=0))

    def slots(self) -> dict[str, str]:
        return {"average": self.of}

    def hooks(self) -> frozenset[str]:
        return super().hooks() - ({"on_epoch_begin"} if self.learning_rate is None else frozenset())

    def on_epoch_begin(self, state: StochasticWeightAveragingState, metrics: Metrics) -> Any:
        return state, SetLearningRate(self.learning_rate, when=metrics.epoch >= self.start_epoch)

    def on_epoch_end(self, state: StochasticWeightAveragingState, metrics: Metrics) -> Any:
        since = metrics.epoch - self.start_epoch
        due = (since >= 0) & (since % self.every == 0)
        count = state.count.astype(jnp.float32)
        return (
            state.replace(count=state.count + due.astype(jnp.int32)),
            Average("average", count / (count + 1), when=due),
        )

    def on_train_end(self, state: StochasticWeightAveragingState, metrics: Metrics) -> Any:
        return state, Restore("average")
