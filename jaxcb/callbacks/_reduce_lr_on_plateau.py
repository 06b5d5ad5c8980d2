"""`ReduceLROnPlateau`: cut the learning rate when a metric no longer improves."""

from typing import Any

import jax.numpy as jnp

from jaxcb._actions import Print, ScaleLearningRate
from jaxcb._callback import Callback, Metrics
from jaxcb._check import between, number, whole
from jaxcb._struct import Struct, static, strong_tree
from jaxcb.callbacks._monitor import NO_BEST, Monitor, improved, read, resolve_mode


class ReduceLROnPlateauState(Struct):
    """What `ReduceLROnPlateau` remembers."""

    best: Any  # float32 (), NaN before the first improvement
    wait: Any  # int32 (), reports since the last improvement, cut or cooldown
    cooldown: Any  # int32 (), reports still to be skipped
    seen: Any  # int32 (), step of the last report; -1 before the first


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by `factor` when the monitored metric has stopped improving.

    The cut is a factor on whatever schedule is in force, so it composes with warm-up and decay.

    Args:
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar.
        factor: the multiplier, strictly between 0 and 1.
        patience: reports without improvement after which to cut; 0 acts as 1.
        verbose: 1 prints a line at each cut.
        mode: "min", "max", or "auto" to follow the name.
        min_delta: an improvement must be larger than its absolute value, in the metric's unit.
        cooldown: reports to skip after a cut.
        min_lr: the effective rate is not cut below it. Above 0 it needs the exact form of the rate
            (`fit(optimizer=optax.adam, learning_rate=...)` or `adjustable_lr`).

    State:
        `best`, `wait`, `cooldown`, `seen`.

    Raises:
        ValueError: for arguments out of range, or a mode that cannot be told from the name.

    Example:
        >>> import jaxcb as jc
        >>> plateau = jc.ReduceLROnPlateau(factor=0.5, patience=1)
        >>> jc.replay([plateau], {"val_loss": [1.0, 1.0, 0.5]}).lr_scale.tolist()
        [1.0, 0.5, 0.5]

    Source: `keras.callbacks.ReduceLROnPlateau`. Differs in `cooldown` (skips exactly that many reports; in
    Keras one fewer), in NaN (never an improvement), and in multiplying with schedules.
    """

    monitor: Monitor = static(default="val_loss")
    factor: Any = 0.1
    patience: Any = 10
    verbose: int = static(default=0)
    mode: str = static(default="auto")
    min_delta: Any = 1e-4
    cooldown: Any = 0
    min_lr: Any = 0.0
    reads_rate: bool = static(init=False, repr=False)

    def __post_init__(self) -> None:
        self._set("factor", between("ReduceLROnPlateau", "factor", self.factor, 0.0, 1.0))
        self._set("patience", whole("ReduceLROnPlateau", "patience", self.patience))
        self._set("min_delta", number("ReduceLROnPlateau", "min_delta", self.min_delta))
        self._set("cooldown", whole("ReduceLROnPlateau", "cooldown", self.cooldown))
        self._set("min_lr", number("ReduceLROnPlateau", "min_lr", self.min_lr, least=0.0))
        self._set("mode", resolve_mode("ReduceLROnPlateau", self.monitor, self.mode))
        self._set("reads_rate", not isinstance(self.min_lr, float) or self.min_lr > 0)

    def init(self) -> ReduceLROnPlateauState:
        return strong_tree(ReduceLROnPlateauState(best=NO_BEST, wait=0, cooldown=0, seen=-1))

    def on_eval_end(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def on_epoch_end(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        return self._report(state, metrics)

    def _report(self, state: ReduceLROnPlateauState, metrics: Metrics) -> Any:
        value, reported = read("ReduceLROnPlateau", self.monitor, metrics)
        new = reported > state.seen
        better = improved(value, state.best, jnp.abs(self.min_delta), self.mode)
        cooling = state.cooldown > 0
        wait = jnp.where(better | cooling, 0, state.wait + 1)
        cut = new & (wait > 0) & (wait >= self.patience)
        if self.reads_rate:
            cut = cut & (metrics["learning_rate"] > self.min_lr)
        after = ReduceLROnPlateauState(
            best=jnp.where(new & better, value, state.best),
            wait=jnp.where(new, jnp.where(cut, 0, wait), state.wait),
            cooldown=jnp.where(new, jnp.where(cut, self.cooldown, jnp.maximum(state.cooldown - 1, 0)), state.cooldown),
            seen=jnp.where(new, reported, state.seen),
        )
        actions: list[Any] = [ScaleLearningRate(self.factor, self.min_lr if self.reads_rate else None, when=cut)]
        if self.verbose:
            text = "Epoch {epoch}: ReduceLROnPlateau multiplies the learning rate by {factor:g}"
            actions.append(Print(text, values={"factor": self.factor}, when=cut))
        return after, tuple(actions)
