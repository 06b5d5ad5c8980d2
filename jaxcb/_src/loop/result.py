"""`Result`: the outcome of a run."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxcb._src.core.chain import Chain
from jaxcb._src.history.history import RunHistory
from jaxcb._src.loop.host.stops import StopRecord
from jaxcb._src.plotting.curves import curves
from jaxcb._src.training.learning_rate import CONSTANT, learning_rates
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import shown
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.writers.scalars import python_numbers
from jaxcb._src.writers.trackers.delivery import Delivery, record_at

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
    params = state.delivered_params()
    return params if adapter is None else adapter.deliver(params, state.model_state, state.rngs)


class Deciding(NamedTuple):
    """What a report explains the decisions of a run by.

    Attributes:
        callbacks: of the run.
        settings: arguments of the run and numbers of the callbacks, by name.
        stops: those that fired.
    """

    callbacks: Chain
    settings: Mapping[str, Any]
    stops: tuple[StopRecord, ...]


def pages_of_results() -> Any:
    """Returns the module that makes pages of results.

    It reads and replays runs, so it stands above the loop, which must not import it: it is found by its name.
    """
    return importlib.import_module("jaxcb._src.report.result_page")


@dataclass(frozen=True, repr=False)
class Result:
    """The outcome of a run.

    Attributes:
        state: the final train state.
        model: the trained model; the params if the step was a custom function; the state at the end, in the form in
            which it was given, if that was no `TrainState`.
        history: reported metrics, name -> array.
        stop_reason: which callback stopped the run and why; None if it completed.
        stopped_epoch: epoch (from 0) in which the run was stopped; None if it completed.
        callback_states: name -> final state of each callback.
        executor: "looped" or "stepped".
        run_dir: the run directory, or None.
        files: the files that were written.
        what_ran: for each process that has trained the run: commit, command, versions, devices, host and data; as in
            `.jaxcb/run.jsonl` of the run directory.
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
    what_ran: tuple[dict[str, Any], ...] = ()
    _deliveries: tuple[Delivery, ...] = ()
    _deciding: Deciding | None = None

    @property
    def params(self) -> Any:
        """All final parameters, as they were trained; `model` has those that the optimizer keeps for evaluation."""
        return self.state.all_params

    def _facts(self) -> dict[str, str]:
        """Returns what `repr` and a notebook show."""
        count, frozen = (sum(int(np.size(x)) for x in jax.tree.leaves(t)) for t in (self.params, self.state.frozen))
        epochs = len(set(self.history.epoch.tolist()))
        facts = {
            "model": f"{type(self.model).__name__}, {count:,} parameters"
            + (f", {count - frozen:,} trained" if frozen else ""),
            "trained": f"{epochs} epochs, {int(self.state.step)} steps ({self.executor} executor)",
            "stopped": "no" if self.stop_reason is None else str(self.stop_reason),
            "last": ", ".join(f"{name}={value:.5g}" for name, value in self.history.last().items()) or "nothing",
        }
        if self.point is not None:
            facts["point"] = f"{self.point} (member {self.member})"
        if self.run_dir is not None:
            facts["run_dir"] = str(self.run_dir)
        return facts

    def __repr__(self) -> str:
        rows = "\n".join(f"  {name}: {value}" for name, value in self._facts().items())
        return f"{type(self).__name__}(\n{rows}\n)"

    def _repr_html_(self) -> str:
        return pages_of_results().fragment(self)

    def report(self, path: str | Path = "report.html") -> Path:
        """Writes a report: one HTML file with curves as SVG, the stop, best epochs and rate cuts marked, and decisions.

        It has no scripts and needs no network. Of a run with a `run_dir` it is the page of `jaxcb report RUN_DIR`, with
        configuration, what ran, images and checkpoints; without one, what the result itself knows. A notebook shows the
        same page.

        Args:
            path: the file to write.

        Returns:
            Its path.
        """
        return pages_of_results().write(self, local_path("Result.report", "path", path))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Result cannot be pickled: it refers to functions (schedule, optimizer, loss) and to arrays on devices. "
            "Pass run_dir= and call again with resume=True, which returns the result of a finished run, or pickle "
            "jax.device_get(result.params) and result.history."
        )

    def log(self, values: Mapping[str, Any]) -> None:
        """Sends values to the run's tracking services, such as the metrics of a test set.

        They belong to the last step. The service's run is opened again, and closed afterwards. A script that is started
        again with `resume=True` and logs the same values sends them once.

        Args:
            values: name -> number.

        Raises:
            TypeError: if a value is not a number.
            ValueError: if the run has no tracking service.

        Example:
            >>> import jaxcb as jc, jax.numpy as jnp, optax
            >>> class Shelf(jc.writers.Tracker):
            ...     def __init__(self):
            ...         self.rows = []
            ...     def send(self, records):
            ...         self.rows += [(record.step, record.values) for record in records]
            >>> shelf = Shelf()
            >>> result = jc.fit(jnp.zeros(()), lambda w, x: jnp.mean((w - x) ** 2), jnp.ones(8), epochs=1,
            ...                 optimizer=optax.sgd, learning_rate=0.2, verbose=0,
            ...                 callbacks=[jc.callbacks.TrackerLogger(shelf)])
            >>> result.log({"test_loss": 0.5})
            >>> shelf.rows[-1]
            (1, {'test_loss': 0.5})
        """
        if not self._deliveries:
            raise ValueError(
                "result.log sends to the run's tracking services, and the run has none: pass a callback such as "
                "jc.callbacks.MLflowLogger."
            )
        arrays = {str(name): np.asarray(value) for name, value in values.items()}
        for name, array in arrays.items():
            if array.ndim or array.dtype.kind not in "fiub":
                raise TypeError(f"Result.log: {name} must be a number, got {shown(values[name])}.")
        numbers = python_numbers(arrays)
        epoch = int(self.history.epoch[-1]) if len(self.history.epoch) else 0
        for delivery in self._deliveries:
            delivery.log_after(record_at(int(np.max(self.state.step)), epoch, numbers))

    def plot(self, path: str | Path | None = None, names: Sequence[str] | None = None) -> Any:
        """Plots the curves, and marks the stop, the best epoch and learning rate reductions.

        A learning rate that follows a schedule is drawn at each step, and left out where it is constant.

        Args:
            path: image file to write, such as "curves.png".
            names: names of metrics to draw, in this order, such as `["val_accuracy"]`; None for all.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: if matplotlib is missing (`pip install jaxcb[plot]`).
            ValueError: for a name that was not recorded.
        """
        rates = learning_rates(self.state.opt_state)
        known = len(rates) == 1 and rates[0].schedule is not None and rates[0].schedule is not CONSTANT
        return curves(self, path, names, rates[0].schedule if known else None)
