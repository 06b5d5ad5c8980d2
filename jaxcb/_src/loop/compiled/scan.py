"""The looped executor: a chunk of steps as one compiled loop."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxcb._src.core.callback import BOUNDARY_HOOKS, STEP_HOOKS
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.device_state import DeviceState, StatePacking
from jaxcb._src.loop.compiled.executor import Executor, Output
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LoopState, fetch_batch
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.kept_programs import KeptProgram

_END, _AT_STEPS, _AT_BOUNDARY = 0, 1, 2  # how the next turn of a chunk begins


class Looped(Executor):
    """Runs a chunk of steps in a `while_loop`.

    The loop ends when the requested steps are done, the run ends, a record buffer is full, or a host action fires. An
    outer loop goes over turns (an epoch end or a validation if one is due, then the steps up to the next one), an
    inner loop over steps. All limits are operands, so one program serves every length. A dispatch with nothing to do
    returns its state unchanged, so the next one can always be dispatched before this one is read.
    """

    name = "looped"

    def __init__(self, program: Program, kept: KeptProgram, placement: Placement = ONE_DEVICE) -> None:
        super().__init__(program, kept, placement)
        self._chunk = self._compiled(self._run_chunk, steps=True)

    def prepare(self, live: DeviceState, inputs: Inputs) -> None:
        self._chunk.prepare(live, inputs)

    def execute(
        self, live: DeviceState, inputs: Inputs, batches: Iterable[Any], place: Any
    ) -> tuple[DeviceState, Output]:
        del batches, place
        live, rings, status = self._chunk(live, inputs)
        return live, Output(rings, status)

    def _run_chunk(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        program, at = self.program, self.program.predicates
        # end of this dispatch, without overflow of int32
        end = carry.step + jnp.minimum(inputs.numbers.length, UNBOUNDED - carry.step)

        def next_turn(carry: LoopState, rings: Any, *, otherwise: Any) -> Any:
            pending = at.pending(inputs, carry)
            ready = ~carry.yielded & ~program.boundary_waits(inputs, carry)
            ready = ready & program.buffers.have_room(rings, BOUNDARY_HOOKS)
            return jnp.where(pending, jnp.where(ready, _AT_BOUNDARY, _END), otherwise)

        def turn(carry: LoopState, rings: Any, begins_with: Any) -> Any:
            # What is due after the last step comes first. So the predicates of the position are compiled once: those
            # of a boundary at the end of a turn, and those of a step here.
            carry, rings = packing.cond(
                begins_with == _AT_BOUNDARY,
                lambda c, r: boundary.validate_and_close_if_due(program, inputs, c, r, packing.cond),
                carry,
                rings,
            )
            free = ~carry.yielded & ~at.over(inputs, carry) & program.buffers.have_room(rings)
            limit = jnp.minimum(at.steps_to_boundary(inputs, carry), end - carry.step)
            steps = jnp.where(free & at.has_data(inputs, carry), limit, 0)
            opens = ~carry.opened & (steps > 0)
            carry, rings = packing.cond(opens, lambda c, r: boundary.open_epoch(program, inputs, c, r), carry, rings)
            carry, rings = self._steps(packing, inputs, carry.step + steps, carry, rings)
            return carry, rings, next_turn(carry, rings, otherwise=_END)

        rings = program.buffers.empty()
        first = next_turn(carry, rings, otherwise=_AT_STEPS)

        def more(carry: LoopState, rings: Any, begins_with: Any) -> Any:
            # `yielded` only matters for the first turn. But a condition on one value alone makes XLA analyze it as a
            # loop counter, again and again, which takes longer than to compile the predicates.
            return (begins_with != _END) & ~carry.yielded

        carry, rings, _ = packing.while_loop(more, turn, carry, rings, first)
        return carry, rings, self._pack_status(inputs, carry)

    def _steps(self, packing: StatePacking, inputs: Inputs, end: Any, carry: LoopState, rings: Any) -> Any:
        """Runs the steps of a turn: full batches in a loop, then the smaller last batch if it is next.

        Args:
            packing: packs the loop state.
            inputs: the inputs of the dispatch.
            end: the step after which to return, before the next epoch end or validation.
            carry: the loop state.
            rings: the record buffers.
        """
        program, layout = self.program, self.program.layout
        # `on_epoch_begin` may have stopped the run, or wait for the host
        free = ~carry.yielded & ~program.predicates.all_stopped(carry)
        full = jnp.minimum(end, carry.began + layout.full) if layout.remainder else end
        last = jnp.where(free, full, carry.step)

        def more(carry: LoopState, rings: Any) -> Any:
            # This runs at every step, with a collective if members are sharded. Test only what a step can change.
            go = (carry.step < last) & program.buffers.have_room(rings, STEP_HOOKS)
            if program.yields_at(*STEP_HOOKS):
                go = go & ~carry.yielded
            return go & ~program.predicates.all_stopped(carry) if program.steps_may_stop else go

        def step(carry: LoopState, rings: Any) -> Any:
            return program.train_step_with_hooks(inputs, carry, rings, *fetch_batch(program.layout, inputs, carry))

        carry, rings = packing.while_loop(more, step, carry, rings)
        if not layout.remainder:
            return carry, rings

        def smaller(carry: LoopState, rings: Any) -> Any:
            return program.train_step_with_hooks(
                inputs, carry, rings, *fetch_batch(program.layout, inputs, carry, remainder=True)
            )

        free = ~carry.yielded & ~program.predicates.all_stopped(carry) & program.buffers.have_room(rings)
        is_next = free & (carry.cursor == layout.full) & (carry.step < end)
        return packing.cond(is_next, smaller, carry, rings)
