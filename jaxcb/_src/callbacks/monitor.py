"""Shared functions of callbacks that monitor a metric: comparing values, and finding new reports."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.pytree import Struct

Monitor = str | Callable[[Metrics], Array]


def monitor_name(monitor: Monitor) -> str:
    """Returns the monitor's name for messages; a function's own name, if it has one."""
    name = monitor if isinstance(monitor, str) else getattr(monitor, "__name__", "<lambda>")
    return "the monitor" if name == "<lambda>" else name


class _Reads:
    """A view of `Metrics` that records which names are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metrics, name)

    def __getitem__(self, name: str) -> Array:
        self.names.add(name)
        return self._metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    @property
    def values(self) -> Mapping[str, Array]:
        """All values; this counts as reading each of them."""
        self.names.update(self._metrics)
        return self._metrics.values


def read(owner: str, monitor: Monitor, metrics: Metrics) -> tuple[Array, Array]:
    """Reads the monitored value.

    Returns:
        The value, float32 (), and the step at which it was last reported, int32 (), -1 for never. A derived
        monitor counts as reported when each metric that it reads has been reported again.

    Raises:
        MissingMetricError: for an unknown name; lists the existing ones.
        TypeError: if the value is not a scalar.
    """
    if isinstance(monitor, str):
        value, reported = metrics[monitor], metrics.reported_at(monitor)
    else:
        reads = _Reads(metrics)
        value = jnp.asarray(monitor(reads))  # pyright: ignore[reportArgumentType]
        if not reads.names:
            raise TypeError(f"{owner}: its monitor function reads no metric.")
        reported = jnp.min(jnp.stack([metrics.reported_at(n) for n in sorted(reads.names)]))
    if jnp.shape(value) != ():
        raise TypeError(f"{owner}: the monitor {monitor!r} has shape {jnp.shape(value)}, expected a scalar.")
    return value.astype(jnp.float32), reported


def is_reported(monitor: Monitor, metrics: Metrics) -> bool:
    """Returns whether the metrics of a hook call have all that a monitor reads; known at trace time."""
    if isinstance(monitor, str):
        return monitor in metrics
    try:
        monitor(_Reads(metrics))  # pyright: ignore[reportArgumentType]
    except LookupError:
        return False
    return True


_REPORTS = {"on_eval_end", "on_epoch_end"}  # the hooks in which metrics are reported


def is_old(callback: Callback, monitor: Monitor, metrics: Metrics) -> bool:
    """Returns whether all metrics of the monitor are known at trace time not to be new in this hook call.

    A callback that acts in every hook that reports has then already seen them, so the hook can be skipped.
    """
    if not metrics.old or not callback.hooks() >= _REPORTS:
        return False
    if isinstance(monitor, str):
        return monitor in metrics.old
    reads = _Reads(metrics)
    monitor(reads)  # pyright: ignore[reportArgumentType]
    return bool(reads.names) and reads.names <= metrics.old


THRESHOLD_MODES = ("abs", "rel")
NO_BEST = float("nan")


def improved(value: Array, best: Array, min_delta: Any, mode: str, threshold_mode: str = "abs") -> Array:
    """Returns whether `value` is strictly better than `best` by more than `min_delta`, bool ().

    With `threshold_mode="rel"` the delta is a fraction of the absolute value of `best`, so it is correct on both sides
    of zero. A NaN is never an improvement. A `best` of NaN means "none yet": any other value improves on it.
    """
    delta = jnp.abs(min_delta)
    if threshold_mode == "rel":  # with an infinite best, no value could be better
        delta = jnp.where(jnp.isinf(best), 0.0, delta * jnp.abs(best))
    better = value + delta < best if mode == "min" else value - delta > best
    return ~jnp.isnan(value) & (jnp.isnan(best) | better)


def reaches(value: Array, threshold: Any, mode: str) -> Array:
    """Returns whether `value` is at least as good as `threshold`, bool (); false for NaN."""
    return value <= threshold if mode == "min" else value >= threshold


PATIENCE_UNITS = ("reports", "epochs", "steps")


class Reported(Struct):
    """The position in the run of the last report of a monitor."""

    step: Any = -1  # int32 (), updates done; -1 before the first report
    epoch: Any = -1  # int32 (), from 0; -1 before the first report


def elapsed(now: Reported, before: Reported, unit: str) -> Array:
    """Returns the patience that a report uses up, int32 (): the time since the report before, or since the start."""
    if unit == "epochs":
        return now.epoch - before.epoch
    if unit == "steps":
        return now.step - jnp.maximum(before.step, 0)
    return jnp.int32(1)


def patience_left(patience: Any, wait: Array) -> Array:
    """Returns the patience that is left after a wait, int32 (), at least 0. A patience of 0 counts as 1."""
    return jnp.maximum(jnp.maximum(jnp.asarray(patience), 1) - wait, 0)
