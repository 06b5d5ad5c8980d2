"""The looped executor: a chunk of steps as one compiled loop."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from jaxcb._src.core.callback import BOUNDARY_HOOKS, STEP_HOOKS
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.device_state import DeviceState, StatePacking
from jaxcb._src.loop.compiled.executor import Executor, Output
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LoopState
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.kept_programs import KeptProgram


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

    def _prepare_steps(self, live: DeviceState, inputs: Inputs) -> None:
        self._chunk.prepare(live, inputs)

    def execute(
        self, live: DeviceState, inputs: Inputs, batches: Iterable[Any], place: Any
    ) -> tuple[DeviceState, Output]:
        del batches, place
        live, rings, status = self._chunk(live, inputs)
        return live, Output(rings, status)

    def _run_chunk(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        program, at = self.program, self.program.predicates
        left = self._steps_left(inputs, carry)

        def more(carry: LoopState, rings: Any, wasted: Any) -> Any:
            here = inputs.read()
            ready = ~carry.yielded & ~program.boundary_waits(here, carry)
            ready = ready & program.buffers.have_room(rings, BOUNDARY_HOOKS)
            steps = self._steps_to_do(here, left, carry, rings)
            return jnp.where(at.pending(here, carry), ready, steps > 0)

        def turn(carry: LoopState, rings: Any, wasted: Any) -> Any:
            # What is due after the last step comes first, so that the programs of a boundary and of a step are here
            # once. A pending boundary is ready, or this turn would not have begun.
            here = inputs.read()
            carry, rings = packing.cond(
                at.pending(here, carry),
                lambda c, r: boundary.validate_and_close_if_due(program, inputs, c, r, packing.cond),
                carry,
                rings,
            )
            steps = self._steps_to_do(here, left, carry, rings)
            opens = ~carry.opened & (steps > 0)
            carry, rings = packing.cond(opens, lambda c, r: boundary.open_epoch(program, inputs, c, r), carry, rings)
            return _Steps(self, packing, inputs, carry.step + steps).run(carry, rings, wasted)

        wasted = jnp.zeros((), jnp.int32)
        carry, rings, wasted = packing.while_loop(more, turn, carry, program.chunk_buffers(), wasted)
        return carry, rings, self._pack_status(inputs, carry, wasted)

    def _steps_left(self, inputs: Inputs, first: LoopState) -> Callable[[Inputs, LoopState], Any]:
        """Returns a function of the loop state: the steps until the end of the dispatch that begins here, int32 ()."""
        if self.program.members is None:
            # nothing is computed before the loop, which would be a kernel of its own
            return lambda inputs, carry: inputs.numbers.length - (carry.step - first.step)
        # For a population, XLA for TPUs would then keep a second copy of the weights of all members.
        end = first.step + jnp.minimum(inputs.numbers.length, UNBOUNDED - first.step)  # without overflow
        return lambda _, carry: end - carry.step

    def _steps_to_do(
        self, inputs: Inputs, left: Callable[[Inputs, LoopState], Any], carry: LoopState, rings: Any
    ) -> Any:
        """Returns the steps until the next epoch end, validation or end of the dispatch; at most 0 if none may run.

        Only valid where no boundary is pending. `left` returns the steps until the end of the dispatch.
        """
        at = self.program.predicates
        # The last step of the run is in the limit: a predicate that several kernels share would be one of its own.
        free = ~carry.yielded & ~at.all_stopped(carry) & (carry.epoch < inputs.numbers.end_epoch)
        free = free & at.has_data(inputs, carry) & self.program.buffers.have_room(rings)
        limit = jnp.minimum(at.steps_to_boundary(inputs, carry), left(inputs, carry))
        return jnp.where(free, limit, 0)


class _Steps:
    """The steps of a turn: full batches in a loop, then the smaller last batch if it is next.

    In blocks, the loop repeats a fixed number of steps, and masks those that must not run: a GPU waits for the host at
    each trip of a loop whose length is unknown, so it waits once a block. A step with probes that are due has branches,
    so it is not part of a block.

    Args:
        executor: its program runs.
        packing: packs the loop state.
        inputs: the inputs of the dispatch.
        end: the step after which to return, before the next epoch end or validation.
    """

    def __init__(self, executor: Looped, packing: StatePacking, inputs: Inputs, end: Any) -> None:
        self._program, self._packing, self._inputs, self._end = executor.program, packing, inputs, end

    def run(self, carry: LoopState, rings: Any, wasted: Any) -> tuple[LoopState, Any, Any]:
        """Runs the steps. Returns the loop state, the record buffers, and the masked steps so far."""
        layout, packing = self._program.layout, self._packing
        full = jnp.minimum(self._end, carry.began + layout.full) if layout.remainder else self._end
        # `on_epoch_begin` may have stopped the run, or wait for the host
        full = jnp.where(self._free(carry), full, carry.step)
        if self._program.block is None:
            carry, rings = packing.while_loop(self._more_until(full), self._step, carry, rings)
        else:
            last = full
            for every in self._program.rare_probes:
                last = jnp.minimum(last, carry.step + every - 1 - carry.step % every)
            carry, rings, wasted = self._blocks(last, carry, rings, wasted)
        if self._program.block is not None and self._program.rare_probes:
            # a loop of at most one step, since XLA copies all weights for a branch, but not for a loop
            carry, rings = packing.while_loop(
                self._more_until(jnp.minimum(full, carry.step + 1)), self._step, carry, rings
            )
        if layout.remainder:

            def is_next(carry: LoopState, rings: Any) -> Any:
                at_remainder = self._free(carry) & (carry.cursor == layout.full) & (carry.step < self._end)
                return at_remainder & self._program.buffers.have_room(rings)

            carry, rings = packing.while_loop(is_next, functools.partial(self._step, remainder=True), carry, rings)
        return carry, rings, wasted

    def _blocks(self, last: Any, carry: LoopState, rings: Any, wasted: Any) -> tuple[LoopState, Any, Any]:
        """Runs steps until `last`, in blocks."""
        more, size = self._more_until(last), self._program.block
        assert size is not None

        def masked(carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
            return self._step(carry, rings, ok=more(carry, rings), probing=False)

        def block(carry: LoopState, rings: Any, wasted: Any) -> tuple[LoopState, Any, Any]:
            before = carry.step
            carry, rings = self._packing.block(size, masked, carry, rings)
            return carry, rings, wasted + size - (carry.step - before)

        return self._packing.while_loop(lambda c, r, _: more(c, r), block, carry, rings, wasted)

    def _free(self, carry: LoopState) -> Any:
        return ~carry.yielded & ~self._program.predicates.all_stopped(carry)

    def _more_until(self, last: Any) -> Callable[[LoopState, Any], Any]:
        """Returns the predicate of another step before `last`. It is evaluated at every step."""
        program = self._program

        def more(carry: LoopState, rings: Any) -> Any:
            # With a collective if members are sharded. Test only what a step can change.
            go = (carry.step < last) & program.buffers.have_room(rings, STEP_HOOKS)
            if program.yields_at(*STEP_HOOKS):
                go = go & ~carry.yielded
            return go & ~program.predicates.all_stopped(carry) if program.steps_may_stop else go

        return more

    def _step(self, carry: LoopState, rings: Any, *, remainder: bool = False, **how: Any) -> tuple[LoopState, Any]:
        batch, rows = self._program.fetch_batch(self._inputs, carry, remainder=remainder)
        return self._program.train_step_with_hooks(self._inputs, carry, rings, batch, rows, **how)
