"""`Result`: what a run hands back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcb._src.history.history import RunHistory
from jaxcb._src.training.train_state import TrainState

_last: Any = None


def last_result() -> Any:
    """Returns the result of the run or sweep that Ctrl-C ended last; it also stands on its exception as `result`."""
    return _last


def remember(result: Any) -> None:
    """Makes a result the one that `last_result` returns."""
    global _last
    _last = result


def delivered(state: TrainState, adapter: Any = None) -> Any:
    """The trained model for the user: of the adapter that is given, else of the state's own; params without one."""
    adapter = state.adapter if adapter is None else adapter
    return state.params if adapter is None else adapter.deliver(state.params, state.model_state, state.rngs)


@dataclass(frozen=True)
class Result:
    """What a run hands back.

    Attributes:
        state: the final train state.
        model: the trained model; the params where the step was the user's own.
        history: what was reported, arrays by name.
        stop_reason: who stopped the run and why, None where it came to its end.
        stopped_epoch: the epoch (from 0) in which it was stopped, None where it came to its end.
        callback_states: the callbacks' final states by name.
        executor: "looped" or "stepped".
        run_dir: the run's directory, or None.
        files: the files that were written.
        member: which member of a sweep it is, None for a run by itself.
        point: the values that the sweep gave that member, by path.
    """

    state: TrainState
    model: Any
    history: RunHistory
    stop_reason: str | None
    stopped_epoch: int | None
    callback_states: dict[str, Any]
    executor: str
    run_dir: Path | None
    files: tuple[Path, ...]
    member: int | None = None
    point: dict[str, Any] | None = None

    @property
    def params(self) -> Any:
        """The final parameters."""
        return self.state.params

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the curves, with the stop, the best epoch and the rate cuts marked.

        Args:
            path: a picture file to save, such as "curves.png".

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: without matplotlib (`pip install jaxcb[plot]`).
        """
        from jaxcb._src.plotting.curves import curves

        return curves(self, path)
