"""`Run`: a run that is under way, as functions on the host see it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.sharding.arrays import local_copy
from jaxcb._src.training.train_state import TrainState


class Run:
    """What `Call` functions and writers are given.

    Attributes:
        step: updates done.
        epoch: index of the epoch, from 0.
        batch: index of the batch within the epoch, from 0.
        logs: the metrics of the moment, name -> float.
        run_dir: the run's directory, or None.
        settings: what was set for it, name -> number, text or boolean: `fit`'s arguments, and the callbacks' numbers.
        callbacks: the callbacks and how each is configured, name -> text.
        params: `epochs`, `steps` (of an epoch) and `verbose`, as Keras gives them; None where not known.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = run_dir
        self.step = self.epoch = self.batch = 0
        self.logs: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.callbacks: dict[str, str] = {}
        self.traced_step: Callable[[], TracedStep] | None = None  # None in a loop that is not ours
        self.stop_reason: str | None = None
        self._carry: Any = None
        self._state: TrainState | None = None

    @property
    def state(self) -> TrainState:
        """The train state, as copies that stay valid; of several processes, on the devices of this one."""
        if self._state is None:
            self._state = jax.tree.map(local_copy, self._carry().train)
        assert self._state is not None
        return self._state

    def copy_of(self, choose: Callable[[TrainState], Any]) -> Any:
        """Returns a part of the train state as copies of its own, which the devices make while the host goes on.

        Of several processes it lies over the devices of all, which ask for it together.
        """
        train = self._state if self._carry is None else self._carry().train
        assert train is not None
        if self._carry is not None and self._state is not None and train.step.is_fully_addressable:
            return choose(self._state)  # a copy by now
        return _copied(choose(train))

    @property
    def model(self) -> Any:
        """The model with the weights of this moment, in its evaluation view."""
        return self.state.model()

    def stop(self, reason: str = "stopped by a host function") -> None:
        """Asks the run to stop: its epoch is validated and closed first."""
        self.stop_reason = reason

    def _attach(self, carry: Any) -> None:
        """Takes a function that returns the run as it stands."""
        self._carry, self._state = carry, None

    def _hold(self, state: TrainState | None) -> None:
        """Takes the state of a loop that is not ours; it is not copied."""
        self._state = state

    def _enter(self, record: Any, logs: dict[str, Any]) -> None:
        begins = record.hook == "on_batch_begin"
        self.step, self.epoch, self.batch = (
            record.step,
            record.epoch,
            record.batch if begins else max(record.batch - 1, 0),
        )
        self.logs = logs


def _copied(tree: Any) -> Any:
    """Copies in one call: one for each leaf costs more than a small step."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}
    copies = jax.device_put(list(arrays.values()), [x.sharding for x in arrays.values()], may_alias=False)
    for i, copy in zip(arrays, copies, strict=True):
        leaves[i] = copy
    return structure.unflatten([np.array(x) if isinstance(x, np.ndarray) else x for x in leaves])


class Record(NamedTuple):
    """One action that fired, on the host, with concrete arrays."""

    action: Any
    hook: str
    step: int
    epoch: int
    batch: int
