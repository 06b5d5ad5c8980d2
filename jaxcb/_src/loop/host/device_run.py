"""`DeviceRun`: a run on the devices, as the host drives it."""

from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from jaxcb._src.data.feed import Chunk
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled.device_state import DeviceState
from jaxcb._src.loop.compiled.executor import Executor, Output
from jaxcb._src.loop.compiled.position import HostPosition
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LoopState, owned
from jaxcb._src.loop.host.population import ActiveMembers
from jaxcb._src.loop.host.stages import Stages
from jaxcb._src.sharding.arrays import copied
from jaxcb._src.utils.kept_programs import KeptFunction


class DeviceRun:
    """The executor of a run, its loop state and inputs on the devices, and the position that the host expects.

    No method waits for the device, except those that return the loop state.

    Args:
        executor: looped or stepped.
        live: the loop state before the first step.
        inputs: the inputs that all dispatches share.
        place: start and end of the run.
        stages: the stages that are left, in which the run trains more.
        members: active members of a population; None for a single run.
    """

    def __init__(
        self,
        executor: Executor,
        live: DeviceState,
        inputs: Inputs,
        place: HostPosition,
        stages: Stages,
        members: ActiveMembers | None = None,
    ) -> None:
        self.executor, self.live, self.place, self.members = executor, live, place, members
        self._inputs, self._stages = inputs, stages
        self._limit_to_stage()

    def _limit_to_stage(self) -> None:
        self.place.limit(self._stages.next_epoch())

    @property
    def stage(self) -> int:
        """Number of the stage, from 0."""
        return self._stages.done

    @property
    def stage_is_over(self) -> bool:
        """Whether the next step belongs to the next stage."""
        return self.place.stage_is_over

    def advance(self) -> None:
        """Begins the next stage. No dispatch may be pending."""
        self.executor, self.live = self._stages.advance(self.live.carry())
        self._limit_to_stage()

    @property
    def program(self) -> Program:
        """The program of the executor."""
        return self.executor.program

    @property
    def buffers_lost(self) -> bool:
        """Whether a failed dispatch invalidated the donated buffers."""
        return any(leaf.is_deleted() for leaf in self.live.leaves)

    def carry(self) -> LoopState:
        """Returns the loop state; for a population that of all members, in order."""
        return self.live.carry() if self.members is None else self.members.full_state(self.live)

    # Dispatches

    def prepare(self, host: np.ndarray) -> None:
        """Compiles the steps in the background."""
        self.executor.prepare(self.live, self._without_steps(host))

    def run_hook(self, hook: str, host: np.ndarray) -> Output:
        """Runs `on_train_begin` or `on_train_end`."""
        run = self.executor.begin if hook == "on_train_begin" else self.executor.end
        self.live, output = run(self.live, self._without_steps(host))
        return output

    def execute(self, chunk: Chunk, host: np.ndarray, length: int) -> Output:
        """Runs the steps of a chunk, with the epoch ends and validations in it.

        Args:
            chunk: the data.
            host: the host metrics.
            length: limit of steps, for data on the devices.
        """
        self.place.expect_epoch_of(chunk.epoch_len)
        inputs = self.inputs_of(chunk, host, length)
        batches = chunk.left(self.place.at.epoch, self.place.at.cursor)
        batches = repeat(None, length) if batches is None else batches
        self.live, output = self.executor.execute(self.live, inputs, batches, self.place)
        return output

    def inputs_of(self, chunk: Chunk, host: np.ndarray, length: int) -> Inputs:
        """Returns the inputs of a dispatch of a chunk; the arguments are those of `execute`."""
        numbers = self.place.numbers(
            data_epochs=None if chunk.epoch < 0 else (chunk.epoch, chunk.epochs),
            base=chunk.base,
            size=chunk.size,
            length=length if chunk.epoch < 0 else UNBOUNDED,
        )
        return self._inputs.replace(data=chunk.data, numbers=numbers.packed(host))

    def validate(
        self,
        host: np.ndarray,
        sets: Mapping[str, Iterable[Any]],
        evaluate: Callable[[DeviceState], dict[str, np.ndarray]],
    ) -> Output:
        """Runs a validation on batches or evaluators of the host."""
        self.live, output = self.executor.validate(self.live, self._without_steps(host), sets, evaluate)
        return output

    def clear_yielded(self) -> None:
        """Notes that the host actions that the device waited for are done."""
        self.live = self.executor.resume(self.live)

    def request_stop(self) -> None:
        """Stops the run from the host."""
        self.live = self.executor.request_stop(self.live)
        self.place.stop()

    # Other states

    def restore(self, carry: LoopState) -> None:
        """Continues from the loop state of a checkpoint."""
        if carry.order is not None:  # a function of key and epoch, which is not saved
            draw = KeptFunction("order", self.program.layout.new_order, self.executor.kept)
            carry = carry.replace(order=draw(self._inputs.key, carry.epoch))
        self.live = DeviceState.of(owned(carry, copied))
        if self.members is not None:
            self.live, self._inputs = self.members.put(self.live, self._inputs)
        self.place.take(carry)

    def compact(self) -> None:
        """Moves the members of a population that still train to a smaller program."""
        assert self.members is not None
        self.executor, self.live, self._inputs = self.members.compact(self.live, self._inputs)

    def _without_steps(self, host: np.ndarray) -> Inputs:
        """Returns the inputs of a dispatch that runs no steps."""
        return without_steps(self._inputs, self.place, host)


def without_steps(inputs: Inputs, place: HostPosition, host: np.ndarray) -> Inputs:
    """Returns the inputs of a dispatch that runs no steps.

    Args:
        inputs: the inputs that all dispatches share.
        place: start and end of the run.
        host: the host metrics.
    """
    return inputs.replace(numbers=place.numbers(size=0, length=0).packed(host))


def deliver(device: DeviceRun, copy_of: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Updates the caller's own module if the model is one that is modified in place.

    Args:
        device: the run.
        copy_of: returns a copy of a part of the train state.
    """
    adapter = device.live.shapes().train.adapter
    if adapter is not None and adapter.in_place:
        state = copy_of(lambda state: state)
        adapter.deliver(state.delivered_params(), state.model_state, state.rngs)
