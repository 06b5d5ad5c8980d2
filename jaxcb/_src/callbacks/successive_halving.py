"""`SuccessiveHalving`: stops the worse members of a sweep, rung by rung."""

from typing import Any, Literal

import jax.numpy as jnp

from jaxcb._src.callbacks.standings import ranks, scores
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.callback import PopulationCallback
from jaxcb._src.core.metric_names import resolve_mode
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int, check_number
from jaxcb._src.utils.pytree import static


class SuccessiveHalving(StoppingCallback, PopulationCallback):
    """Stops all but the best members of a sweep at each rung: after `first` epochs, `first * factor`, and so on.

    Args:
        monitor: a metric's name.
        first: epochs before the first rung.
        factor: at each rung, one in `factor` members continues, rounded up; above 1.
        mode: "min", "max", or "auto" to derive it from the name.
        min_epochs: complete epochs before which it stops no member: earlier rungs are left out; None for no minimum.
        min_steps: updates before which it stops no member; None for no minimum.

    Raises:
        ValueError: if an argument is out of range, or the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> halving = jc.callbacks.SuccessiveHalving(first=1, factor=2)
        >>> losses = {"val_loss": jnp.array([0.3, 0.1, 0.2])}
        >>> metrics = jc.Metrics(losses, alive=jnp.ones(3, bool), member=jnp.arange(3))
        >>> halving.on_epoch_end((), metrics)[1].when.tolist()
        [True, False, False]

    Source: Jamieson and Talwalkar, AISTATS 2016; the synchronous form of ASHA (Li et al., MLSys 2020).
    """

    monitor: str = static(default="val_loss")
    first: int = static(default=1)
    factor: float = static(default=3.0)
    mode: Literal["auto", "min", "max"] = static(default="auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("first", check_int("SuccessiveHalving", "first", self.first, least=1))
        factor = check_number("SuccessiveHalving", "factor", self.factor)
        if factor <= 1:
            raise ValueError(f"SuccessiveHalving: factor must be above 1, got {factor}.")
        self._set("factor", factor)
        self._set("mode", resolve_mode("SuccessiveHalving", self.monitor, self.mode))

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        score = scores("SuccessiveHalving", self.monitor, self.mode, metrics)
        stay = jnp.ceil(metrics.alive.sum().astype(jnp.float32) / self.factor - 1e-6).astype(jnp.int32)
        worse = metrics.alive & (ranks(score, metrics.member) >= stay)
        reason = f"{self.monitor} {{{self.monitor}:.5g}} is not among the best of this rung"
        return state, Stop(worse & self._is_rung(metrics.epoch + 1) & self.may_stop(metrics), reason)

    def _is_rung(self, epochs: Any) -> Any:
        rungs, rung = [], float(self.first)
        while rung < 1e6:
            rungs.append(round(rung))
            rung *= self.factor
        return jnp.any(jnp.asarray(rungs) == epochs)
