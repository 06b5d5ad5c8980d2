"""`Metrics`: the values that a callback sees in a hook call."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxcb._src.utils.errors import MissingMetricError, check_choice, did_you_mean, shown
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
    found: dict[str | None, Array] = {n.partition("/")[2]: metrics[n] for n in metrics if n.startswith(f"{kind}/")}
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
        reported = {k: step if v is not None else jnp.int32(-1) for k, v in self.values.items()}
        plain, at_times = split_reported(self.values)
        reported |= {k: jnp.where(v.when, step, -1) for k, v in at_times.items()}
        self._set("values", {k: at_times[k].value if k in at_times else plain[k] for k in self.values})
        self._set("reported", {k: to_strong_type(given.get(k, r)) for k, r in reported.items()})
        self._set("values", {k: to_strong_type(float("nan") if v is None else v) for k, v in self.values.items()})
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
        cure = _NO_RATE if is_rate(name) and not any(map(is_rate, self.values)) else ""
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


MISSING = "NA"


def fresh_scalars(metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the scalar metrics, and for each whether it is reported in this hook call, bool ()."""
    return _fresh(metrics, [name for name in metrics if jnp.ndim(metrics[name]) == 0])


def fresh_values(metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `fresh_scalars`, with the metrics that are arrays."""
    return _fresh(metrics, list(metrics))


def _fresh(metrics: Metrics, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {n: metrics[n] for n in names}, {n: metrics.fresh(n) for n in names}


def columns(name: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the names of the columns of an array in a table: `name[0]`, `name[1]`; `name` for a scalar."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def in_columns(values: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of a row, and which of them are fresh, with one name for each number of an array."""
    flat: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name, value in values.items():
        array = np.asarray(value)
        for column, number in zip(columns(name, array.shape), array.reshape(-1), strict=True):
            flat[column], new[column] = number, fresh[name]
    return flat, new


def as_text(value: Any) -> str:
    """Formats a number as the shortest decimal that parses to the same number of its dtype."""
    value = np.asarray(value)
    if value.dtype.kind in "iub":
        return str(int(value))
    return str(value.astype(np.float32) if value.dtype.itemsize < 4 else value[()])


def row_text(values: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, str]:
    """Formats the values of a row; values that were not reported become `NA`."""
    return {name: as_text(value) if bool(fresh[name]) else MISSING for name, value in values.items()}


# words of a metric's name that say which direction is better
_MIN = re.compile(
    "loss|error|err|perplexity|ppl|mse|mae|rmse|mape|msle|nll|nlp|bpc|bpd|cer|wer|fid|divergence|kl|regret|crossentropy|bce"
)
_MAX = re.compile(
    "acc|accuracy|auc|auroc|auprc|precision|recall|f1|f1score|fbeta|bleu|rouge|r2|iou|dice|map|psnr|ssim|likelihood|"
    "reward|return|score|similarity|throughput"
)


def check_monitor(owner: str, monitor: Any) -> None:
    """Checks for the name of a metric, or a function of metrics.

    Raises:
        TypeError: for anything else.
    """
    if (isinstance(monitor, str) and monitor) or callable(monitor):
        return
    raise TypeError(
        f"{owner}: monitor must be the name of a metric, such as 'val_loss', or a function of Metrics, got "
        f"{shown(monitor)}."
    )


def resolve_mode(owner: str, monitor: Any, mode: str) -> str:
    """Returns "min" or "max"; for "auto", the last word of the metric's name with a known direction decides.

    Raises:
        ValueError: for an unknown mode, or if no word of the name has a known direction.
    """
    check_monitor(owner, monitor)
    check_choice(owner, "mode", mode, ("auto", "min", "max"))
    if mode != "auto":
        return mode
    if isinstance(monitor, str):
        for word in reversed(re.split(r"[^a-z0-9]+", monitor.lower())):
            if _MIN.fullmatch(word):
                return "min"
            if _MAX.fullmatch(word):
                return "max"
    what = f"the name {monitor!r}" if isinstance(monitor, str) else "a function"
    raise ValueError(
        f"{owner}: mode='auto' cannot tell from {what} whether lower or higher is better. "
        "Pass mode='min' or mode='max'."
    )


def infer_mode_or_none(name: str) -> str | None:
    """Returns "min" or "max" if a metric's name implies the direction, else None."""
    try:
        return resolve_mode("", name, "auto")
    except ValueError:
        return None
