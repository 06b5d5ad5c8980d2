"""Hooks and steps as pure functions of the loop state; both executors are built from these."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxcb._src.core.actions.base import Action, HostAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.records import RecordPosition
from jaxcb._src.core.callback import HOOKS, STEP_HOOKS
from jaxcb._src.core.metrics import Metrics, Reported, split_reported
from jaxcb._src.data.spec import BatchLayout, rows_in
from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator, computed
from jaxcb._src.loop.compiled.program_spec import ProgramSpec, ValidationPlan, metrics_of
from jaxcb._src.loop.compiled.record_buffer import RecordBuffer, RecordBuffers, any_fires
from jaxcb._src.loop.compiled.state import Inputs, LoopState, ProbeValue, Status
from jaxcb._src.loop.compiled.traced_functions import TracedFunctions, call_preserving_identity
from jaxcb._src.training.apply import apply_actions
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import PendingUpdate, Step
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.names import leaf_name
from jaxcb._src.utils.pytree import cast_like, select


@contextlib.contextmanager
def debugging(debug: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Runs the body without compilation if `debug` is set.

    JAX's `jax_debug_nans` is disabled meanwhile: metrics that are not reported yet are NaN, and would trigger it.

    Args:
        debug: whether to run without compilation.
        say: prints a line.
    """
    with contextlib.ExitStack() as stack:
        if debug:
            stack.enter_context(jax.disable_jit())
            say("jaxcb: debug=True runs without compilation and stops at the first NaN.")
        if getattr(jax.config, "jax_debug_nans"):  # noqa: B009, its stubs do not know it
            stack.enter_context(jax.debug_nans(False))
            if not debug:
                say("jaxcb: jax_debug_nans is disabled during this run; debug=True finds the step and leaf of a NaN.")
        yield


def refuse_nan(step: Any, **trees: Any) -> None:
    """Raises an error at the first NaN that names the step and the leaf. Needs concrete arrays.

    Args:
        step: number of the step, from 1.
        **trees: description -> tree to check.

    Raises:
        FloatingPointError: if there is a NaN.
    """
    for what, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            count = int(jnp.sum(jnp.isnan(leaf)))
            if count:
                name = leaf_name(path)
                raise FloatingPointError(
                    f"step {int(step)}: {what}{f' {name!r}' if name else ''} has {count} NaN of {leaf.size} values. It "
                    "is the first NaN of the run: all values computed earlier in the step are finite or infinite."
                )


class Program:
    """A run's hooks and steps, as pure functions of the loop state.

    Args:
        functions: the functions that it calls.
        spec: what is known of them.
        validation: what is validated, and when.
        layout: how batches are found in the data.
        block: steps of a block, in which nothing may wait for the host; None for a loop that ends at any step.
        buffers: where records are kept; None for `RecordBuffers`.
    """

    def __init__(
        self,
        functions: TracedFunctions,
        spec: ProgramSpec,
        validation: ValidationPlan,
        layout: BatchLayout,
        block: int | None = None,
        buffers: Any = None,
    ) -> None:
        self.block = block
        self.functions, self.spec, self.validation, self.layout = functions, spec, validation, layout
        self.members, self.placement = functions.mapping.members, functions.mapping.placement
        self.predicates = validation.predicates
        self.buffers = RecordBuffers(spec.hooks) if buffers is None else buffers

    @property
    def steps_may_stop(self) -> bool:
        """Whether a step can request a stop: by a hook, or by a custom train step that sets `stop`."""
        own = not isinstance(self.functions.step, Step)
        return own or any(isinstance(action, Stop) for action in self.spec.actions_of(*STEP_HOOKS))

    @property
    def rare_probes(self) -> tuple[int, ...]:
        """The steps between two runs of each probe that does not run at every step."""
        return tuple(probe.every for probe in self.functions.probes.values() if probe.every > 1)

    def chunk_buffers(self) -> dict[str, RecordBuffer]:
        """Returns empty record buffers for the hooks that run between `on_train_begin` and `on_train_end`. Traced.

        Members of a population may end before the others, and run `on_train_end` then.
        """
        alone = ("on_train_begin", "on_train_end") if self.members is None else ("on_train_begin",)
        return self.buffers.empty(tuple(hook for hook in HOOKS if hook not in alone))

    def yields_at(self, *hooks: str) -> bool:
        """Returns whether any of these hooks can return a host action."""
        return any(self.spec.hooks[hook].may_yield for hook in hooks if hook in self.spec.hooks)

    # Metrics that a hook call sees

    def metrics(
        self, inputs: Inputs, carry: LoopState, values: Mapping[str, Any], *, last: bool, **more: Any
    ) -> Metrics:
        """Returns the metrics that a hook sees: `values`, controls, learning rate and host metrics.

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            values: name -> value.
            last: whether the learning rate is that of the last update; otherwise of the next one.
            **more: further arguments of `metrics_of`.
        """
        return metrics_of(
            values,
            carry.train,
            inputs.host(self.spec.host_names, self.spec.host_read),
            last=last,
            step=carry.step,
            epoch=carry.epoch,
            total_steps=inputs.numbers.total_steps,
            **more,
        )

    # Hooks

    def run_hook(
        self,
        hook: str,
        inputs: Inputs,
        carry: LoopState,
        rings: Any,
        metrics: Metrics,
        *,
        alive: Any = None,
        ok: Any = True,
        inside: tuple[PendingUpdate, Any] | None = None,
    ) -> tuple[LoopState, Any, tuple[Action, ...]]:
        """Runs a hook: updates the callbacks' states, applies control actions, and records the other actions.

        Args:
            hook: its name.
            inputs: the inputs of the dispatch.
            carry: the loop state.
            rings: the record buffers.
            metrics: what the hook sees.
            alive: members that the hook acts on, bool (members,); None for all.
            ok: whether the hook call counts, bool (). If not, nothing is recorded, and the caller must discard the
                returned loop state.
            inside: pending update and batch, for lazy log actions of `on_before_update`.

        Returns:
            The loop state, the record buffers, and the actions.
        """
        if hook not in self.spec.hooks:
            return carry, rings, ()
        functions, together = self.functions, {}
        if functions.populations:
            together = {"alive": ~carry.ended if alive is None else alive, "member": carry.member}
        metrics = metrics.replace(old=self.spec.stale_names.get(hook, frozenset()), **together)
        states, actions = call_preserving_identity(functions.hook[hook], inputs.settings, carry.callbacks, metrics)
        if alive is not None:
            states = select(alive, states, carry.callbacks)
            actions = tuple(a.replace(when=a.when & alive) for a in actions)
        waiting = tuple(a for a in actions if isinstance(a, HostAction))
        branches = self.block is None or hook not in STEP_HOOKS
        at = RecordPosition(carry.seq, carry.step, carry.epoch, carry.cursor)
        new = carry.replace(
            train=self.placement.constrain_state(apply_actions(actions, carry.train, branches=branches)),
            callbacks=states,
            yielded=carry.yielded | any_fires(waiting) if waiting else carry.yielded,
            seq=carry.seq + 1,
        )

        def answer(action: Any) -> Any:
            # the weights that the hook saw, not those after its control actions
            if inside is None:
                return functions.answer(action, carry.train)
            return functions.answer_inside(action, carry.train, *inside)

        return new, self.buffers.append(rings, hook, at, actions, ok, answer), actions

    def boundary_waits(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the next validation must be run by the host, bool ()."""
        return self.predicates.eval_due(inputs, carry) if self.validation.needs_host else jnp.zeros((), bool)

    # Status

    def status(self, inputs: Inputs, carry: LoopState, wasted: Any = 0) -> Status:
        """Returns the status that the host reads after each dispatch.

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            wasted: masked steps of blocks, int32 ().
        """
        return Status(
            step=carry.step,
            epoch=carry.epoch,
            cursor=carry.cursor,
            evaluated=carry.evaluated,
            stop=self.predicates.all_stopped(carry),
            alive=None if self.members is None else ~carry.ended,
            yielded=carry.yielded,
            over=self.predicates.over(inputs, carry),
            awaits=self.boundary_waits(inputs, carry) & ~carry.yielded,
            window=carry.windows[""].with_computed(),
            controls=dict(carry.train.controls),
            wasted=jnp.asarray(wasted, jnp.int32),
        )

    def halted(self, carry: LoopState) -> Array:
        """Returns whether further steps are no-ops until the host acts, bool ()."""
        return carry.yielded | self.predicates.all_stopped(carry)

    # The training step

    def fetch_batch(self, inputs: Inputs, carry: LoopState, *, remainder: bool = False) -> tuple[Any, int]:
        """Returns the next batch and its number of rows. Traced.

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            remainder: whether it is the smaller last batch of resident rows.
        """
        data, layout = inputs.data, self.layout
        if layout.kind == "none":
            return None, 1
        if layout.kind == "single":
            return data, rows_in(data)
        if layout.kind == "stacked":
            index = inputs.numbers.batch_index(carry)
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), data)
            return batch, rows_in(batch)
        rows = layout.remainder if remainder else layout.batch_size
        start = carry.cursor * layout.batch_size
        if carry.order is None:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), data), rows
        index = jax.lax.dynamic_slice_in_dim(carry.order, start, rows, axis=-1)
        return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data), rows

    def train_step_with_hooks(
        self,
        inputs: Inputs,
        carry: LoopState,
        rings: Any,
        batch: Any,
        rows: int,
        *,
        ok: Any = None,
        probing: bool = True,
    ) -> tuple[LoopState, Any]:
        """Runs one step with its hooks.

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            rings: the record buffers.
            batch: one batch.
            rows: rows of the batch.
            ok: bool (); if false, nothing changes. None if the caller guarantees that the step may run.
            probing: whether probes may be due that do not run at every step.
        """
        # Constrain the shardings at both ends of a step. Otherwise XLA's partitioner chooses a layout for the body of
        # the surrounding loop, and reshards in every iteration.
        batch, carry = self.placement.split(batch), carry.replace(train=self.placement.constrain_state(carry.train))
        before, happens, probed = carry, True if ok is None else ok, {}
        # Fixed for the whole step: a member that stops in `on_batch_begin` still completes this step, as in a single
        # run.
        alive = None if self.members is None else ~(carry.train.stop | carry.ended)
        metrics = self.metrics(inputs, carry, {}, last=False)
        carry, rings, _ = self.run_hook("on_batch_begin", inputs, carry, rings, metrics, alive=alive, ok=happens)
        if self.functions.split_step:
            proposal = self.functions.first_half(carry.train, batch)
            if self.functions.debug:
                loss_and_grads = proposal.gradients
                refuse_nan(
                    carry.step + 1, metric=loss_and_grads.values, gradient=loss_and_grads.grads, update=proposal.updates
                )
            merging, at_times = split_reported(proposal.gradients.values)
            values = computed(merging, self.members is not None)
            readings, probed = self._run_probes(carry, proposal, batch, rows, probing)
            readings, due = _reported_at_times(at_times, readings, carry.step + 1)
            seen, reported = _with_readings(values, readings)
            # a probe reports the step that it probed, which is not counted yet
            reported = {n: jnp.where(at < 0, at, at - 1) for n, at in reported.items()}
            metrics = self.metrics(inputs, carry, seen, last=False, reported=reported)
            carry, rings, actions = self.run_hook(
                "on_before_update", inputs, carry, rings, metrics, alive=alive, ok=happens, inside=(proposal, batch)
            )
            train = call_preserving_identity(self.functions.update, carry.train, proposal, actions)
            carry = carry.replace(readings=readings)
        else:
            train, merging = call_preserving_identity(self.functions.first_half, carry.train, batch)
            merging, at_times = split_reported(merging)
            values = computed(merging, self.members is not None)
            readings, due = _reported_at_times(at_times, carry.readings, carry.step + 1)
            carry = carry.replace(readings=readings)
        train = self.placement.constrain_state(
            cast_like(train, carry.train, "train_step: the train state", error=ValueError)
        )
        if self.functions.debug:
            refuse_nan(carry.step + 1, metric=values, parameter=train.params)
        windows = {**carry.windows, **probed, "": carry.windows[""].add(merging, rows)}
        for name, was_due in due.items():
            window = carry.windows[name]
            # what was not reported now has an old value, which must not count twice
            windows[name] = jax.lax.cond(
                was_due, lambda w, r: w.add(r, rows), lambda w, _: w, window, carry.readings[name].values
            )
        carry = carry.replace(
            # counts from the step of the initial state, so that a second run draws other keys
            train=train.replace(step=before.train.step + 1),
            windows=windows,
            step=carry.step + 1,
        )
        seen, reported = _with_readings(values, carry.readings)
        metrics = self.metrics(inputs, carry, seen, last=True, reported=reported)
        carry, rings, _ = self.run_hook("on_batch_end", inputs, carry, rings, metrics, alive=alive, ok=happens)
        # The hooks and the update ran unconditionally, because `cond` around a whole step is slow on CPU. Two masks now
        # discard what must not count: `mask` (one entry per member) for what belongs to a member, and below `ok` alone
        # (a scalar) for what belongs to the loop. A step of a stopped member still advances the loop.
        mask = alive if ok is None else (ok if alive is None else ok & alive)
        if mask is not None:
            frozen = {
                name: select(mask, getattr(carry, name), getattr(before, name))
                for name in ("train", "callbacks", "windows")
            }
            carry = carry.replace(**frozen)
        if ok is not None:
            loop_fields = ("step", "seq", "yielded", "readings")
            carry = carry.replace(
                **{name: select(ok, getattr(carry, name), getattr(before, name)) for name in loop_fields}
            )
        return carry, rings

    def _run_probes(
        self, carry: LoopState, proposal: PendingUpdate, batch: Any, rows: int, probing: bool
    ) -> tuple[dict[str, ProbeValue], dict[str, MetricAccumulator]]:
        """Runs the probes that are due; the others keep their last values.

        Returns:
            Probe -> value, and probe -> the values of the epoch so far. Probes that cannot be due have no entry there.
        """
        readings, windows = dict(carry.readings), {}
        for name, probe in self.functions.probes.items():
            if probe.every > 1 and not probing:
                continue
            probe_fn = self.functions.probe_functions[name]

            def look(
                last: ProbeValue, window: MetricAccumulator, probe_fn: Any = probe_fn
            ) -> tuple[ProbeValue, MetricAccumulator]:
                del last
                value = ProbeValue(probe_fn(carry.train, proposal, batch), carry.step + 1)
                return value, window.add(value.values, rows)

            given = carry.readings[name], carry.windows[name]
            if probe.every == 1:
                readings[name], windows[name] = look(*given)
            else:  # one branch for both, since each one costs a step some time
                due = (carry.step + 1) % probe.every == 0
                readings[name], windows[name] = jax.lax.cond(due, look, lambda *same: same, *given)
        return readings, windows

    # Validation

    def empty_eval(self, train: TrainState, batch: Any) -> MetricAccumulator:
        """Returns an empty accumulator for the metrics of a validation set."""
        assert self.functions.eval_step is not None
        return MetricAccumulator.empty(
            eval_shape(self.functions.eval_step, train, self.placement.shapes(batch)), self.members
        )

    def eval_batch(self, window: MetricAccumulator, train: TrainState, batch: Any, index: Any) -> MetricAccumulator:
        """Adds the metrics of a validation batch, weighted by its rows."""
        return window.add(self.eval_metrics(train, batch, index), rows_in(batch))

    def eval_metrics(self, train: TrainState, batch: Any, index: Any) -> dict[str, Any]:
        """Returns the metrics of a validation batch. Its index is folded into the PRNG key."""
        assert self.functions.eval_step is not None
        fold = jax.random.fold_in if self.members is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))
        train = train.replace(key=fold(train.key, index))
        return self.functions.eval_step(train, self.placement.split(batch))


def _reported_at_times(
    at_times: Mapping[str, Reported], readings: Mapping[str, ProbeValue], step: Any
) -> tuple[dict[str, ProbeValue], dict[str, Any]]:
    """Returns the last values, with the metrics that the step itself reports at times, and which of these it did."""
    new, now = dict(readings), {}
    for name, own in at_times.items():
        last = readings[name]
        value = jnp.where(own.when, own.value.astype(jnp.float32), last.values[name])
        new[name], now[name] = ProbeValue({name: value}, jnp.where(own.when, step, last.step)), own.when
    return new, now


def _with_readings(
    values: Mapping[str, Any], readings: Mapping[str, ProbeValue]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of a step joined with the last probe values, and the steps at which those were reported."""
    seen, reported = dict(values), {}
    for reading in readings.values():
        seen |= reading.values
        reported |= dict.fromkeys(reading.values, reading.step)
    return seen, reported
