"""`SpikeDetection`: drops the updates of bad batches, and rolls back bad weights."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxcb._src.callbacks.monitor import Monitor, monitor_name, read
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Restore, SkipUpdate, Snapshot, Stop
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.metric_names import check_monitor
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_bool, check_choice, check_int, check_number, check_verbose
from jaxcb._src.utils.pytree import Struct, static, to_strong_types


class SpikeDetectionState(Struct):
    """State of `SpikeDetection`."""

    mean: Any  # float32 (), of the accepted values
    variance: Any  # float32 (), of the accepted values
    accepted: Any  # int32 (), steps that did not spike
    spikes: Any  # int32 (), consecutive spikes up to now
    skipped: Any  # int32 (), updates dropped in the whole run
    seen: Any  # int32 (), step of the last report; -1 before the first


class SpikeDetection(StoppingCallback):
    """Drops the update of a step whose loss spikes; restores the last good weights after repeated spikes.

    A spike is a non-finite value, or, after `warmup` accepted steps, one above `mean + factor * std`, both over the
    accepted values only. It is detected after the loss and gradients are computed and before the update is applied, so
    the update of a bad batch never takes place; step and rng advance. Requires `fit`, or `Loop` with `Step`.

    With `action="rollback"` the run keeps a copy of parameters, model state and optimizer state, taken at a step
    whose value did not spike, before its update: that value shows that the weights it was computed with are good. A
    single spike is attributed to the batch, and only its update is dropped. The `patience`-th consecutive spike, from
    different batches at the same weights, is attributed to the weights, and restores the copy. Changes that callbacks
    made to the learning rate are kept.

    Args:
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar; lower must be better.
        factor: number of standard deviations above the mean beyond which a value is a spike.
        window: number of accepted steps that mean and variance average over: their decay is `1 - 2 / (window + 1)`.
        action: "skip", or "rollback".
        snapshot_every: accepted steps between two copies of the good weights.
        patience: number of consecutive spikes at which to roll back. With 1, a single bad batch also discards all
            updates since the last copy.
        max_skips: number of consecutive spikes at which to stop the run; None never stops it.
        warmup: accepted steps before values are compared with the mean; half of `window` if None.
        verbose: 1 prints a line at each spike.
        report: whether the current spikes in a row and all skipped updates are metrics, `SpikeDetection/spikes` and
            `SpikeDetection/skipped`, which are logged with the others.
        min_epochs: complete epochs before which it does not stop the run; None for no minimum.
        min_steps: updates before which it does not stop the run; None for no minimum.

    State:
        `mean`, `variance`, `accepted`, `spikes`, `skipped`, `seen`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> data = jnp.array([1.0, 1.0, 1.0, jnp.nan, 1.0])
        >>> result = jc.fit(jnp.zeros(()), lambda w, batch: jnp.mean(w * batch), data, optimizer=optax.sgd,
        ...                 learning_rate=1.0, epochs=1, batch_size=1, verbose=0,
        ...                 callbacks=[jc.callbacks.SpikeDetection()])
        >>> float(result.params), int(result.callback_states["SpikeDetection"].skipped)
        (-4.0, 1)

    Source: `SkipStepOptimizer` of OLMo-core (skips at 6 standard deviations over 128 steps); for the rollback,
    Chowdhery et al. 2022, "PaLM", section 5.1.
    """

    monitor: Monitor = static(default="loss")
    factor: Any = dataclasses.field(default=6.0, kw_only=True)
    window: Any = dataclasses.field(default=128, kw_only=True)
    action: Literal["skip", "rollback"] = static(default="skip", kw_only=True)
    snapshot_every: int = static(default=100, kw_only=True)
    patience: Any = dataclasses.field(default=2, kw_only=True)
    max_skips: Any = dataclasses.field(default=None, kw_only=True)
    warmup: Any = dataclasses.field(default=None, kw_only=True)
    verbose: int = static(default=0, kw_only=True)
    report: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("factor", check_number("SpikeDetection", "factor", self.factor, least=0.0))
        self._set("window", check_int("SpikeDetection", "window", self.window, least=2))
        check_monitor("SpikeDetection", self.monitor)
        check_verbose("SpikeDetection", self.verbose)
        self._set("report", check_bool("SpikeDetection", "report", self.report))
        check_choice("SpikeDetection", "action", self.action, ("skip", "rollback"))
        self._set("snapshot_every", check_int("SpikeDetection", "snapshot_every", self.snapshot_every, least=1))
        self._set("patience", check_int("SpikeDetection", "patience", self.patience, least=1))
        if self.max_skips is not None:
            self._set("max_skips", check_int("SpikeDetection", "max_skips", self.max_skips, least=1))
        if self.warmup is not None:
            self._set("warmup", check_int("SpikeDetection", "warmup", self.warmup))

    def init(self) -> SpikeDetectionState:
        return to_strong_types(SpikeDetectionState(mean=0.0, variance=0.0, accepted=0, spikes=0, skipped=0, seen=-1))

    def reports(self, state: SpikeDetectionState) -> dict[str, Any]:
        return {"spikes": state.spikes, "skipped": state.skipped} if self.report else {}

    def slots(self) -> dict[str, str]:
        return {"good": "optimizer"} if self.action == "rollback" else {}

    def on_before_update(self, state: SpikeDetectionState, metrics: Metrics) -> Any:
        value, reported = read("SpikeDetection", self.monitor, metrics)
        new = reported > state.seen
        mean, variance = self._moments(state, value)
        # A value whose square overflows float32 would make the moments infinite for the rest of the run.
        ordinary = jnp.isfinite(value) & jnp.isfinite(mean) & jnp.isfinite(variance)
        spike = new & (~ordinary | self._is_above(state, value))
        accepted = new & ~spike
        spikes = jnp.where(spike, state.spikes + 1, jnp.where(accepted, 0, state.spikes))
        after = SpikeDetectionState(
            mean=jnp.where(accepted, mean, state.mean),
            variance=jnp.where(accepted, variance, state.variance),
            accepted=state.accepted + accepted.astype(jnp.int32),
            spikes=spikes,
            skipped=state.skipped + spike.astype(jnp.int32),
            seen=jnp.where(new, reported, state.seen),
        )
        actions: list[Any] = [SkipUpdate(when=spike)]
        back = spike & (spikes == self.patience)
        if self.action == "rollback":
            actions.append(Restore("good", when=back))
            actions.append(Snapshot("good", when=accepted & (state.accepted % self.snapshot_every == 0)))
        name = monitor_name(self.monitor)
        values = {"value": value, "mean": state.mean, "spikes": spikes}
        if self.max_skips is not None:
            reason = f"{name} has spiked {{spikes}} times in a row; it is {{value:.5g}}, the mean was {{mean:.5g}}"
            enough = self.may_stop(metrics) & (spikes >= self.max_skips)
            actions.append(Stop(spike & enough, reason, values=values))
        if self.verbose:
            text = f"Step {{step}}: {name} spikes at {{value:.5g}} (mean {{mean:.5g}}), the update is dropped"
            actions.append(Print(text, values=values, when=spike))
            if self.action == "rollback":
                text = f"Step {{step}}: {{spikes}} spikes of {name} in a row, back to the last good weights"
                actions.append(Print(text, values=values, when=back & (state.accepted > 0)))
        return after, tuple(actions)

    def _moments(self, state: SpikeDetectionState, value: Array) -> tuple[Array, Array]:
        """Returns mean and variance including `value`: of all values equally until the window is full."""
        count = state.accepted.astype(jnp.float32)
        weight = jnp.maximum(2 / (jnp.asarray(self.window, jnp.float32) + 1), 1 / (count + 1))
        change = value - state.mean
        mean = state.mean + weight * change
        return mean, (1 - weight) * (state.variance + weight * change * change)

    def _is_above(self, state: SpikeDetectionState, value: Array) -> Array:
        warmup = self.window // 2 if self.warmup is None else self.warmup
        limit = state.mean + self.factor * jnp.sqrt(state.variance)
        # Even with a warmup of 0, the first value has no mean to be compared with.
        return (state.accepted >= jnp.maximum(warmup, 1)) & (value > limit)
