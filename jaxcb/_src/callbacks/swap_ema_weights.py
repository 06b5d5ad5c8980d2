"""`SwapEMAWeights`: validates and ends with a moving average of the weights."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jaxcb._src.core.actions.control import Average, Swap
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_between, check_choice, check_int
from jaxcb._src.utils.pytree import Struct, static, to_strong_types


class SwapEMAWeightsState(Struct):
    """State of `SwapEMAWeights`."""

    averaged: Any  # bool (), whether the named weights "ema" hold an average
    swapped: Any  # bool (), whether the average is in the model, and the raw weights in "ema"


class SwapEMAWeights(Callback):
    """Keeps an exponential moving average of the weights, validates with it and ends the run with it.

    `ema = decay * ema + (1 - decay) * weights`; the first update copies the weights. Training itself always uses the
    raw weights. The averages are swapped in before each validation, and out at the end of the epoch or before the
    next step, whichever comes first. So a callback that acts on a validation, such as `EarlyStopping` when it copies
    the best weights, sees the weights that were validated, in any order of callbacks.

    The run ends with the averages, also if it is stopped early. To end with the best averaged weights instead,
    put `EarlyStopping(restore_best_weights=True)` after this callback: of two callbacks that set the weights, the
    later one takes effect.

    Args:
        swap_on_epoch: whether the averages are also in the model from the end of each epoch until the next one begins,
            so that host actions in between (a checkpoint, your own function) see them instead of the raw weights.
        decay: factor of the old average at each update, strictly between 0 and 1.
        every: steps between two updates of the average; an update is due when `step % every == 0`.
        start_step: the first step at which an update may be due.
        start_epoch: the first epoch, from 0, in which an update may be due.
        warmup: number of updates of the average after which the decay has grown to `decay`: update n has the decay
            `min(decay, (1 + n) / (warmup + n))`, so that the first weights do not stay in the average. 0 for none.
        of: "params", or "model" to average the floating arrays of the model's state as well, such as the
            statistics of batch norms. With "params", the averaged weights use the statistics of the raw ones.

    State:
        `averaged`, `swapped`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> ema = jc.SwapEMAWeights(decay=0.5)
        >>> result = jc.fit(jnp.zeros(()), lambda w, batch: jnp.mean(w * batch), jnp.ones(3), optimizer=optax.sgd,
        ...                 learning_rate=1.0, epochs=1, batch_size=1, callbacks=[ema], verbose=0)
        >>> float(result.params)  # of -1, -2 and -3
        -2.25

    Source: `keras.callbacks.SwapEMAWeights`, where the optimizer keeps the averages, and only of the
    parameters. Differs in ending with the averages when the run is stopped early, and with `swap_on_epoch=True`.
    """

    swap_on_epoch: bool = static(default=False)
    decay: Any = dataclasses.field(default=0.99, kw_only=True)
    every: int = static(default=1, kw_only=True)
    start_step: Any = dataclasses.field(default=0, kw_only=True)
    start_epoch: Any = dataclasses.field(default=0, kw_only=True)
    warmup: Any = dataclasses.field(default=0, kw_only=True)
    of: Literal["params", "model"] = static(default="params", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("SwapEMAWeights", "swap_on_epoch", self.swap_on_epoch, (False, True))
        self._set("decay", check_between("SwapEMAWeights", "decay", self.decay, 0.0, 1.0))
        self._set("every", check_int("SwapEMAWeights", "every", self.every, least=1))
        for name in ("start_step", "start_epoch", "warmup"):
            self._set(name, check_int("SwapEMAWeights", name, getattr(self, name)))
        check_choice("SwapEMAWeights", "of", self.of, ("params", "model"))

    def init(self) -> SwapEMAWeightsState:
        return to_strong_types(SwapEMAWeightsState(averaged=False, swapped=False))

    def slots(self) -> dict[str, str]:
        return {"ema": self.of}

    def hooks(self) -> frozenset[str]:
        # without swap_on_epoch the raw weights are back before the next epoch begins
        return super().hooks() - (frozenset() if self.swap_on_epoch else {"on_epoch_begin"})

    def on_epoch_begin(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        return self._swap(state, into=False)

    def on_batch_begin(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        return self._swap(state, into=False)

    def on_batch_end(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        due = (metrics.step % self.every == 0) & (metrics.step >= self.start_step)
        if not _is_zero(self.start_epoch):
            due = due & (metrics.epoch >= self.start_epoch)
        return state.replace(averaged=state.averaged | due), Average("ema", self._decay(metrics), when=due)

    def _decay(self, metrics: Metrics) -> Any:
        """Returns the decay of this update. How many there were follows from the step, and is not counted."""
        if _is_zero(self.warmup):
            return self.decay
        first = jnp.maximum(jnp.asarray(self.start_step, jnp.int32), 1)
        number = jnp.maximum((metrics.step - first) // self.every, 0).astype(jnp.float32)
        return jnp.minimum(self.decay, (1.0 + number) / (jnp.asarray(self.warmup, jnp.float32) + number))

    def on_eval_begin(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        return self._swap(state, into=True)

    def on_epoch_end(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        return self._swap(state, into=self.swap_on_epoch)

    def on_train_end(self, state: SwapEMAWeightsState, metrics: Metrics) -> Any:
        return self._swap(state, into=True)

    def _swap(self, state: SwapEMAWeightsState, *, into: bool) -> Any:
        """Swaps the averages into the model, if there are any, or the raw weights back."""
        swapped = state.averaged if into else jnp.zeros_like(state.swapped)
        return state.replace(swapped=swapped), Swap("ema", when=swapped != state.swapped)


def _is_zero(number: Any) -> bool:
    """Returns whether a number is known to be 0, so that what it asks for costs nothing."""
    return isinstance(number, int | float) and number == 0
