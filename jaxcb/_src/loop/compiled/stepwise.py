"""The stepped executor: one dispatch per step, without waiting for results."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxcb._src.core.callback import STEP_HOOKS
from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.device_state import DeviceState, StatePacking
from jaxcb._src.loop.compiled.executor import Executor, Output
from jaxcb._src.loop.compiled.position import HostPosition
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LoopState
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.kept_programs import KeptFunction, KeptProgram

IN_FLIGHT = 8  # steps dispatched ahead of the device; a stop costs at most as many no-op steps
_BOUNDARY_HOOKS = ("on_eval_begin", "on_eval_end", "on_epoch_end", "on_epoch_begin")
_MEMBERS_TOO = ("on_train_end",)  # runs between steps for members that stop before the others


class _Flags:
    """The flags of dispatched steps that tell whether later steps are no-ops. Bounds the steps in flight.

    Args:
        waits: whether to wait for each flag: an uncompiled no-op step costs as much as a real one.
    """

    def __init__(self, *, waits: bool) -> None:
        self._waits, self._flags = waits, list[Any]()

    def tell_a_no_op(self, flag: Any) -> bool:
        """Takes the flag of the last step. Returns whether an older step has reported that it was a no-op."""
        if self._waits:
            return bool(flag)
        self._flags.append(flag)
        if len(self._flags) < IN_FLIGHT:
            return False
        # The flag of the middle step is most likely there, so that reading it rarely blocks.
        if bool(self._flags[IN_FLIGHT // 2 - 1]):
            return True
        del self._flags[: IN_FLIGHT // 2]
        return False


class Stepped(Executor):
    """Runs the same hooks as the looped executor, with one dispatch per step.

    It is for models whose step is slow inside a compiled loop: XLA's CPU backend runs convolution gradients about ten
    times slower in any loop or branch. A step of a run that has stopped, or that waits for the host, is masked out by a
    select on the loop state.
    """

    name = "stepped"

    def __init__(self, program: Program, kept: KeptProgram, placement: Placement = ONE_DEVICE) -> None:
        super().__init__(program, kept, placement)
        self._form: Any = None  # form of the loop state, while its status is traced
        self._fresh = self._without_state(program.chunk_buffers)
        self._open = self._compiled(self._run_open, donate_rest=(1,))
        self._step = self._compiled(
            self._run_step, donate_rest=(1,), steps=True, donate_changed_only=not program.functions.debug
        )
        self._remainder = self._compiled(
            self._run_remainder, donate_rest=(1,), steps=True, donate_changed_only=not program.functions.debug
        )
        self._boundary = self._compiled(self._run_boundary, donate_rest=(1,))
        self._status = self._without_state(self._run_status)  # donates nothing
        # Only the buffers that a step writes to: each array that a dispatch takes or returns costs host time.
        self._step_buffers = [name for name, layout in program.buffers.layouts.items() if layout.hook in STEP_HOOKS]
        hooks = _BOUNDARY_HOOKS if program.members is None else _BOUNDARY_HOOKS + _MEMBERS_TOO
        self._boundary_may_wait = program.validation.needs_host or program.yields_at(*hooks)

    def _prepare_steps(self, live: DeviceState, inputs: Inputs) -> None:
        rings = self.kept.fact(self._key("rings"), lambda: jax.eval_shape(self.program.chunk_buffers))
        self._step.prepare(live, inputs, {name: rings[name] for name in self._step_buffers})
        self._boundary.prepare(live, inputs, rings)

    def execute(
        self, live: DeviceState, inputs: Inputs, batches: Iterable[Any], place: HostPosition
    ) -> tuple[DeviceState, Output]:
        live, rings, may_wait = self._run(live, inputs, batches, place)
        self._other_dispatches += 1
        return live, Output(rings, self.placement.block_if_needed(self._read_status(live, inputs)), may_wait=may_wait)

    def _run(
        self, live: DeviceState, inputs: Inputs, batches: Iterable[Any], place: HostPosition
    ) -> tuple[DeviceState, Any, bool]:
        """Dispatches the steps of a chunk.

        The host never waits for the step that it dispatched last. It follows its own predicted position, and returns
        early only where the prediction can be wrong: after an epoch end or validation that may have host actions, or
        when an older step reports that it was a no-op.

        Returns:
            The loop state, the record buffers, and whether the host may have to act before the next step.
        """
        rings, flags, no_batch = self._new_rings(), _Flags(waits=self.program.functions.debug), not place.pending
        host = inputs.host_bits()
        if place.pending:
            live, rings, _ = self._pass_boundary(live, inputs, rings, place)
            if self._boundary_may_wait or place.over:
                return live, rings, True
        for batch in batches:
            no_batch = False
            if place.at.cursor == 0:
                live, rings, _ = self._open(live, inputs, rings)
            step_inputs = inputs if batch is None else inputs.replace(data=batch, numbers=place.single().packed(host))
            live, rings, halted = self._run_one(live, step_inputs, rings, place)
            if place.pending:
                live, rings, halted = self._pass_boundary(live, inputs, rings, place)
                if self._boundary_may_wait or place.over:
                    return live, rings, True
            if flags.tell_a_no_op(halted):
                return live, rings, True
        if no_batch:  # no batch was left, but the epoch may have to be closed; only the device knows whether
            live, rings, _ = self._boundary(live, inputs, rings)
        return live, rings, False

    def _run_one(self, live: DeviceState, inputs: Inputs, rings: Any, place: HostPosition) -> Any:
        """Dispatches a step. Returns the loop state, the record buffers, and the flag that later steps are no-ops."""
        program = self._remainder if place.at_remainder else self._step
        live, written, halted = program(live, inputs, {name: rings[name] for name in self._step_buffers})
        place.stepped()
        return live, rings | written, halted

    def _new_rings(self) -> Any:
        if not self.program.buffers.layouts:
            return {}
        self._other_dispatches += 1
        return self._fresh()

    def _pass_boundary(self, live: DeviceState, inputs: Inputs, rings: Any, place: HostPosition) -> Any:
        place.passed_boundary()
        return self._boundary(live, inputs, rings)

    # The traced functions take the packing of their trace, which only branches use

    def _run_open(self, packing: StatePacking, carry: LoopState, inputs: Inputs, rings: Any) -> Any:
        program = self.program
        go = ~carry.opened & ~carry.yielded & ~program.predicates.over(inputs, carry) & program.buffers.have_room(rings)
        carry, rings = packing.cond(go, lambda c, r: boundary.open_epoch(program, inputs, c, r), carry, rings)
        return carry, rings, program.halted(carry)

    def _run_step(self, packing: StatePacking, carry: LoopState, inputs: Inputs, rings: Any) -> Any:
        return self._masked_step(carry, inputs, rings, remainder=False)

    def _run_remainder(self, packing: StatePacking, carry: LoopState, inputs: Inputs, rings: Any) -> Any:
        return self._masked_step(carry, inputs, rings, remainder=True)

    def _masked_step(self, carry: LoopState, inputs: Inputs, rings: Any, *, remainder: bool) -> Any:
        program, layout = self.program, self.program.layout
        ok = program.predicates.may_step(inputs, carry) & program.buffers.have_room(rings, STEP_HOOKS)
        if layout.remainder:
            ok = ok & ((carry.cursor == layout.full) if remainder else (carry.cursor < layout.full))
        batch, rows = program.fetch_batch(inputs, carry, remainder=remainder)
        carry, rings = program.train_step_with_hooks(inputs, carry, rings, batch, rows, ok=ok)
        return carry, rings, program.halted(carry)

    def _run_boundary(self, packing: StatePacking, carry: LoopState, inputs: Inputs, rings: Any) -> Any:
        program = self.program
        go = program.predicates.pending(inputs, carry) & ~carry.yielded & ~program.boundary_waits(inputs, carry)
        go = go & program.buffers.have_room(rings)
        carry, rings = packing.cond(
            go, lambda c, r: boundary.validate_and_close_if_due(program, inputs, c, r, packing.cond), carry, rings
        )
        return carry, rings, program.halted(carry)

    def _without_state(self, fn: Any) -> KeptFunction:
        """Returns a compiled function that does not return the loop state."""
        placement = self.placement
        return KeptFunction(
            self._key(fn.__name__),
            fn,
            self.kept,
            options=lambda: {"out_shardings": placement.everywhere},
            devices=placement.devices_key,
        )

    def _read_status(self, live: DeviceState, inputs: Inputs) -> dict[str, Any]:
        self._form = live.form
        return self._status(live.leaves, live.frozen, inputs)

    def _run_status(self, leaves: list[Any], frozen: tuple[Any, ...], inputs: Inputs) -> dict[str, Any]:
        return self._pack_status(inputs.unpacked(), StatePacking(self._form, frozen).unpack(leaves))
