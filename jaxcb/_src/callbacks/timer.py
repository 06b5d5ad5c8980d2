"""`Timer`: stops the run after a time limit."""

import datetime
from typing import Any

import jax.numpy as jnp

from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_number
from jaxcb._src.utils.pytree import Struct


class TimerState(Struct):
    """State of `Timer`."""

    up: Any  # float32 (), the duration at which it stopped the run, so that a longer one can follow; -1 before


class Timer(StoppingCallback):
    """Stops the run after a duration; the current epoch is validated and closed.

    It reads the host metric `elapsed`: seconds of the whole run, earlier parts of a resumed run included, measured
    between two dispatches, a few times per second.

    Args:
        duration: seconds, a `datetime.timedelta`, or "HH:MM:SS" or "DD:HH:MM:SS".
        min_epochs: complete epochs before which it does not stop the run; None for no minimum.
        min_steps: updates before which it does not stop the run; None for no minimum.

    State:
        `up`.

    Raises:
        ValueError: for an invalid duration.

    Example:
        >>> import jaxcb as jc
        >>> timer = jc.callbacks.Timer("01:30:00")
        >>> timer.duration
        5400.0
        >>> _, stop = timer.on_batch_end(timer.init(), jc.Metrics({}, host={"elapsed": 5401.0}))
        >>> bool(stop.when)
        True

    Source: `lightning.pytorch.callbacks.Timer`.
    """

    duration: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("duration", check_number("Timer", "duration", _seconds(self.duration), least=0))

    def init(self) -> TimerState:
        return TimerState(up=jnp.full((), -1.0, jnp.float32))

    def on_batch_end(self, state: TimerState, metrics: Metrics) -> Any:
        return self._look(state, metrics)

    def on_epoch_end(self, state: TimerState, metrics: Metrics) -> Any:
        return self._look(state, metrics)

    def _look(self, state: TimerState, metrics: Metrics) -> Any:
        duration = jnp.asarray(self.duration, jnp.float32)
        up = jnp.where((metrics["elapsed"] >= duration) & self.may_stop(metrics), duration, -1.0)
        reason = "the time limit of {duration:.7g} s was reached after {elapsed:.1f} s"
        stop = Stop((up >= 0) & (up != state.up), reason, values={"duration": self.duration})
        return TimerState(up=up), stop


def _seconds(duration: Any) -> Any:
    """Returns a duration in seconds; other types are returned unchanged, for the check of numbers to reject."""
    if isinstance(duration, datetime.timedelta):
        return duration.total_seconds()
    if not isinstance(duration, str):
        return duration
    parts = duration.split(":")
    if not 3 <= len(parts) <= 4 or not all(part.isdecimal() for part in parts):
        raise ValueError(f'Timer: duration must be seconds, a timedelta or "DD:HH:MM:SS", got {duration!r}.')
    days, hours, minutes, seconds = [0] * (4 - len(parts)) + [int(part) for part in parts]
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
