"""`EarlyStopping`: stops the run when a metric no longer improves."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxcb._src.callbacks.monitor import (
    NO_BEST,
    PATIENCE_UNITS,
    THRESHOLD_MODES,
    Monitor,
    Reported,
    elapsed,
    improved,
    is_old,
    is_reported,
    monitor_name,
    patience_left,
    reaches,
    read,
)
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Restore, Snapshot, Stop
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.metric_names import resolve_mode
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_bool, check_choice, check_int, check_number, check_verbose
from jaxcb._src.utils.pytree import Struct, select, static, to_strong_types


class EarlyStoppingState(Struct):
    """State of `EarlyStopping`."""

    best: Any  # float32 (), NaN before the first improvement
    best_epoch: Any  # int32 (), from 0; -1 before the first improvement
    wait: Any  # int32 (), reports (epochs, steps) since the last improvement that beat the baseline
    seen: Reported  # the last report


class EarlyStopping(StoppingCallback):
    """Stops the run when the monitored metric has stopped improving.

    Args:
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar.
        min_delta: an improvement must exceed the absolute value of this number, in units of the metric.
        patience: number of reports of the monitor without improvement after which to stop; 0 acts as 1. The first
            report never counts against it.
        verbose: 1 prints a line at the stop.
        mode: "min", "max", or "auto" to derive it from the name.
        baseline: a value that an improvement must also beat; None for no baseline.
        restore_best_weights: whether the run ends with the weights (params and model state) of the best
            report. They are a copy on the device, taken when the metric improves.
        start_from_epoch: reports before this epoch (from 0) are ignored.
        threshold_mode: "abs", or "rel" for a `min_delta` relative to the absolute value of the best (or baseline).
        patience_in: unit of `patience`: "reports" of the monitor, "epochs" or "steps". It is checked whenever the
            monitor is reported; in "steps", that is at each step if it is a metric of the step, whose own value then
            counts and not the mean of the epoch.
        report: whether the patience that is left is a metric, `EarlyStopping/patience_left`, which is logged with the
            others. It is that before the hook call: at the end of an epoch, a report of its validation has counted.
        stopping_threshold: stop at the first report that is at least as good; None for no threshold.
        divergence_threshold: stop at the first report that is worse; None for no threshold.
        check_finite: stop at the first report that is NaN or infinite.
        min_epochs: complete epochs before which it does not stop the run; None for no minimum.
        min_steps: updates before which it does not stop the run; None for no minimum.

    State:
        `best`, `best_epoch`, `wait`, `seen`.

    Raises:
        ValueError: if an argument is out of range, or the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc
        >>> jc.replay([jc.EarlyStopping(patience=2)], {"val_loss": [3.0, 2.0, 2.5, 2.5, 1.0]}).stopped_epoch
        3
        >>> good_enough = jc.EarlyStopping("val_accuracy", patience=9, stopping_threshold=0.9)
        >>> jc.replay([good_enough], {"val_accuracy": [0.5, 0.75, 1.0, 1.0]}).stop_reason
        'EarlyStopping: val_accuracy is 1 and has reached 0.9'

    Source: `keras.callbacks.EarlyStopping`. Differs in NaN (never an improvement), in `baseline` (a run that never
    beats it stops when patience runs out) and in counting reports, so that a run may validate less often than every
    epoch. The thresholds and `check_finite` (off by default here) are those of
    `lightning.pytorch.callbacks.EarlyStopping`, where the metric must pass `stopping_threshold`, not just reach it.
    """

    monitor: Monitor = static(default="val_loss")
    min_delta: Any = 0.0
    patience: Any = 0
    verbose: int = static(default=0)
    mode: Literal["auto", "min", "max"] = static(default="auto")
    baseline: Any = None
    restore_best_weights: bool = static(default=False)
    start_from_epoch: Any = 0
    threshold_mode: Literal["abs", "rel"] = static(default="abs", kw_only=True)
    patience_in: Literal["reports", "epochs", "steps"] = static(default="reports", kw_only=True)
    stopping_threshold: Any = dataclasses.field(default=None, kw_only=True)
    divergence_threshold: Any = dataclasses.field(default=None, kw_only=True)
    check_finite: bool = static(default=False, kw_only=True)
    report: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "EarlyStopping"
        check_verbose(owner, self.verbose)
        self._set("min_delta", check_number(owner, "min_delta", self.min_delta))
        self._set("patience", check_int(owner, "patience", self.patience))
        self._set("start_from_epoch", check_int(owner, "start_from_epoch", self.start_from_epoch))
        for name in ("baseline", "stopping_threshold", "divergence_threshold"):
            if getattr(self, name) is not None:
                self._set(name, check_number(owner, name, getattr(self, name)))
        for name in ("restore_best_weights", "check_finite", "report"):
            self._set(name, check_bool(owner, name, getattr(self, name)))
        check_choice(owner, "threshold_mode", self.threshold_mode, THRESHOLD_MODES)
        check_choice(owner, "patience_in", self.patience_in, PATIENCE_UNITS)
        self._set("mode", resolve_mode(owner, self.monitor, self.mode))

    def init(self) -> EarlyStoppingState:
        return to_strong_types(EarlyStoppingState(best=NO_BEST, best_epoch=-1, wait=0, seen=Reported()))

    def slots(self) -> dict[str, str]:
        return {"best": "model"} if self.restore_best_weights else {}

    def reports(self, state: EarlyStoppingState) -> dict[str, Array]:
        if not self.report:
            return {}
        return {"patience_left": patience_left(self.patience, state.wait)}

    def hooks(self) -> frozenset[str]:
        return super().hooks() - (frozenset() if self.patience_in == "steps" else {"on_batch_end"})

    def on_batch_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        # The mean that is reported at the end of the epoch has the step of its last report here, and so is not new.
        return self._report(state, metrics) if is_reported(self.monitor, metrics) else (state, None)

    def on_eval_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def on_epoch_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def _report(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        if is_old(self, self.monitor, metrics):
            return state, None
        value, reported = read("EarlyStopping", self.monitor, metrics)
        now = Reported(reported, metrics.epoch)
        # Two conditions, because a report before `start_from_epoch` is ignored but must still be recorded as seen:
        # otherwise it would count as new at the first hook call after that epoch.
        reported_now = reported > state.seen.step
        new = reported_now & (metrics.epoch >= self.start_from_epoch)
        better = new & self._improved(value, state.best)
        progress = better if self.baseline is None else better & self._improved(value, self.baseline)
        waited = state.wait + elapsed(now, state.seen, self.patience_in)
        wait = jnp.where(new, jnp.where(progress, 0, waited), state.wait)
        first = (state.wait == 0) & jnp.isnan(state.best)
        after = EarlyStoppingState(
            best=jnp.where(better, value, state.best),
            best_epoch=jnp.where(better, metrics.epoch, state.best_epoch),
            wait=wait,
            seen=select(reported_now, now, state.seen),
        )
        actions: list[Any] = []
        if self.restore_best_weights:
            actions.append(Snapshot("best", when=better))
        values = {"wait": wait, "best": after.best, "best_epoch": after.best_epoch + 1, "value": value}
        may = new & self.may_stop(metrics)
        for when, reason in self._reasons(value, ~first & (wait > 0) & (wait >= self.patience)):
            given = values | self._limits()
            actions.append(Stop(may & when, reason, values=given))
            if self.verbose:
                actions.append(Print("Epoch {epoch}: early stopping, " + reason, values=given, when=may & when))
        return after, tuple(actions)

    def _improved(self, value: Array, reference: Any) -> Array:
        return improved(value, jnp.asarray(reference, jnp.float32), self.min_delta, self.mode, self.threshold_mode)

    def _reasons(self, value: Array, impatient: Array) -> list[tuple[Array, str]]:
        """Returns the conditions under which to stop, each with its reason."""
        name = monitor_name(self.monitor)
        lacks = "improved" if self.baseline is None else "beaten both its best and the baseline {baseline:.5g}"
        best = "best {best:.5g} at epoch {best_epoch}"
        found = [(impatient, f"{name} has not {lacks} for {{wait}} {self.patience_in}; {best}")]
        if self.stopping_threshold is not None:
            reached = reaches(value, self.stopping_threshold, self.mode)
            found.append((reached, f"{name} is {{value:.5g}} and has reached {{stopping_threshold:.5g}}"))
        if self.divergence_threshold is not None:
            worse = ~jnp.isnan(value) & ~reaches(value, self.divergence_threshold, self.mode)
            found.append((worse, f"{name} is {{value:.5g}}, which is worse than {{divergence_threshold:.5g}}"))
        if self.check_finite:
            found.append((~jnp.isfinite(value), f"{name} is {{value}}"))
        return found

    def _limits(self) -> dict[str, Any]:
        """Returns the thresholds that are set: name -> value."""
        names = ("baseline", "stopping_threshold", "divergence_threshold")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def on_train_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        if not self.restore_best_weights:
            return state, None
        actions: list[Any] = [Restore("best")]
        if self.verbose:
            text = "Restored the model weights of the best epoch: {best_epoch}"
            actions.append(Print(text, values={"best_epoch": state.best_epoch + 1}, when=state.best_epoch >= 0))
        return state, tuple(actions)
