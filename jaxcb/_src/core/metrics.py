"""`Metrics`: the values that a callback sees in a hook call."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxcb._src.utils.errors import MissingMetricError, did_you_mean
from jaxcb._src.utils.names import is_rate
from jaxcb._src.utils.pytree import Struct, static, to_strong_type


def is_mergeable(value: Any) -> bool:
    """Returns whether `value` is reduced by its own `merge` and `compute`."""
    return callable(getattr(value, "merge", None)) and callable(getattr(value, "compute", None))


class Reported(Struct):
    """A value that is reported only where `when` is true; `reported` makes it.

    Attributes:
        value: the value.
        when: whether it is reported, bool ().
    """

    value: Any
    when: Any


def reported(value: ArrayLike, *, when: ArrayLike) -> Reported:
    """Makes a metric that a step reports only at times, such as the return of an episode.

    Inside a compiled program, it takes the place of leaving the metric out. Where `when` is false, the metric keeps its
    last value and is not fresh; the mean over an epoch is that of the reports, and an epoch without one reports none.

    Args:
        value: an array of fixed shape; where `when` is false, its numbers do not matter.
        when: whether the value is reported, bool ().

    Returns:
        A value of the metrics that a train step of your own returns, or of `Metrics`.

    Raises:
        TypeError: if `when` is not one boolean.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> ended, total = jnp.array([True, False, True]), jnp.array([5.0, 7.0, 9.0])
        >>> mean = jnp.sum(total * ended) / jnp.maximum(ended.sum(), 1)
        >>> metrics = jc.Metrics({"episode_return": jc.probes.reported(mean, when=ended.any())}, step=4)
        >>> float(metrics["episode_return"]), bool(metrics.fresh("episode_return"))
        (7.0, True)
    """
    predicate = to_strong_type(when)
    if predicate.dtype != jnp.bool_ or predicate.shape:
        raise TypeError(f"reported: when must be one boolean, got {predicate.dtype}{list(predicate.shape)}.")
    return Reported(to_strong_type(value), predicate)


def split_reported(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Reported]]:
    """Returns the metrics of a step that it always reports, and those that it reports at times."""
    at_times = {name: value for name, value in values.items() if isinstance(value, Reported)}
    return {name: value for name, value in values.items() if name not in at_times}, at_times


_NO_RATE = (
    " A ready-made optimizer hides its learning rate; use fit(optimizer=optax.adam, learning_rate=1e-3), or "
    "jc.adjustable_lr(optax.adam, learning_rate=1e-3)."
)


def rates_in(metrics: "Metrics", kind: str, of: str | None = None) -> dict[str | None, Array]:
    """Returns the learning rates in metrics: name -> rate, None for the only one.

    Args:
        metrics: the metrics of a hook call.
        kind: "learning_rate", "base_learning_rate" or "lr_scale".
        of: the name of one of several; None for all.

    Raises:
        MissingMetricError: if there is none; it lists the names that exist.
    """
    if of is not None:
        return {of: metrics[f"{kind}/{of}"]}
    if kind in metrics.values:  # first, since going through all names means to read them
        return {None: metrics[kind]}
    names = [n for n in metrics.values if n.startswith(f"{kind}/")]
    found: dict[str | None, Array] = {n.partition("/")[2]: metrics[n] for n in names}
    return found or {None: metrics[kind]}


class Metrics(Struct):
    """An immutable record of the run at one hook call.

    Attributes:
        values: name -> array of fixed shape; None for a value that is not reported in this hook call, and `reported`
            for one of which an array says so.
        step: updates done, int32 (). Defaults to `epoch + 1`, one update per epoch.
        epoch: index of the epoch, from 0, int32 ().
        total_steps: updates that the run will do, int32 (); -1 if unknown.
        reported: name -> the step at which it was last reported, int32 (); -1 for never.
        closes_epoch: whether this hook call ends an epoch, bool (); false at a validation within an epoch.
        host: values that the host measured, such as `elapsed` (seconds of the whole run), name -> float32 ().
            `metrics["elapsed"]` finds them, but iteration, and so the loggers, leaves them out.
        alive: for population callbacks, the members that still train, bool (members,); None for all other callbacks.
            Where it is set, all values have the member axis.
        member: the number of each row, int32 (members,); None where `alive` is None.
        old: names that are known at trace time not to be reported in this hook call. A callback that monitors such a
            name, and acts in both `on_eval_end` and `on_epoch_end`, can be skipped.

    Example:
        >>> import jaxcb as jc
        >>> metrics = jc.Metrics({"val_loss": 0.25, "bleu": None}, step=100, epoch=0)
        >>> float(metrics["val_loss"]), bool(metrics.fresh("val_loss")), bool(metrics.fresh("bleu"))
        (0.25, True, False)
    """

    values: dict[str, Any]
    step: Any = dataclasses.field(default=None, kw_only=True)
    epoch: Any = dataclasses.field(default=0, kw_only=True)
    total_steps: Any = dataclasses.field(default=-1, kw_only=True)
    reported: Any = dataclasses.field(default=None, kw_only=True)
    closes_epoch: Any = dataclasses.field(default=True, kw_only=True)
    host: Any = dataclasses.field(default_factory=dict, kw_only=True)
    alive: Any = dataclasses.field(default=None, kw_only=True)
    member: Any = dataclasses.field(default=None, kw_only=True)
    old: frozenset[str] = static(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        if not hasattr(self.values, "items"):
            raise TypeError(f"Metrics takes a mapping of names to values, got {type(self.values).__name__}.")
        step = to_strong_type(jnp.int32(self.epoch) + 1 if self.step is None else self.step)
        given = self.reported or {}
        values: dict[str, Any] = {}
        reported: dict[str, Any] = {}
        for k, v in self.values.items():
            if isinstance(v, Reported):
                values[k], reported[k] = v.value, jnp.where(v.when, step, -1)
            else:
                values[k], reported[k] = (float("nan"), jnp.int32(-1)) if v is None else (v, step)
        self._set("reported", {k: to_strong_type(given.get(k, r)) for k, r in reported.items()})
        self._set("values", {k: to_strong_type(v) for k, v in values.items()})
        self._set("step", step)
        self._set(
            "host", {k: to_strong_type(float(v) if isinstance(v, bool | int) else v) for k, v in self.host.items()}
        )
        for name in ("epoch", "total_steps", "closes_epoch"):
            self._set(name, to_strong_type(getattr(self, name)))

    def __getitem__(self, name: str) -> Array:
        """Returns the last reported value of `name`; raises a `MissingMetricError` that lists the existing names."""
        if name in self.values:
            return self.values[name]
        if name in self.host:
            return self.host[name]
        names, host = ", ".join(sorted(self.values)) or "none", ", ".join(sorted(self.host))
        rates = [n for n in self.values if is_rate(n) and n.partition("/")[0] != "lr_scale"]
        cure = _NO_RATE if is_rate(name) and not rates else ""
        if str(name).startswith("val_") and not any(known.startswith("val_") for known in self.values):
            cure = (
                " Names that begin with val_ are those of a validation, and none is known here: pass validation_data= "
                "(or validation_split=) to fit, or monitor a metric of the training."
            )
        raise MissingMetricError(
            f"there is no metric {name!r} here. Metrics here: {names}.{f' On the host: {host}.' if host else ''}"
            f"{did_you_mean(str(name), [*self.values, *self.host])}{cure}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self.values or name in self.host

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def fresh(self, name: str) -> Array:
        """Returns whether `name` is reported in this hook call, bool ()."""
        return self.reported_at(name) == self.step

    def reported_at(self, name: str) -> Array:
        """Returns the step of the last report of `name`, int32 (), -1 for never; the current one for host values."""
        self[name]
        return self.reported[name] if name in self.values else self.step


def fresh_scalars(metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the scalar metrics, and for each whether it is reported in this hook call, bool ()."""
    return _fresh(metrics, [name for name in metrics if jnp.ndim(metrics[name]) == 0])


def fresh_values(metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `fresh_scalars`, with the metrics that are arrays."""
    return _fresh(metrics, list(metrics))


def _fresh(metrics: Metrics, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {n: metrics[n] for n in names}, {n: metrics.fresh(n) for n in names}
