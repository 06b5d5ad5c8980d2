"""`MedianStopping`: stops members of a sweep that are worse than the median."""

from typing import Any, Literal

import jax.numpy as jnp

from jaxcb._src.callbacks.standings import scores
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.callback import PopulationCallback
from jaxcb._src.core.metric_names import resolve_mode
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.pytree import Struct, static, to_strong_types


class MedianStoppingState(Struct):
    """State of `MedianStopping` for one member."""

    best: Any  # float32 (), lower is better
    total: Any  # float32 (), sum of the reports
    count: Any  # int32 (), reports


class MedianStopping(StoppingCallback, PopulationCallback):
    """Stops a member of a sweep whose best report is worse than the median of the members' running means.

    Args:
        monitor: a metric's name.
        warmup: number of epochs in which no member is stopped.
        least: minimum number of training members for one to be stopped.
        mode: "min", "max", or "auto" to derive it from the name.
        min_epochs: complete epochs before which it stops no member; None for no minimum.
        min_steps: updates before which it stops no member; None for no minimum.

    State:
        `best`, `total`, `count`.

    Raises:
        ValueError: if an argument is out of range, or the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc
        >>> jc.callbacks.MedianStopping(warmup=3).least
        3

    Source: Golovin et al., Google Vizier, KDD 2017; here over the members that still train.
    """

    monitor: str = static(default="val_loss")
    warmup: int = static(default=1)
    least: int = static(default=3)
    mode: Literal["auto", "min", "max"] = static(default="auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("warmup", check_int("MedianStopping", "warmup", self.warmup))
        self._set("least", check_int("MedianStopping", "least", self.least, least=2))
        self._set("mode", resolve_mode("MedianStopping", self.monitor, self.mode))

    def init(self) -> MedianStoppingState:
        return to_strong_types(MedianStoppingState(best=float("inf"), total=0.0, count=0))

    def on_epoch_end(self, state: MedianStoppingState, metrics: Metrics) -> Any:
        new = metrics.alive & metrics.fresh(self.monitor)
        score = scores("MedianStopping", self.monitor, self.mode, metrics)
        after = MedianStoppingState(
            best=jnp.where(new, jnp.minimum(state.best, score), state.best),
            total=jnp.where(new, state.total + score, state.total),
            count=state.count + new.astype(jnp.int32),
        )
        known = metrics.alive & (after.count > 0)
        mean = after.total / jnp.maximum(after.count, 1).astype(jnp.float32)
        # Rounding can make a mean lower than the best of its reports; then members that are all equal would stop.
        means = jnp.where(known, jnp.maximum(mean, after.best), jnp.nan)
        worse = new & (after.best > jnp.nanmedian(means))
        enough = (known.sum() >= self.least) & (metrics.epoch >= self.warmup)
        reason = f"the best {self.monitor} is worse than the median of the members that still train"
        return after, Stop(worse & enough & self.may_stop(metrics), reason)
