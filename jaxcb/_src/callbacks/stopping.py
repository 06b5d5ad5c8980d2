"""`StoppingCallback`: what all callbacks share that can stop a run."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int


class StoppingCallback(Callback):
    """Base class of callbacks that can stop a run: it does not stop before a number of epochs and of steps.

    A subclass stops with `Stop(self.may_stop(metrics) & condition, reason)`, and calls `super().__post_init__()` where
    it has one of its own. What counts is the condition from then on: one that held before, and no longer does, stops
    nothing.

    Args:
        min_epochs: number of complete epochs before which it does not stop the run; None for no minimum.
        min_steps: number of updates before which it does not stop the run; None for no minimum.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jaxcb as jc
        >>> class StopBelow(jc.callbacks.StoppingCallback):
        ...     threshold: float
        ...     def on_epoch_end(self, state, metrics):
        ...         low = metrics["loss"] < self.threshold
        ...         return state, jc.actions.Stop(self.may_stop(metrics) & low, "low enough")
        >>> jc.replay(StopBelow(0.5, min_epochs=3), {"loss": [0.4, 0.3, 0.2, 0.1]}).stopped_epoch
        2

    Source: `min_epochs` and `min_steps` of `lightning.pytorch.Trainer`, which hold for all callbacks together, and
    where a stop that was requested earlier takes effect later.
    """

    min_epochs: Any = dataclasses.field(default=None, kw_only=True)
    min_steps: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("min_epochs", "min_steps"):
            if getattr(self, name) is not None:
                self._set(name, check_int(type(self).__name__, name, getattr(self, name)))

    def may_stop(self, metrics: Metrics) -> Array:
        """Returns whether the run has had its minimum of epochs and steps, bool ()."""
        may = jnp.ones((), bool)
        if self.min_epochs is not None:
            complete = metrics.epoch + metrics.closes_epoch.astype(jnp.int32)
            may = may & (complete >= self.min_epochs)
        if self.min_steps is not None:
            may = may & (metrics.step >= self.min_steps)
        return may
