"""`Run`: a handle of the live run for functions on the host."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.inspection.what_ran import what_ran
from jaxcb._src.sharding.arrays import local_copy
from jaxcb._src.training.train_state import TrainState


class Run:
    """A handle of the live run, passed to `Call` functions and writers.

    Attributes:
        step: updates done.
        epoch: index of the epoch, from 0.
        batch: index of the batch within the epoch, from 0.
        logs: the metrics of the hook call, name -> float.
        run_dir: the run's directory, or None.
        settings: `fit`'s arguments and the callbacks' numbers, name -> number, text or boolean.
        callbacks: the callbacks and their configurations, name -> text.
        frozen: patterns of the parameters that are not trained in the whole run.
        frozen_axis: 0 if each member of a population has its own parameters that `trainable=` left out; otherwise None.
        params: `epochs`, `steps` (per epoch) and `verbose`, as in Keras; None if unknown.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = run_dir
        self.step = self.epoch = self.batch = 0
        self.logs: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.callbacks: dict[str, str] = {}
        self.frozen: tuple[str, ...] = ()
        self.frozen_axis: int | None = None
        self.traced_step: Callable[[], TracedStep] | None = None  # None in a hand-written loop
        self.stop_reason: str | None = None
        self._describe_process: Callable[[], dict[str, Any]] = what_ran
        self._what_ran: dict[str, Any] | None = None
        self._carry: Any = None
        self._state: TrainState | None = None

    @property
    def state(self) -> TrainState:
        """The train state, as copies that stay valid; with several processes, on the devices of this process."""
        if self._state is None:
            train = self._carry().train
            # no program donates the frozen parameters, so they stay valid
            frozen = jax.tree.map(lambda x: x if x.is_fully_addressable else local_copy(x), train.frozen)
            self._state = jax.tree.map(local_copy, train.replace(frozen=None)).replace(frozen=frozen)
        assert self._state is not None
        return self._state

    def copy_of(self, choose: Callable[[TrainState], Any]) -> Any:
        """Returns a copy of a part of the train state, which the devices make while the host continues.

        Frozen parameters are not copied: no program donates them.

        With several processes it is distributed over the devices of all, which must call this together.
        """
        train = self._state if self._carry is None else self._carry().train
        assert train is not None
        if self._carry is not None and self._state is not None and train.step.is_fully_addressable:
            return choose(self._state)  # it is a copy already
        return _copied(choose(train), valid=jax.tree.leaves(train.frozen))

    @property
    def frozen_params(self) -> Any:
        """The parameters that `trainable=` left out; None if all are trained."""
        train = self._state if self._carry is None else self._carry().train
        return None if train is None else train.frozen

    @property
    def callback_states(self) -> dict[str, Any]:
        """The state of each callback, by name; empty in a hand-written loop."""
        return {} if self._carry is None else self._carry().callbacks

    @property
    def model(self) -> Any:
        """The model with the current weights, in its evaluation view."""
        return self.state.model()

    def stop(self, reason: str = "stopped by a host function") -> None:
        """Stops the run: its epoch is validated and closed first."""
        self.stop_reason = reason

    def describe(
        self,
        callbacks: dict[str, str],
        settings: dict[str, Any],
        frozen: tuple[str, ...] = (),
        frozen_axis: int | None = None,
    ) -> None:
        """Sets the configuration of the run, before the first hook."""
        self.callbacks, self.settings, self.frozen, self.frozen_axis = callbacks, settings, frozen, frozen_axis

    def describe_process(self, what_ran: Callable[[], dict[str, Any]]) -> None:
        """Sets the function that returns what ran; it is called at most once, when it is needed."""
        self._describe_process = what_ran

    @property
    def what_ran(self) -> dict[str, Any]:
        """Commit, command, versions, devices, host and data of this process; without secrets."""
        if self._what_ran is None:
            self._what_ran = self._describe_process()
        return self._what_ran

    def describe_step(self, traced_step: Callable[[], TracedStep]) -> None:
        """Sets the function that returns the traced step, before the first hook."""
        self.traced_step = traced_step

    def clear_stop(self) -> None:
        """Forgets the request to stop, once it was obeyed."""
        self.stop_reason = None

    def _attach(self, carry: Any) -> None:
        """Sets a function that returns the current loop state."""
        self._carry, self._state = carry, None

    def _hold(self, state: TrainState | None) -> None:
        """Sets the state of a hand-written loop; it is not copied."""
        self._state = state

    def _enter(self, record: Any, logs: dict[str, Any]) -> None:
        begins = record.hook == "on_batch_begin"
        self.step, self.epoch, self.batch = (
            record.step,
            record.epoch,
            record.batch if begins else max(record.batch - 1, 0),
        )
        self.logs = logs


def _copied(tree: Any, valid: Sequence[Any] = ()) -> Any:
    """Copies all leaves, except those that stay valid, in one call: one per leaf costs more than a small step."""
    leaves, structure = jax.tree.flatten(tree)
    known = set(map(id, valid))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array) and id(x) not in known}
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
