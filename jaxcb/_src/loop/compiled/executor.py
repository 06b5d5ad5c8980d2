"""Base of both executors: compiled functions over the flat loop state, and validation on batches of the host."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.device_state import DeviceState, StateForm, StatePacking
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


class _Function(NamedTuple):
    """A compiled function for batches of one shape.

    Attributes:
        changed: indices of the leaves of the state that it takes as donated arguments, and returns.
        run: `run(changed, unchanged, frozen, *rest) -> (changed, out)`.
    """

    changed: tuple[int, ...]
    run: Callable[..., Any]


class Compiled:
    """A compiled `fn(packing, carry, *rest) -> (carry, *out)` whose loop state is flat and donated.

    With `donate_changed_only`, only leaves that `fn` modifies are donated and returned, since each array that a
    dispatch creates costs host time. Which leaves those are depends on the trace: a leaf is unmodified if `fn` returns
    the tracer itself that it was given (`call_preserving_identity` keeps this identity through nested jits). So the
    function is traced once before it is compiled, for each shape of a batch; the inner functions keep their traces.

    Args:
        name: distinguishes the functions of a run.
        fn: the function.
        kept: where the executables are kept for later runs.
        placement: the devices; the loop state keeps its shardings.
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
        donate_rest: tuple[int, ...] = (),
        *,
        steps: bool,
        donate_changed_only: bool = False,
    ) -> None:
        self._name, self._fn, self._kept, self._placement = name, fn, kept, placement
        self._donate_rest, self._donate_changed_only = donate_rest, donate_changed_only
        self.has_steps = steps
        self._functions: dict[tuple[Any, Any], _Function] = {}  # by what may differ between two dispatches
        self.dispatches = 0

    def __call__(self, live: DeviceState, *rest: Any) -> Any:
        self.dispatches += 1
        key = _form_of(rest)
        found = self._functions.get(key)
        if found is None:
            changed = self._changed_by(live, rest, key)
            kept = self._kept_function(live, changed)
            given = self._given(live, changed)
            compiles = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
            run = kept.executable(*given, *rest) if compiles else kept
            found = self._functions[key] = _Function(changed, run)
        new, out = self._placement.block_if_needed(found.run(*self._given(live, found.changed), *rest))
        return (live._replace(leaves=_replace_at(live.leaves, found.changed, new)), *out)

    @property
    def batch_shapes(self) -> list[Any]:
        """The shapes of batches that the function was called with: for each, shape and dtype of the arrays."""
        return list(dict.fromkeys(shapes for _, shapes in self._functions))

    def lower(self, live: DeviceState, *rest: Any) -> Any:
        """Returns the program, lowered for these arguments."""
        changed = self._changed_by(live, rest, _form_of(rest))
        return self._kept_function(live, changed).lower(*self._given(live, changed), *rest)

    def prepare(self, live: DeviceState, *rest: Any) -> None:
        """Compiles for these arguments in the background; the first call waits for it."""
        changed = self._changed_by(live, rest, _form_of(rest))
        self._kept_function(live, changed).prepare(*self._given(live, changed), *rest)

    @staticmethod
    def _given(live: DeviceState, changed: tuple[int, ...]) -> tuple[list[Any], list[Any], tuple[Any, ...]]:
        """Returns the arguments for the state: the leaves to donate, the others, and the frozen parameters."""
        return *_split(live.leaves, changed), live.frozen

    def _changed_by(self, live: DeviceState, rest: tuple[Any, ...], key: Hashable) -> tuple[int, ...]:
        """Returns the indices of the leaves that the function modifies."""
        if not self._donate_changed_only:
            return tuple(range(len(live.leaves)))

        def find() -> tuple[int, ...]:
            changed: list[int] = []

            def trace(leaves: list[Any], frozen: tuple[Any, ...], *rest: Any) -> None:
                new, _ = self._run(live.form, leaves, frozen, rest)
                changed.extend(i for i, (x, y) in enumerate(zip(leaves, new, strict=True)) if x is not y)

            jax.eval_shape(trace, live.leaves, live.frozen, *rest)
            return tuple(changed)

        return self._kept.fact((self._name, "leaves that change", key), find)

    def _kept_function(self, live: DeviceState, changed: tuple[int, ...]) -> KeptFunction:
        """Returns the function that is compiled: its arguments are those of `_Function.run`."""

        def run(donated: list[Any], others: list[Any], frozen: tuple[Any, ...], *rest: Any) -> Any:
            new, out = self._run(live.form, _replace_at(others, changed, donated), frozen, rest)
            return [new[i] for i in changed], out

        def options() -> dict[str, Any]:
            """Returns the arguments of `jax.jit`: the donated leaves keep their shardings."""
            how = self._placement.jit_out_shardings([live.leaves[i] for i in changed])
            return {**how, "compiler_options": {} if self.has_steps else fast_compile_options(self._placement.platform)}

        donate = (0, *(3 + i for i in self._donate_rest))  # 0 is `donated`, and `rest` begins at 3
        devices = self._placement.devices_key
        return KeptFunction((self._name, changed), run, self._kept, donate=donate, options=options, devices=devices)

    def _run(
        self, form: StateForm, leaves: list[Any], frozen: tuple[Any, ...], rest: tuple[Any, ...]
    ) -> tuple[list[Any], Any]:
        """Runs the function on the flat loop state. Traced."""
        packing = StatePacking(form, frozen)
        # inputs are sent as one packed vector; unpacking belongs to the program, so that it costs no dispatch
        given = (x.unpacked() if isinstance(x, Inputs) else x for x in rest)
        carry, *out = self._fn(packing, packing.unpack(leaves), *given)
        return packing.pack(carry), out


def _form_of(rest: tuple[Any, ...]) -> tuple[Any, Any]:
    """Returns what may differ from the last dispatch: structure and shapes of the batches."""
    batches = [x.data for x in rest if isinstance(x, Inputs)] or list(rest)
    leaves, structure = jax.tree.flatten(batches)
    return structure, tuple((x.shape, x.dtype) if hasattr(x, "dtype") else type(x) for x in leaves)


def _split(leaves: list[Any], changed: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """Returns the leaves to donate, and all leaves with None in their places: a donated buffer must occur once."""
    return [leaves[i] for i in changed], _replace_at(leaves, changed, itertools.repeat(None))


def _replace_at(leaves: list[Any], indices: Sequence[int], new: Iterable[Any]) -> list[Any]:
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
        self.kept = kept
        self._functions: list[Compiled] = []
        self._other_dispatches = 0  # of functions that return no loop state
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
            donate_rest,
            steps=steps,
            donate_changed_only=donate_changed_only,
        )
        self._functions.append(compiled)
        return compiled

    @property
    def dispatches(self) -> int:
        """Number of calls of compiled functions so far."""
        return sum(function.dispatches for function in self._functions) + self._other_dispatches

    def shapes_that_keep_changing(self) -> str | None:
        """Returns the shapes of the batches, as text, if a step was compiled for too many of them; otherwise None."""
        for function in self._functions:
            if function.has_steps and len(function.batch_shapes) > MOST_SHAPES:
                return ", ".join(
                    "(" + ", ".join(f"{d.name}{list(s)}" for s, d in of) + ")" for of in function.batch_shapes
                )
        return None

    def _key(self, name: str) -> Hashable:
        """Returns the name of a function among all that are kept for the run: populations shrink to other programs."""
        return self.name, self.program.block, self.program.members, self.program.functions.mapping.over.__name__, name

    def _pack_status(self, inputs: Inputs, carry: LoopState, wasted: Any = 0) -> dict[str, Any]:
        """Packs the status. Fetching one array is cheaper than fetching one per number. Traced."""
        status = self.program.status(inputs, carry, wasted)
        packing = TreePacker(status)
        self.kept.put(self._key("status"), packing)
        return packing.row(status)

    def unpack_status(self, status: dict[str, np.ndarray]) -> Status:
        """Unpacks a fetched status."""
        rows = self.kept.get(self._key("status")).unpack({name: row[None] for name, row in status.items()})
        found: Status = jax.tree.map(lambda x: x[0], rows)
        return found.replace(window=found.window.means_on_host())

    def prepare(self, live: DeviceState, inputs: Inputs) -> None:
        """Compiles in the background what takes longest, if its shapes are known.

        All training data must lie on the device: the shapes of a stream's chunks are known when the first one is there.
        With several processes, compiling may need all of them, at the same point of the run.

        Args:
            live: the loop state, or its shapes.
            inputs: the inputs of a dispatch.
        """
        compiles = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        if compiles and self.program.layout.kind in ("resident", "none") and jax.process_count() == 1:
            self._prepare_steps(live, inputs)

    def _prepare_steps(self, live: DeviceState, inputs: Inputs) -> None:
        raise NotImplementedError

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
        carry, rings = boundary.begin(self.program, inputs, carry, self.program.buffers.empty(("on_train_begin",)))
        return carry, rings, self._pack_status(inputs, carry)

    def _run_end(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        carry, rings = boundary.end(self.program, inputs, carry, self.program.buffers.empty(("on_train_end",)))
        return carry, rings, self._pack_status(inputs, carry)

    def _run_begin_eval(self, packing: StatePacking, carry: LoopState, inputs: Inputs) -> Any:
        return boundary.begin_eval(self.program, inputs, carry, self.program.chunk_buffers())

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
