"""Base of both executors: compiled functions over the flat loop state, and validation on batches of the host."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.device_state import DeviceState, StatePacking
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.record_buffer import TreePacker
from jaxcb._src.loop.compiled.state import Inputs, LoopState, Status
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.kept_programs import KeptFunction, KeptProgram
from jaxcb._src.utils.xla import fast_compile_options

MOST_SHAPES = 4  # of batches in a run without a warning: full, smaller, and those of another epoch


class Output(NamedTuple):
    """The result of a dispatch. Its arrays are still on the device.

    Attributes:
        rings: the record buffers.
        status: the packed status; `Executor.unpack_status` unpacks it.
        may_wait: whether the host may have to act before further steps are useful, as far as the host can predict.
    """

    rings: Any
    status: dict[str, Any]
    may_wait: bool = False


class Compiled:
    """A compiled `fn(carry, *rest) -> (carry, *out)` whose loop state is flat and donated.

    With `donate_changed_only`, only leaves that `fn` modifies are donated and returned, since each array that a
    dispatch creates costs host time. Which leaves those are depends on the trace: a leaf is unmodified if `fn` returns
    the very tracer that it was given (`call_preserving_identity` keeps this identity through nested jits). The set is
    found while tracing. If a trace modifies a leaf outside of the current set, tracing raises `_MoreLeavesChange`, the
    set grows, and the function is traced again. The set never shrinks, so this ends after a few traces.

    Args:
        name: distinguishes the functions of a run.
        fn: the function.
        kept: where the executables are kept for later runs.
        placement: the devices; the loop state keeps its shardings.
        count: is called once per dispatch.
        donate_rest: positions of further donated arguments, counted after the loop state.
        steps: whether the function contains training steps. If so, run time matters more than compile time.
        donate_changed_only: whether to donate and return only the leaves that the function modifies.
    """

    def __init__(
        self,
        name: Hashable,
        fn: Callable[..., Any],
        kept: KeptProgram,
        placement: Placement,
        count: Callable[[], None],
        donate_rest: tuple[int, ...] = (),
        *,
        steps: bool,
        donate_changed_only: bool = False,
    ) -> None:
        self._count, self._placement, self._steps = count, placement, steps
        self._donate_changed_only = donate_changed_only
        self._kept, self._name = kept, (name, "leaves that change")
        self._fn = fn
        self._live: DeviceState | None = None  # of the current call
        self._changed_indices: list[int] = []  # indices of the leaves that are donated and returned
        # arguments of `_run_flat`: 0 is `changed`, 1 is `unchanged`, and `rest` begins at 2
        self._function = KeptFunction(
            name,
            self._run_flat,
            kept,
            donate=(0, *(2 + i for i in donate_rest)),
            options=self._options,
            devices=placement.devices_key,
            varies=_variant,
        )

    def _run_flat(self, changed: list[Any], unchanged: list[Any], *rest: Any) -> Any:
        """Runs the function on the flat loop state. Traced."""
        assert self._live is not None
        packing = StatePacking(self._live.form)
        leaves = _replace_at(unchanged, self._changed_indices, changed)
        # inputs are sent as one packed vector; unpacking belongs to the program, so that it costs no dispatch
        given = (x.unpacked() if isinstance(x, Inputs) else x for x in rest)
        carry, *out = self._fn(packing, packing.unpack(leaves), *given)
        new = packing.pack(carry)
        # identity of tracers: an unmodified leaf is the same object, whatever its value
        found = {i for i, (x, y) in enumerate(zip(leaves, new, strict=True)) if x is not y}
        if not found <= set(self._changed_indices):  # also at the first trace, which starts with an empty set
            raise _MoreLeavesChange(sorted(found | set(self._changed_indices)))
        return [new[i] for i in self._changed_indices], out

    def _options(self) -> dict[str, Any]:
        """Returns the arguments of `jax.jit`: the donated leaves keep their shardings."""
        assert self._live is not None
        how = self._placement.jit_out_shardings([self._live.leaves[i] for i in self._changed_indices])
        return {**how, "compiler_options": {} if self._steps else fast_compile_options(self._placement.platform)}

    @property
    def batch_shapes(self) -> list[Any]:
        """The shapes of batches that the function was called with: for each, shape and dtype of the arrays."""
        return list(dict.fromkeys(shapes for *_, shapes in self._function.variants))

    def lower(self, live: DeviceState, *rest: Any) -> Any:
        """Returns the program, lowered for these arguments."""
        return self._with_arguments(self._function.lower, live, *rest)

    def prepare(self, live: DeviceState, *rest: Any) -> None:
        """Compiles for these arguments in the background; the first call waits for it."""
        self._with_arguments(self._function.prepare, live, *rest)

    def __call__(self, live: DeviceState, *rest: Any) -> Any:
        self._count()
        new, out = self._placement.block_if_needed(self._with_arguments(self._function, live, *rest))
        return (DeviceState(_replace_at(live.leaves, self._changed_indices, new), live.form), *out)

    def _with_arguments(self, use: Callable[..., Any], live: DeviceState, *rest: Any) -> Any:
        """Returns `use(*arguments)`. Traces again with more donated leaves after `_MoreLeavesChange`."""
        every = range(0 if self._donate_changed_only else len(live.leaves))
        self._changed_indices = self._kept.fact(self._name, lambda: list(every))
        while True:
            self._live = live
            changed = [live.leaves[i] for i in self._changed_indices]
            # a donated buffer must occur once among the arguments, so the donated leaves are None in `unchanged`
            unchanged = _replace_at(live.leaves, self._changed_indices, itertools.repeat(None))
            try:
                return use(changed, unchanged, *rest)
            # raised while tracing, before any buffer was donated: the arguments are still valid
            except _MoreLeavesChange as more:
                # another thread may have grown the set meanwhile; as it only grows, its size tells which one it is
                self._changed_indices = sorted({*more.indices, *self._kept.get(self._name)})
                self._kept.put(self._name, self._changed_indices)
            finally:
                self._live = None


def _variant(changed: list[Any], unchanged: list[Any], *rest: Any) -> Hashable:
    """Returns a key of what may differ from the last dispatch: the leaves that change, and the form of batches."""
    del unchanged
    batches = [x.data for x in rest if isinstance(x, Inputs)] or list(rest)
    leaves, structure = jax.tree.flatten(batches)
    return len(changed), structure, tuple((x.shape, x.dtype) if hasattr(x, "dtype") else type(x) for x in leaves)


class _MoreLeavesChange(Exception):
    """The traced function modifies leaves outside of the set that is donated."""

    def __init__(self, indices: list[int]) -> None:
        super().__init__(indices)
        self.indices = indices


def _replace_at(leaves: list[Any], indices: list[int], new: Iterable[Any]) -> list[Any]:
    """Returns a copy of the leaves in which those at `indices` are replaced."""
    leaves = list(leaves)
    for index, leaf in zip(indices, new, strict=False):
        leaves[index] = leaf
    return leaves


class Executor:
    """Base of the two executors.

    Args:
        program: the functions of the run.
        kept: where compiled functions are kept for later runs.
        placement: the devices.
    """

    name = ""

    def __init__(self, program: Program, kept: KeptProgram, placement: Placement = ONE_DEVICE) -> None:
        self.program, self.placement = program, placement
        self.dispatches = 0
        self.kept = kept
        self._step_functions: list[Compiled] = []
        self._begin = self._compiled(self._run_begin)
        self._end = self._compiled(self._run_end)
        self._stop = self._compiled(self._run_stop)
        self._resume = self._compiled(self._run_resume)
        self._begin_eval = self._compiled(self._run_begin_eval)
        self._end_eval = self._compiled(self._run_end_eval, donate_rest=(1,))
        self._eval_batch = self._compiled(self._run_eval_batch, donate_rest=(0,), steps=True)

    def _compiled(
        self,
        fn: Callable[..., Any],
        donate_rest: tuple[int, ...] = (),
        *,
        steps: bool = False,
        donate_changed_only: bool = False,
    ) -> Compiled:
        compiled = Compiled(
            self._key(fn.__name__),
            fn,
            self.kept,
            self.placement,
            self._count,
            donate_rest,
            steps=steps,
            donate_changed_only=donate_changed_only,
        )
        if steps:
            self._step_functions.append(compiled)
        return compiled

    def shapes_that_keep_changing(self) -> str | None:
        """Returns the shapes of the batches, as text, if a step was compiled for too many of them; otherwise None."""
        for function in self._step_functions:
            if len(function.batch_shapes) > MOST_SHAPES:
                return ", ".join(
                    "(" + ", ".join(f"{d.name}{list(s)}" for s, d in of) + ")" for of in function.batch_shapes
                )
        return None

    def _key(self, name: str) -> Hashable:
        """Returns the name of a function among all that are kept for the run: populations shrink to other programs."""
        return self.name, self.program.members, self.program.over.__name__, name

    def _count(self) -> None:
        self.dispatches += 1

    def _pack_status(self, inputs: Inputs, carry: LoopState) -> dict[str, Any]:
        """Packs the status. Fetching one array is cheaper than fetching one per number. Traced."""
        status = self.program.status(inputs, carry)
        packing = TreePacker(status)
        self.kept.put(self._key("status"), packing)
        return packing.row(status)

    def unpack_status(self, status: dict[str, np.ndarray]) -> Status:
        """Unpacks a fetched status."""
        rows = self.kept.get(self._key("status")).unpack({name: row[None] for name, row in status.items()})
        status = jax.tree.map(lambda x: x[0], rows)
        return status.replace(window=status.window.means_on_host())

    def prepare(self, live: DeviceState, inputs: Inputs) -> None:
        """Compiles in the background what takes longest, for data that lies on the device.

        Args:
            live: the loop state.
            inputs: the inputs of a dispatch.
        """

    def begin(self, live: DeviceState, inputs: Inputs) -> tuple[DeviceState, Output]:
        """Runs `on_train_begin`."""
        live, rings, status = self._begin(live, inputs)
        return live, Output(rings, status)

    def end(self, live: DeviceState, inputs: Inputs) -> tuple[DeviceState, Output]:
        """Runs `on_train_end`."""
        live, rings, status = self._end(live, inputs)
        return live, Output(rings, status)

    def resume(self, live: DeviceState) -> DeviceState:
        """Clears the flag that host actions are pending."""
        return self._resume(live)[0]

    def request_stop(self, live: DeviceState) -> DeviceState:
        """Sets the stop flag from the host."""
        return self._stop(live)[0]

    def execute(
        self, live: DeviceState, inputs: Inputs, batches: Iterable[Any], place: Any
    ) -> tuple[DeviceState, Output]:
        """Dispatches a chunk of steps, with the epoch ends and validations in it. Does not wait for the device."""
        raise NotImplementedError

    def validate(
        self,
        live: DeviceState,
        inputs: Inputs,
        sets: Mapping[str, Iterable[Any]],
        evaluate: Callable[[DeviceState], dict[str, Any]],
    ) -> tuple[DeviceState, Output]:
        """Runs a validation whose batches or values come from the host.

        Args:
            live: the loop state, at a point where a validation is due.
            inputs: the inputs of the dispatch.
            sets: prefix -> batches.
            evaluate: computes metrics on the host (float32) from the loop state at the validation.
        """
        live, rings = self._begin_eval(live, inputs)
        windows = {}
        for prefix, batches in sets.items():
            window = None
            for index, batch in enumerate(map(self.placement.put_batch, batches)):
                if window is None:
                    window = self.program.empty_eval(live.shapes().train, batch)
                live, window = self._eval_batch(live, window, batch, np.int32(index))
            windows[prefix] = window
        live, rings, status = self._end_eval(live, inputs, rings, windows, evaluate(live))
        return live, Output(rings, status)

    def _run_stop(self, packing: StatePacking, carry: LoopState) -> Any:
        return (carry.replace(train=carry.train.replace(stop=jnp.ones_like(carry.train.stop))),)

    def _run_resume(self, packing: StatePacking, carry: LoopState) -> Any:
        return (carry.replace(yielded=jnp.zeros_like(carry.yielded)),)

    def _run_begin(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        carry, rings = boundary.begin(self.program, inputs, carry, self.program.buffers.empty())
        return carry, rings, self._pack_status(inputs, carry)

    def _run_end(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        carry, rings = boundary.end(self.program, inputs, carry, self.program.buffers.empty())
        return carry, rings, self._pack_status(inputs, carry)

    def _run_begin_eval(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        return boundary.begin_eval(self.program, inputs, carry, self.program.buffers.empty())

    def _run_eval_batch(self, packing: StatePacking, carry: LoopState, window: Any, batch: Any, index: Any) -> Any:
        return carry, self.program.eval_batch(window, carry.train, batch, index)

    def _run_end_eval(
        self, packing: StatePacking, carry: LoopState, inputs: Inputs, rings: Any, windows: Any, extra: Any
    ) -> Any:
        program = self.program
        values = boundary.evaluate(program, inputs, carry) | dict(extra)
        for prefix, window in windows.items():
            values |= {prefix + name: value for name, value in window.means().items()}
        carry, rings = boundary.end_eval(program, inputs, carry, rings, values)
        carry, rings = boundary.close_epoch_if_due(program, inputs, carry, rings, packing.cond)
        return carry, rings, self._pack_status(inputs, carry)
