"""`ReduceLROnPlateau`: reduces the learning rate when a metric no longer improves."""

import functools
import operator
from typing import Any, Literal

import jax.numpy as jnp

from jaxcb._src.callbacks.monitor import (
    NO_BEST,
    PATIENCE_UNITS,
    THRESHOLD_MODES,
    Monitor,
    Reported,
    elapsed,
    improved,
    is_old,
    patience_left,
    read,
)
from jaxcb._src.core.actions.control import ScaleLearningRate
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metric_names import resolve_mode
from jaxcb._src.core.metrics import Metrics, rates_in
from jaxcb._src.utils.errors import (
    check_between,
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_rate_name,
    check_verbose,
)
from jaxcb._src.utils.pytree import Struct, select, static, to_strong_types


class ReduceLROnPlateauState(Struct):
    """State of `ReduceLROnPlateau`."""

    best: Any  # float32 (), NaN before the first improvement
    wait: Any  # int32 (), reports (epochs, steps) since the last improvement, reduction or cooldown
    cooldown: Any  # int32 (), reports (epochs, steps) that remain to be skipped
    seen: Reported  # the last report


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by `factor` when the monitored metric has stopped improving.

    The factor applies to the current schedule, so it combines with warm-up and decay.

    Args:
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar.
        factor: the multiplier, strictly between 0 and 1.
        patience: number of reports without improvement after which to reduce; 0 acts as 1.
        verbose: 1 prints a line at each reduction.
        mode: "min", "max", or "auto" to derive it from the name.
        min_delta: an improvement must exceed the absolute value of this number, in units of the metric.
        cooldown: number of reports to skip after a reduction.
        min_lr: lower bound of the effective learning rate. Above 0 it needs a learning rate that the run can read
            (`fit(optimizer=optax.adam, learning_rate=...)` or `adjustable_lr`).
        threshold_mode: "abs", or "rel" for a `min_delta` relative to the absolute value of the best.
        patience_in: unit of `patience` and `cooldown`: "reports" of the monitor, "epochs" or "steps". They are
            checked whenever the monitor is reported.
        of: name of the learning rate to reduce, if there are several: that of the group `head/**` of
            `fit(optimizer={...})` is "head". None reduces all of them.
        report: whether the patience and the cooldown that are left are metrics, `ReduceLROnPlateau/patience_left` and
            `ReduceLROnPlateau/cooldown_left`, which are logged with the others. They are those before the hook call: at
            the end of an epoch, a report of its validation has counted.

    State:
        `best`, `wait`, `cooldown`, `seen`.

    Raises:
        ValueError: if an argument is out of range, or the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc
        >>> plateau = jc.ReduceLROnPlateau(factor=0.5, patience=1)
        >>> jc.replay([plateau], {"val_loss": [1.0, 1.0, 0.5]}).lr_scale.tolist()
        [1.0, 0.5, 0.5]

    Source: `keras.callbacks.ReduceLROnPlateau`. Differs in `cooldown` (skips exactly that many reports; Keras
    one fewer), in NaN (never an improvement), and in multiplying schedules instead of replacing them.
    """

    monitor: Monitor = static(default="val_loss")
    factor: Any = 0.1
    patience: Any = 10
    verbose: int = static(default=0)
    mode: Literal["auto", "min", "max"] = static(default="auto")
    min_delta: Any = 1e-4
    cooldown: Any = 0
    min_lr: Any = 0.0
    threshold_mode: Literal["abs", "rel"] = static(default="abs", kw_only=True)
    patience_in: Literal["reports", "epochs", "steps"] = static(default="reports", kw_only=True)
    of: str | None = static(default=None, kw_only=True)
    report: bool = static(default=False, kw_only=True)
    reads_rate: bool = static(init=False, repr=False)

    def __post_init__(self) -> None:
        self._set("factor", check_between("ReduceLROnPlateau", "factor", self.factor, 0.0, 1.0))
        self._set("patience", check_int("ReduceLROnPlateau", "patience", self.patience))
        self._set("min_delta", check_number("ReduceLROnPlateau", "min_delta", self.min_delta))
        self._set("cooldown", check_int("ReduceLROnPlateau", "cooldown", self.cooldown))
        self._set("min_lr", check_number("ReduceLROnPlateau", "min_lr", self.min_lr, least=0.0))
        check_choice("ReduceLROnPlateau", "threshold_mode", self.threshold_mode, THRESHOLD_MODES)
        check_choice("ReduceLROnPlateau", "patience_in", self.patience_in, PATIENCE_UNITS)
        check_rate_name("ReduceLROnPlateau", self.of)
        check_verbose("ReduceLROnPlateau", self.verbose)
        self._set("report", check_bool("ReduceLROnPlateau", "report", self.report))
        self._set("mode", resolve_mode("ReduceLROnPlateau", self.monitor, self.mode))
        self._set("reads_rate", not isinstance(self.min_lr, float) or self.min_lr > 0)

    def init(self) -> ReduceLROnPlateauState:
        return to_strong_types(ReduceLROnPlateauState(best=NO_BEST, wait=0, cooldown=0, seen=Reported()))

    def reports(self, state: ReduceLROnPlateauState) -> dict[str, Any]:
        if not self.report:
            return {}
        return {"patience_left": patience_left(self.patience, state.wait), "cooldown_left": state.cooldown}

    def on_eval_end(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def on_epoch_end(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def _report(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        if is_old(self, self.monitor, metrics):
            return state, None
        value, reported = read("ReduceLROnPlateau", self.monitor, metrics)
        now = Reported(reported, metrics.epoch)
        new = reported > state.seen.step
        passed = elapsed(now, state.seen, self.patience_in)
        better = improved(value, state.best, self.min_delta, self.mode, self.threshold_mode)
        cooling = (state.cooldown > 0) & (state.cooldown >= passed)
        wait = jnp.where(better | cooling, 0, state.wait + passed)
        cut = new & (wait > 0) & (wait >= self.patience)
        if self.reads_rate:
            above = [rate > self.min_lr for rate in rates_in(metrics, "learning_rate", self.of).values()]
            cut = cut & functools.reduce(operator.or_, above)
        cooldown = jnp.where(cut, self.cooldown, jnp.maximum(state.cooldown - passed, 0))
        after = ReduceLROnPlateauState(
            best=jnp.where(new & better, value, state.best),
            wait=jnp.where(new, jnp.where(cut, 0, wait), state.wait),
            cooldown=jnp.where(new, cooldown, state.cooldown),
            seen=select(new, now, state.seen),
        )
        floor = self.min_lr if self.reads_rate else None
        actions: list[Any] = [ScaleLearningRate(self.factor, floor, of=self.of, when=cut)]
        if self.verbose:
            of, name = ("", "learning_rate") if self.of is None else (f" of {self.of}", f"learning_rate/{self.of}")
            text = f"Epoch {{epoch}}: ReduceLROnPlateau multiplies the learning rate{of} by {{factor:g}}"
            values: dict[str, Any] = {}
            if name in metrics:
                text += ", from {_old:.5g} to {_new:.5g}"
                old = metrics[name].astype(jnp.float32)
                values = {"_old": old, "_new": jnp.maximum(old * self.factor, self.min_lr)}
            actions.append(Print(text, values={"factor": self.factor, **values}, when=cut))
        return after, tuple(actions)
