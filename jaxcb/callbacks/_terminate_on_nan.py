"""`TerminateOnNaN`: stop when the loss is no longer a number."""

from typing import Any

import jax.numpy as jnp

from jaxcb._actions import Stop
from jaxcb._callback import Callback, Metrics
from jaxcb._struct import static


class TerminateOnNaN(Callback):
    """Stops the run at the first step whose loss is NaN or infinite.

    Looks at each step's own loss, inside the compiled loop.

    Args:
        monitor: the metric to look at.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.TerminateOnNaN()
        >>> _, action = callback.on_batch_end(callback.init(), jc.Metrics({"loss": float("nan")}, step=7))
        >>> bool(action.when)
        True

    Source: `keras.callbacks.TerminateOnNaN`, which looks at a running mean.
    """

    monitor: str = static(default="loss")

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        bad = ~jnp.all(jnp.isfinite(metrics[self.monitor]))
        return state, Stop(bad, f"{self.monitor} is {{{self.monitor}}} at step {{step}}")
