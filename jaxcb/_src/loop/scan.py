"""`scan`: a run with callbacks inside a program that the user compiles, under `vmap` too."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.core.actions.base import HostAction
from jaxcb._src.core.actions.control import Stop, WeightAction
from jaxcb._src.core.actions.logging import LogProgress
from jaxcb._src.core.actions.records import RecordPosition, Records
from jaxcb._src.core.callback import STEP_HOOKS, Callback
from jaxcb._src.core.chain import AsCallback, Chain, as_chain
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.data.spec import BatchLayout
from jaxcb._src.loop.compiled import epoch as boundary
from jaxcb._src.loop.compiled.position import EvalSchedule
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.program_spec import ProgramSpec, ValidationPlan, plan_program
from jaxcb._src.loop.compiled.rows import StackedRecords, Stacks, run_where
from jaxcb._src.loop.compiled.state import DispatchParams, Inputs, LoopState, initial_state
from jaxcb._src.loop.compiled.traced_functions import MemberMapping, RunFunctions, TracedFunctions, variables_of
from jaxcb._src.loop.host.stops import check_text
from jaxcb._src.loop.programs import prepared_state
from jaxcb._src.training.any_state import NO_WEIGHTS, AnyState
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import Step
from jaxcb._src.utils.errors import CallbackError, check_int, shown, takes
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.pytree import Struct, cast_like, select, static, to_strong_types
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.progress import ProgressWriter
from jaxcb._src.writers.run_handle import Record, Run

_VALIDATION = ValidationPlan(EvalSchedule(1, None))
_NO_BATCHES = BatchLayout("none", 0, 1, False, False)


class ScanResult(Struct):
    """The result of `scan`: a pytree of arrays, which `scan` takes in place of a state to continue the run.

    Attributes:
        state: the state at the end, in the form in which it was given, after `on_train_end`.
        callback_states: name -> state of the callback at the end.
        records: the log actions and the stops, stacked.
        stopped: whether a callback, or the step, has stopped the run, bool ().
        step: updates done, int32 ().
        resumable: the state of the run before its last, unfinished epoch was closed and before `on_train_end`, from
            which it continues. In a run that has stopped before, it is that of the end.
        cursor: steps done in the epoch in which `resumable` is.
    """

    state: Any
    callback_states: dict[str, Any]
    records: Records
    stopped: Any
    step: Any
    resumable: LoopState
    cursor: int = static()


def scan(
    callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None,
    step: Callable[[Any], tuple[Any, Any]] | Step,
    state: Any,
    length: int,
    *,
    steps_per_epoch: int | None = None,
) -> ScanResult:
    """Runs steps with callbacks, as `Loop.run` does without data, inside a program that you compile.

    Hooks run, and control actions apply, in the order of a run. There is no host inside a program, so host actions are
    refused; log actions are returned as arrays. Only progress (`ProgressBar`) is shown meanwhile, a line an epoch. Call
    it inside of `jax.jit`: it is traced again at each call, as `jax.lax.scan` is.

    Under `jax.vmap` each row stops alone, and is then what a run of it alone would be. Until all rows have stopped, a
    stopped row costs as much as the others; then the rest is skipped. It cannot be differentiated.

    Args:
        callbacks: callbacks in the order in which their actions apply.
        step: `(state) -> (state, metrics)`, pure; metrics is a dict of names to arrays. A `Step` also serves
            `on_before_update`; its loss function gets None for its batch.
        state: a `TrainState`, or any pytree. In another pytree, callbacks act on the `TrainState` within it, or on the
            fields `params` and `opt_state` of the objects that have both, such as Flax's `TrainState`. Without those,
            callbacks can stop the run, but copy no weights and change no learning rate. A `ScanResult`, to continue its
            run.
        length: number of steps.
        steps_per_epoch: steps of an epoch; None makes one epoch of all steps. An epoch that is unfinished at the end is
            closed, as in a run of that length. A run that continues from the result continues the unfinished epoch,
            so that all of it equals one long run; what callbacks decided when it was closed is forgotten.

    Returns:
        A `ScanResult`.

    Raises:
        TypeError: for an argument of an unsupported type, or a step that returns something else than expected.
        ValueError: for arguments out of range, for a step that changes the structure of its state, and for a callback
            that needs what the state does not have.
        CallbackError: for a callback that needs the host.
        MissingMetricError: for a monitor that is never reported.

    Example:
        >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
        >>> def step(state):
        ...     loss, grads = jax.value_and_grad(lambda p: (p - 3.0) ** 2)(state.params)
        ...     return state.apply_gradients(grads), {"loss": loss}
        >>> def train(start):
        ...     state = jc.TrainState.create(params=start, tx=optax.sgd(0.1))
        ...     return jc.scan([jc.EarlyStopping("loss", min_delta=0.1)], step, state, 100, steps_per_epoch=5)
        >>> run = jax.jit(jax.vmap(train))(jnp.array([0.0, 2.0]))
        >>> run.step.tolist()
        [20, 15]
        >>> jc.stop_reasons(run.records)[0]
        'EarlyStopping: loss has not improved for 1 reports; best 0.051456 at epoch 3'

    Source: `jax.lax.scan`.
    """
    chain = as_chain(callbacks)
    if not callable(step):
        raise TypeError(f"scan: step must be a function of the state, got a {type(step).__name__}.")
    if not isinstance(step, Step) and not takes(step, state):
        raise TypeError(
            f"scan: step is called as step(state) and returns (state, metrics), but got a function with the signature "
            f"{inspect.signature(step)}."
        )
    odd = [x for x in jax.tree.leaves(state) if not (hasattr(x, "dtype") or isinstance(x, int | float | complex))]
    if odd:
        raise TypeError(f"scan: state must be a pytree of arrays, and has a {type(odd[0]).__name__}, {shown(odd[0])}.")
    length = check_int("scan", "length", length, least=1, concrete=True)
    if steps_per_epoch is not None:
        steps_per_epoch = check_int("scan", "steps_per_epoch", steps_per_epoch, least=1, concrete=True)
    run = _Run.of(chain, step, state, length)
    carry, cursor, closes, parts = run.start, 0, False, list[Stacks]()
    if isinstance(state, ScanResult):
        over = carry.ended
        cursor = 0 if steps_per_epoch is None else state.cursor % steps_per_epoch
    else:
        over = jnp.zeros((), bool)
        carry, records = boundary.begin(run.program, run.inputs, carry, {})
        parts.append(_with_axis(run.records.shown(records)))
    for size, times, closes in _epochs(length, steps_per_epoch, cursor):
        carry, records = run.epochs(carry, size, times, closes=closes)
        parts.append(records)
    finished, records = run.end(carry, over, closes=not closes)
    # Not `finished.train.stop`: what a callback decides when an unfinished epoch is closed is no part of a longer run.
    stopped = carry.train.stop
    return ScanResult(
        state=run.form.merge(finished.train),
        callback_states=finished.callbacks,
        records=Records(_joined([*parts, records])),
        stopped=finished.train.stop,
        step=finished.step,
        resumable=select(stopped, finished.replace(ended=finished.ended | stopped), carry),
        cursor=0 if steps_per_epoch is None else (cursor + length) % steps_per_epoch,
    )


def _epochs(length: int, steps_per_epoch: int | None, cursor: int) -> list[tuple[int, int, bool]]:
    """Returns the epochs, as tuples: their steps, how many of them follow each other, and whether they are closed."""
    if steps_per_epoch is None:
        return [(length, 1, False)]
    first = min(steps_per_epoch - cursor, length) if cursor else 0
    full, last = divmod(length - first, steps_per_epoch)
    parts = [(first, 1, cursor + first == steps_per_epoch), (steps_per_epoch, full, True), (last, 1, False)]
    return [(size, times, closes) for size, times, closes in parts if size and times]


class _ProgressLines:
    """Prints a line for each `LogProgress` while the program runs; the rows of `vmap` share one."""

    def __init__(self) -> None:
        self._writer: ProgressWriter | None = None
        self._epoch = -1

    def __call__(self, action: LogProgress, at: RecordPosition) -> None:
        axes = np.ndim(action.when)
        if axes > 1:  # nested rows are shown as rows
            action, at = jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[axes:])), (action, at))
        step, epoch = (int(np.max(np.where(action.when, x, -1))) for x in (at.step, at.epoch))
        if self._writer is None or epoch <= self._epoch:  # the program runs again
            self._writer = ProgressWriter(Context(None, Run(None), 2, None))
            self._writer.prepare(action.replace(verbose=2))
        self._epoch = epoch
        self._writer.write(Record(action, "", step, epoch, 0))
        self._writer.flush()


class _Run(NamedTuple):
    """A run inside a trace.

    Attributes:
        program: its hooks and steps.
        records: what it records.
        inputs: what hooks and steps get.
        start: the loop state at the start.
        form: the form of the user's state.
        steps_may_stop: whether the run can stop within an epoch.
    """

    program: Program
    records: StackedRecords
    inputs: Inputs
    start: LoopState
    form: AnyState
    steps_may_stop: bool

    @classmethod
    def of(cls, chain: Chain, step: Callable[..., Any], state: Any, length: int) -> "_Run":
        """Traces the functions of a run once, and checks that all that callbacks need is there."""
        before = state.resumable if isinstance(state, ScanResult) else None
        form = AnyState(state.state if isinstance(state, ScanResult) else state)
        if isinstance(step, Step) and not form.is_train_state:
            raise TypeError(
                f"scan: a Step trains a TrainState, such as jc.TrainState.create(params=..., tx=...), got a state of "
                f"type {type(state).__name__}."
            )
        if before is None:
            train, states = prepared_state(form.start(state), chain)
            states = to_strong_types(states)
        else:
            train, states = before.train, _states_of(chain, before.callbacks)
        train_step = step if isinstance(step, Step) else form.adapted(step, form.merge(train))
        functions = TracedFunctions(RunFunctions(train_step, None, chain), chain.probes(), MemberMapping())
        settings = jax.tree.leaves(to_strong_types(chain))
        spec = plan_program(functions, _VALIDATION, (), train, states, settings, None, {})
        _check(spec, form)
        records = StackedRecords(spec.hooks, _ProgressLines())
        program = Program(functions, spec, _VALIDATION, _NO_BATCHES, buffers=records)
        start = initial_state(train, states, spec.metrics, None) if before is None else before.replace(callbacks=states)
        limits: list[Any] = [UNBOUNDED] * len(DispatchParams._fields)
        numbers = DispatchParams(*limits)._replace(total_steps=start.step + jnp.int32(length))
        may_stop = any(isinstance(action, Stop) for action in spec.actions_of(*STEP_HOOKS))
        may_stop = may_stop or not (functions.split_step or _keeps_stop(functions, train))
        return cls(program, records, Inputs(settings, None, None, {}, numbers), start, form, may_stop)

    def epochs(self, carry: LoopState, size: int, times: int, *, closes: bool) -> tuple[LoopState, Stacks]:
        """Runs a number of epochs, or the part of one.

        Args:
            carry: the loop state.
            size: steps of an epoch.
            times: number of epochs.
            closes: whether the epoch is closed after its steps.

        Returns:
            The loop state, and the records, with one entry per call of their hook.
        """

        def one(carry: LoopState, _: None) -> tuple[LoopState, Stacks]:
            opens = _lives(carry) & ~carry.opened
            carry, opened = self._where(opens, self._call(boundary.open_epoch), carry, "on_epoch_begin")
            carry, steps = self._steps(carry, size)
            if not closes:
                return carry, {**_with_axis(opened), **steps}
            carry, closed = self._close(carry)
            return carry, {**_with_axis({**opened, **closed}), **steps}

        if times == 1:
            return one(carry, None)
        carry, records = jax.lax.scan(one, carry, None, times)
        return carry, jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), records)

    def end(self, carry: LoopState, over: Any, *, closes: bool) -> tuple[LoopState, Stacks]:
        """Closes the unfinished epoch if it `closes`, and runs `on_train_end` where the run was not `over` before."""
        carry, closed = self._close(carry) if closes else (carry, {})
        carry, ended = self._where(~over, self._call(boundary.end), carry, "on_train_end")
        return carry, _with_axis({**closed, **ended})

    def _steps(self, carry: LoopState, size: int) -> tuple[LoopState, Stacks]:
        """Runs the steps of an epoch, in rows that have not stopped."""

        def step(carry: LoopState) -> tuple[LoopState, Stacks]:
            return self.program.train_step_with_hooks(self.inputs, carry, {}, None, 1)

        def one(carry: LoopState, _: None) -> tuple[LoopState, Stacks]:
            if not self.steps_may_stop:
                carry, records = step(carry)
                return carry, self.records.shown(records)
            return self._where(_lives(carry), step, carry, *STEP_HOOKS)

        def run(carry: LoopState) -> tuple[LoopState, Stacks]:
            return jax.lax.scan(one, carry, None, size)

        return run_where(_lives(carry), run, carry, self.records.nothing(STEP_HOOKS, size))

    def _close(self, carry: LoopState) -> tuple[LoopState, Stacks]:
        """Closes the epoch in rows whose last epoch is open, unless they have stopped before its first step."""
        closes = ~carry.ended & (carry.cursor > 0)
        return self._where(closes, self._call(boundary.close_epoch), carry, "on_epoch_end")

    def _where(self, mask: Any, fn: Any, carry: LoopState, *hooks: str) -> tuple[LoopState, Stacks]:
        return run_where(mask, fn, carry, self.records.nothing(hooks), self.records.shown)

    def _call(self, fn: Callable[..., tuple[LoopState, Stacks]]) -> Callable[[LoopState], tuple[LoopState, Stacks]]:
        return lambda carry: fn(self.program, self.inputs, carry, {})


def _keeps_stop(functions: TracedFunctions, train: TrainState) -> bool:
    """Returns whether a step leaves the stop flag of the train state as it is."""
    (given, _), (new, _) = variables_of(functions.first_half, train, None)
    return new.stop is given.stop


def _lives(carry: LoopState) -> Any:
    return ~(carry.train.stop | carry.ended)


def _with_axis(records: Stacks) -> Stacks:
    return jax.tree.map(lambda x: x[None], records)


def _joined(parts: list[Stacks]) -> Stacks:
    """Joins the records of parts of a run."""
    hooks = dict.fromkeys(hook for part in parts for hook in part)
    return {h: jax.tree.map(lambda *x: jnp.concatenate(x), *(part[h] for part in parts if h in part)) for h in hooks}


def _states_of(chain: Chain, states: dict[str, Any]) -> dict[str, Any]:
    """Returns the states of the callbacks with which a run continues.

    Raises:
        ValueError: if they are those of other callbacks.
    """
    if set(chain.names) != set(states):
        raise ValueError(
            f"scan: the result to continue is one of the callbacks {', '.join(states) or 'none'}; got "
            f"{', '.join(chain.names) or 'none'}. Pass the same callbacks."
        )
    return cast_like(states, eval_shape(lambda: to_strong_types(chain.init())), "scan: the callbacks' states")


def _check(spec: ProgramSpec, form: AnyState) -> None:
    """Refuses what a compiled program, or this state, cannot serve.

    Raises:
        CallbackError: for a callback that needs the host.
        ValueError: for a callback that copies weights, if nothing says which part of the state they are.
    """
    for hook, own in spec.hooks.items():
        for index, action in enumerate(own.actions):
            if index in own.never:
                continue
            check_text(action, None)
            if isinstance(action, HostAction):
                raise CallbackError(
                    f"{action.owner} needs the host in {hook} (it returns a {type(action).__name__}), and there is "
                    "none inside a compiled program. Leave it out of jc.scan and save or call between two parts of the "
                    "run. Or use jc.Loop(step).run(state, steps=...), which returns to the host."
                )
            if isinstance(action, WeightAction) and not form.holders:
                raise ValueError(f"{action.owner} {NO_WEIGHTS}")
