"""`LearningRateScheduler`: sets the base learning rate as a function of the epoch or the step."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.actions.control import SetLearningRate
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, rates_in
from jaxcb._src.utils.errors import check_choice, check_rate_name, check_verbose
from jaxcb._src.utils.pytree import static

_EPOCHS = 10_000  # epochs tabulated for a Python function that cannot be traced; later epochs keep the last value
_PROBED = (0, 1, 2, 5, 10, 31, 32, 100, 1000)  # epochs at which a traced schedule is compared with Python
_PROBES = (1.0, 0.37, 2.9e-3)  # rates at which a Python function of (epoch, lr) is sampled


class LearningRateScheduler(Callback):
    """Sets the base learning rate at the start of each epoch or step.

    The factors of other callbacks, such as a plateau's, still multiply it. Requires a learning rate that callbacks can
    set (`fit(optimizer=optax.adam, learning_rate=...)` or `adjustable_lr`).

    Args:
        schedule: an optax schedule, or Keras's `fn(epoch)` or `fn(epoch, lr)`, with the epoch from 0 and the current
            base rate `lr`. Functions that jax can trace are traced. Other Python functions of the epoch
            (`if epoch < 10`, `math.exp`) are tabulated on the host for 10,000 epochs, and must be linear in `lr`.
        verbose: 1 prints a line at each epoch.
        by: "epoch", or "step" for a schedule of the updates done.
        of: name of the learning rate to set, if there are several: that of the group `head/**` of
            `fit(optimizer={...})` is "head". None sets all of them.

    Raises:
        TypeError: if the schedule is not callable, or can be neither traced nor tabulated.
        ValueError: for an invalid `by`.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.LearningRateScheduler(lambda epoch: 0.1 if epoch < 10 else 0.01)
        >>> _, (action,) = callback.on_epoch_begin((), jc.Metrics({}, epoch=12))
        >>> round(float(action.value), 6)
        0.01

    Source: `keras.callbacks.LearningRateScheduler`, which overrides a plateau's reductions at each epoch.
    """

    schedule: Callable[..., Any] = static()
    verbose: int = static(default=0)
    by: Literal["epoch", "step"] = static(default="epoch", kw_only=True)
    of: str | None = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise TypeError(f"LearningRateScheduler: schedule must be a function, got {self.schedule!r}.")
        check_choice("LearningRateScheduler", "by", self.by, ("epoch", "step"))
        check_rate_name("LearningRateScheduler", self.of)
        check_verbose("LearningRateScheduler", self.verbose)

    def hooks(self) -> frozenset[str]:
        return frozenset({"on_epoch_begin" if self.by == "epoch" else "on_batch_begin"})

    def on_epoch_begin(self, state: Any, metrics: Metrics) -> Any:
        actions: list[Any] = []
        for of, rate in self._rates(metrics.epoch, metrics).items():
            actions.append(SetLearningRate(rate, of=of))
            if self.verbose:
                which = "" if of is None else f" of {of}"
                text = f"Epoch {{epoch}}: LearningRateScheduler sets the learning rate{which} to {{rate:.6g}}"
                actions.append(Print(text, values={"rate": rate}))
        return state, tuple(actions)

    def on_batch_begin(self, state: Any, metrics: Metrics) -> Any:
        rates = self._rates(metrics.step, metrics)
        return state, tuple(SetLearningRate(rate, of=of) for of, rate in rates.items())

    def _rates(self, count: Array, metrics: Metrics) -> dict[str | None, Array]:
        """Returns name -> rate to set; None for all rates."""
        if not _takes_rate(self.schedule):
            return {self.of: self._rate(count)}
        rates = rates_in(metrics, "base_learning_rate", self.of)
        return {of: self._rate(count, rate) for of, rate in rates.items()}

    def _rate(self, *arguments: Array) -> Array:
        if self.by == "epoch" and not self._traces_well:
            return self._from_table(*arguments)
        try:
            jax.eval_shape(self.schedule, *(jax.ShapeDtypeStruct((), a.dtype) for a in arguments))
        except Exception as error:
            error.add_note("LearningRateScheduler(by='step') needs a schedule that jax can trace, such as optax's.")
            raise
        return _checked(self.schedule(*arguments))

    @functools.cached_property  # cached on the value: the function is examined once, however often a hook is traced
    def _traces_well(self) -> bool:
        return _traces_well(self.schedule)

    def _from_table(self, epoch: Array, rate: Array | None = None) -> Array:
        slope, offset = self._table
        at = jnp.clip(epoch, 0, len(offset) - 1)
        value = jnp.asarray(offset)[at]
        return value if rate is None else jnp.asarray(slope)[at] * rate + value

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return _tabulated(self.schedule)


def _takes_rate(schedule: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(schedule).parameters.values()
    except ValueError:
        return False
    free = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(free) >= 2 and (free[1].default is free[1].empty or free[1].name in ("lr", "learning_rate"))


def _traces_well(schedule: Callable[..., Any]) -> bool:
    """Returns whether jax can trace the schedule and gets the same values as Python.

    Python's integers are unbounded: in int32, `0.1 / 2**epoch` overflows at epoch 31, and `10**-epoch` is 0.
    """
    rates = (_PROBES[0],) if _takes_rate(schedule) else ()
    try:
        with jax.ensure_compile_time_eval():
            epochs = jnp.asarray(_PROBED, jnp.int32)
            traced = jax.jit(jax.vmap(lambda epoch: jnp.asarray(schedule(epoch, *rates), jnp.float32)))(epochs)
    except Exception:  # of any kind: the call with Python numbers below shows the user's error
        return False
    _checked(traced[0])
    for epoch, value in zip(_PROBED, np.asarray(traced), strict=True):
        try:
            expected = float(schedule(epoch, *rates))
        except Exception:  # it accepts arrays only
            return True
        if not np.isclose(value, expected, rtol=1e-4, atol=0.0, equal_nan=True):
            return False
    return True


def _checked(rate: Any) -> Array:
    rate = jnp.asarray(rate, jnp.float32)
    if rate.shape != ():
        raise TypeError(f"LearningRateScheduler: the schedule returned shape {rate.shape}, expected a scalar.")
    return rate


def _tabulated(schedule: Callable[..., Any]) -> np.ndarray:
    """Tabulates a Python function as `fn(epoch, lr) = slope[epoch] * lr + offset[epoch]`; float32 (2, epochs)."""
    rows, takes_rate = [], _takes_rate(schedule)
    with jax.ensure_compile_time_eval():
        for index in range(_EPOCHS):
            try:
                rows.append(_line(schedule, index) if takes_rate else (0.0, float(schedule(index))))
            except Exception as error:
                if not rows or isinstance(error, TypeError):
                    error.add_note(f"LearningRateScheduler called the schedule with epoch {index}.")
                    raise
                break  # such as the end of a list of rates: later epochs keep the last one
    return np.asarray(rows, np.float32).T


def _line(schedule: Callable[..., Any], epoch: int) -> tuple[float, float]:
    a, b, c = _PROBES
    at_a, at_b, at_c = (float(schedule(epoch, rate)) for rate in _PROBES)
    slope = (at_a - at_b) / (a - b)
    offset = at_a - slope * a
    if abs(offset) < 1e-9 * max(abs(at_a), 1e-30):
        slope, offset = at_a / a, 0.0
    if abs(slope * c + offset - at_c) > 1e-5 * max(abs(at_c), 1e-12):
        raise TypeError(
            f"LearningRateScheduler: the schedule uses lr in a way that is not linear (epoch {epoch}), and jax cannot "
            "trace it. Write it with jax.numpy: `jnp.where(epoch < 10, lr, lr * 0.9)`, `jnp.maximum(lr, 1e-5)`."
        )
    return slope, offset
