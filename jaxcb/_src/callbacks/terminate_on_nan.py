"""`TerminateOnNaN`: stops the run when the loss is NaN or infinite."""

from typing import Any

import jax.numpy as jnp

from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.host import Call
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_choice, shown
from jaxcb._src.utils.pytree import static


class TerminateOnNaN(StoppingCallback):
    """Stops the run at the first step whose loss is NaN or infinite.

    It checks each step's own loss, within the compiled loop.

    Args:
        raise_error: raise a `RuntimeError` instead of ending the run in order: no further hook is called and nothing
            is saved. The run must then return control to the host at every step, which costs as much as a batch method
            of a `HostCallback`.
        monitor: the metric to check; one that begins with `val_` after each validation.
        min_epochs: complete epochs before which it does not stop the run; None for no minimum.
        min_steps: updates before which it does not stop the run; None for no minimum.

    Raises:
        TypeError: if `monitor` is not a name.
        ValueError: if `raise_error` is neither True nor False.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.TerminateOnNaN()
        >>> _, action = callback.on_batch_end(callback.init(), jc.Metrics({"loss": float("nan")}, step=7))
        >>> bool(action.when)
        True

    Source: `keras.callbacks.TerminateOnNaN`, which checks a running mean.
    """

    raise_error: bool = static(default=False)
    monitor: str = static(default="loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("TerminateOnNaN", "raise_error", self.raise_error, (False, True))
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(f"TerminateOnNaN: monitor must be the name of a metric, got {shown(self.monitor)}.")

    def hooks(self) -> frozenset[str]:
        return frozenset({"on_eval_end" if self.monitor.startswith("val_") else "on_batch_end"})

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        return self._check(state, metrics)

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        return self._check(state, metrics)

    def _check(self, state: Any, metrics: Metrics) -> Any:
        value = metrics[self.monitor]
        bad = self.may_stop(metrics) & ~jnp.all(jnp.isfinite(value))
        stop = Stop(bad, f"{self.monitor} is {{{self.monitor}}} at step {{step}}")
        if not self.raise_error:
            return state, stop
        return state, (stop, Call(_raise, {self.monitor: value}, when=bad))


def _raise(run: Any) -> None:
    ((name, value),) = run.logs.items()
    raise RuntimeError(
        f"{name} is {value} at step {run.step} (epoch {run.epoch + 1}), and TerminateOnNaN was given raise_error=True."
    )
