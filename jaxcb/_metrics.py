"""`Metrics`: what a callback sees at one moment."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcb._errors import MissingMetricError, did_you_mean
from jaxcb._struct import Struct, strong

_RATES = ("learning_rate", "base_learning_rate")
_NO_RATE = (
    " A ready-made optimizer hides its rate; use fit(optimizer=optax.adam, learning_rate=1e-3), or "
    "jc.adjustable_lr(optax.adam, learning_rate=1e-3)."
)


class Metrics(Struct):
    """An immutable record of one moment of a run.

    Attributes:
        values: name -> array of fixed shape; a value given as None is not reported now.
        step: updates done, int32 (). Defaults to `epoch + 1`, one update an epoch.
        epoch: index of the epoch, from 0, int32 ().
        total_steps: updates that the run will do, int32 (), -1 where that is not known.
        reported: name -> the step at which it was last reported, int32 (), -1 for never.
        closes_epoch: whether this moment ends an epoch, bool (); false at a validation in its middle.

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

    def __post_init__(self) -> None:
        if not hasattr(self.values, "items"):
            raise TypeError(f"Metrics takes a mapping of names to values, got {type(self.values).__name__}.")
        step = strong(jnp.int32(self.epoch) + 1 if self.step is None else self.step)
        given = self.reported or {}
        reported = {k: step if v is not None else jnp.int32(-1) for k, v in self.values.items()}
        self._set("reported", {k: strong(given.get(k, r)) for k, r in reported.items()})
        self._set("values", {k: strong(float("nan") if v is None else v) for k, v in self.values.items()})
        self._set("step", step)
        for name in ("epoch", "total_steps", "closes_epoch"):
            self._set(name, strong(getattr(self, name)))

    def __getitem__(self, name: str) -> Array:
        """The last reported value of `name`; `MissingMetricError` lists the names that exist."""
        if name not in self.values:
            names = ", ".join(sorted(self.values)) or "none"
            raise MissingMetricError(
                f"there is no metric {name!r} here. Metrics here: {names}.{did_you_mean(name, self.values)}"
                f"{_NO_RATE if name in _RATES else ''}"
            )
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def fresh(self, name: str) -> Array:
        """Whether `name` was reported at this very moment, bool ()."""
        self[name]
        return self.reported[name] == self.step
