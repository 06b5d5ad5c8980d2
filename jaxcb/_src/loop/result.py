"""`Result`: the outcome of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcb._src.history.history import RunHistory
from jaxcb._src.training.train_state import TrainState

_last: Any = None


def last_result() -> Any:
    """Returns the result of the last run or sweep that Ctrl-C interrupted. The exception has it as `result`, too."""
    return _last


def remember(result: Any) -> None:
    """Sets the result that `last_result` returns."""
    global _last
    _last = result


def delivered(state: TrainState, adapter: Any = None) -> Any:
    """Returns the trained model of an adapter, by default the state's own; the params if there is no adapter."""
    adapter = state.adapter if adapter is None else adapter
    return state.params if adapter is None else adapter.deliver(state.params, state.model_state, state.rngs)


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
        state: the final train state.
        model: the trained model; the params if the step was a custom function.
        history: reported metrics, name -> array.
        stop_reason: which callback stopped the run and why; None if it completed.
        stopped_epoch: epoch (from 0) in which the run was stopped; None if it completed.
        callback_states: name -> final state of each callback.
        executor: "looped" or "stepped".
        run_dir: the run directory, or None.
        files: the files that were written.
        member: index in a sweep; None for a single run.
        point: path -> value of the sweep for this member.
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
        """Plots the curves, and marks the stop, the best epoch and learning rate reductions.

        Args:
            path: image file to write, such as "curves.png".

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: if matplotlib is missing (`pip install jaxcb[plot]`).
        """
        from jaxcb._src.plotting.curves import curves

        return curves(self, path)
