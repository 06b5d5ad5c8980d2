"""The looped executor: a chunk of steps as one compiled loop."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.core.callback import STEP_HOOKS
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.executor import DeviceState, Executor, Output
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LoopState, fetch_batch
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.kept_programs import KeptProgram


class Looped(Executor):
    """Runs a chunk of steps in a `while_loop`.

    The loop ends when the requested steps are done, the run ends, a record buffer is full, or a host action fires. An
    outer loop goes over segments (up to the next epoch end, validation or limit), an inner loop over steps. All limits
    are operands, so one program serves every length. A dispatch with nothing to do returns its state unchanged, so the
    next one can always be dispatched before this one is read.
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

    def _run_chunk(self, carry: LoopState, inputs: Inputs) -> Any:
        program = self.program
        # end of this dispatch, without overflow of int32
        end = carry.step + jnp.minimum(inputs.numbers.length, UNBOUNDED - carry.step)

        def more(loop: Any) -> Any:
            carry, rings = loop
            at_boundary = program.predicates.pending(inputs, carry)
            ready = at_boundary & ~program.boundary_waits(inputs, carry)
            steps = ~at_boundary & (carry.step < end) & program.predicates.has_data(inputs, carry)
            free = ~carry.yielded & ~program.predicates.over(inputs, carry) & program.buffers.have_room(rings)
            return free & (ready | steps)

        def segment(loop: Any) -> Any:
            carry, rings = loop
            carry, rings = jax.lax.cond(
                carry.opened, lambda c, r: (c, r), lambda c, r: boundary.open_epoch(program, inputs, c, r), carry, rings
            )
            carry, rings = self._steps(inputs, end, carry, rings)
            go = program.predicates.pending(inputs, carry) & ~carry.yielded & ~program.boundary_waits(inputs, carry)
            return jax.lax.cond(
                go,
                lambda c, r: boundary.validate_and_close_if_due(program, inputs, c, r),
                lambda c, r: (c, r),
                carry,
                rings,
            )

        carry, rings = jax.lax.while_loop(more, segment, (carry, program.buffers.empty()))
        return carry, rings, self._pack_status(inputs, carry)

    def _steps(self, inputs: Inputs, end: Any, carry: LoopState, rings: Any) -> Any:
        """Runs the steps of a segment: full batches in a loop, then the smaller last batch if it is next."""
        program = self.program
        layout = program.layout
        limit = jnp.minimum(program.predicates.steps_to_boundary(inputs, carry), end - carry.step)
        if layout.remainder:
            limit = jnp.minimum(limit, layout.full - carry.cursor)
        last = carry.step + jnp.where(program.predicates.may_step(inputs, carry), limit, 0)

        def more(loop: Any) -> Any:
            # This runs at every step, with a collective if members are sharded. Test only what a step can change.
            carry, rings = loop
            go = (carry.step < last) & program.buffers.have_room(rings, STEP_HOOKS)
            if program.yields_at(*STEP_HOOKS):
                go = go & ~carry.yielded
            return go & ~program.predicates.all_stopped(carry) if program.steps_may_stop else go

        def step(loop: Any) -> Any:
            carry, rings = loop
            return program.train_step_with_hooks(inputs, carry, rings, *fetch_batch(program.layout, inputs, carry))

        carry, rings = jax.lax.while_loop(more, step, (carry, rings))
        if not layout.remainder:
            return carry, rings

        def smaller(carry: LoopState, rings: Any) -> Any:
            return program.train_step_with_hooks(
                inputs, carry, rings, *fetch_batch(program.layout, inputs, carry, remainder=True)
            )

        is_next = program.predicates.may_step(inputs, carry) & (carry.cursor == layout.full) & (carry.step < end)
        is_next = is_next & program.buffers.have_room(rings)
        return jax.lax.cond(is_next, smaller, lambda *same: same, carry, rings)
