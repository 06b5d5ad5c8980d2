"""`EarlyStopping`: stop when a metric no longer improves."""

from typing import Any

import jax.numpy as jnp

from jaxcb._actions import Print, Restore, Snapshot, Stop
from jaxcb._callback import Callback, Metrics
from jaxcb._check import number, whole
from jaxcb._struct import Struct, static, strong_tree
from jaxcb.callbacks._monitor import NO_BEST, Monitor, improved, read, resolve_mode


class EarlyStoppingState(Struct):
    """What `EarlyStopping` remembers."""

    best: Any  # float32 (), NaN before the first improvement
    best_epoch: Any  # int32 (), from 0; -1 before the first improvement
    wait: Any  # int32 (), reports since the last improvement that beat the baseline
    seen: Any  # int32 (), step of the last report; -1 before the first


class EarlyStopping(Callback):
    """Stops the run when the monitored metric has stopped improving.

    Args:
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar.
        min_delta: an improvement must be larger than its absolute value, in the metric's unit.
        patience: reports of the monitor without improvement after which to stop; 0 acts as 1.
        verbose: 1 prints a line at the stop.
        mode: "min", "max", or "auto" to follow the name.
        baseline: nothing counts as improvement that does not beat it; None for no baseline.
        restore_best_weights: whether the run ends with the weights (params and model state) of the best
            report. They are a copy on the device, taken when the metric improves.
        start_from_epoch: reports before this epoch (from 0) are passed over.

    State:
        `best`, `best_epoch`, `wait`, `seen`.

    Raises:
        ValueError: for arguments out of range, or a mode that cannot be told from the name.

    Example:
        >>> import jaxcb as jc
        >>> jc.replay([jc.EarlyStopping(patience=2)], {"val_loss": [3.0, 2.0, 2.5, 2.5, 1.0]}).stopped_epoch
        3

    Source: `keras.callbacks.EarlyStopping`. Differs in NaN (never an improvement), in `baseline` (patience
    ends a run that never beats it) and in counting reports, so that validation may be rarer than epochs.
    """

    monitor: Monitor = static(default="val_loss")
    min_delta: Any = 0.0
    patience: Any = 0
    verbose: int = static(default=0)
    mode: str = static(default="auto")
    baseline: Any = None
    restore_best_weights: bool = static(default=False)
    start_from_epoch: Any = 0

    def __post_init__(self) -> None:
        self._set("min_delta", number("EarlyStopping", "min_delta", self.min_delta))
        self._set("patience", whole("EarlyStopping", "patience", self.patience))
        self._set("start_from_epoch", whole("EarlyStopping", "start_from_epoch", self.start_from_epoch))
        if self.baseline is not None:
            self._set("baseline", number("EarlyStopping", "baseline", self.baseline))
        self._set("mode", resolve_mode("EarlyStopping", self.monitor, self.mode))

    def init(self) -> EarlyStoppingState:
        return strong_tree(EarlyStoppingState(best=NO_BEST, best_epoch=-1, wait=0, seen=-1))

    def slots(self) -> dict[str, str]:
        return {"best": "model"} if self.restore_best_weights else {}

    def on_eval_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def on_epoch_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def _report(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        value, reported = read("EarlyStopping", self.monitor, metrics)
        anew = reported > state.seen
        new = anew & (metrics.epoch >= self.start_from_epoch)
        delta = jnp.abs(self.min_delta)
        better = new & improved(value, state.best, delta, self.mode)
        progress = better if self.baseline is None else better & improved(value, self.baseline, delta, self.mode)
        wait = jnp.where(new, jnp.where(progress, 0, state.wait + 1), state.wait)
        stop = new & ~progress & (wait >= self.patience) & (state.seen >= 0)
        after = EarlyStoppingState(
            best=jnp.where(better, value, state.best),
            best_epoch=jnp.where(better, metrics.epoch, state.best_epoch),
            wait=wait,
            seen=jnp.where(anew, reported, state.seen),
        )
        name = self.monitor if isinstance(self.monitor, str) else "the monitor"
        reason = f"{name} has not improved for {{wait}} reports; best {{best:.5g}} at epoch {{best_epoch}}"
        values = {"wait": wait, "best": after.best, "best_epoch": after.best_epoch + 1}
        actions: list[Any] = [Stop(stop, reason, values=values)]
        if self.restore_best_weights:
            actions.append(Snapshot("best", when=better))
        if self.verbose:
            actions.append(Print("Epoch {epoch}: early stopping, " + reason, values=values, when=stop))
        return after, tuple(actions)

    def on_train_end(self, state: EarlyStoppingState, metrics: Metrics) -> Any:
        if not self.restore_best_weights:
            return state, None
        actions: list[Any] = [Restore("best")]
        if self.verbose:
            text = "Restored the model weights of the best epoch: {best_epoch}"
            actions.append(Print(text, values={"best_epoch": state.best_epoch + 1}, when=state.best_epoch >= 0))
        return state, tuple(actions)
