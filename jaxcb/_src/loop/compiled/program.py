"""Hooks and steps as pure functions of the loop state; both executors are built from these."""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxcb._src.core.actions.base import Action, HostAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.utils import materialize
from jaxcb._src.core.callback import STEP_HOOKS, PopulationCallback
from jaxcb._src.core.chain import Chain
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.data.spec import BatchLayout, rows_in
from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator, computed
from jaxcb._src.loop.compiled.position import EvalSchedule, PositionPredicates
from jaxcb._src.loop.compiled.record_buffer import RecordBuffers, RecordPosition, any_fires
from jaxcb._src.loop.compiled.state import Inputs, LoopState, MetricShapes, ProbeValue, Status
from jaxcb._src.loop.compiled.traced_functions import (
    call_preserving_identity,
    hook_of,
    materializer,
    members_hook,
    probe_function,
)
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.learning_rate import accumulations, learning_rates
from jaxcb._src.training.probes import Probe
from jaxcb._src.training.train_state import TrainState, apply
from jaxcb._src.training.train_step import PendingUpdate, Step
from jaxcb._src.utils.leaf_names import leaf_name
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


class EvalSet(NamedTuple):
    """A validation set whose rows stay on the device."""

    prefix: str  # prefix of its metrics' names, such as "val_" or "val_wiki_"
    rows: int
    batch_size: int


class ProgramShapes(NamedTuple):
    """What is known of a program before its first step, by tracing the hooks and steps once.

    Attributes:
        metrics: the shapes of everything that the run reports.
        stale_names: hook -> names that are not reported by that hook call.
        actions: hook -> shapes of its actions. Hooks that are missing never run.
        equal: hook -> for each array of its actions the index of the first one that is always equal, or a negative
            number if that is part of a callback's state.
        never: hook -> index of the actions that never fire, and are not recorded: such as the row of a logger at a
            validation within an epoch, if every validation is at the end of one.
        traces: hook -> key of its trace; None if they cannot be compared.
        answers: hook -> index of each lazy log action -> shapes of the actions that it computes.
        host_read: host metrics that a hook reads.
        scales_final_updates: whether callbacks scale the final updates, because the optimizer has no schedule of its
            own to scale.
    """

    metrics: MetricShapes
    stale_names: Mapping[str, frozenset[str]]
    actions: Mapping[str, tuple[Any, ...]] = {}
    equal: Mapping[str, tuple[int, ...]] = {}
    never: Mapping[str, frozenset[int]] = {}
    traces: Mapping[str, Hashable] | None = {}
    answers: Mapping[str, Mapping[int, tuple[Any, ...]]] = {}
    host_read: tuple[str, ...] = ()
    scales_final_updates: bool = False


class Program:
    """The traced functions of a run. Each hook and each step function is traced once per batch shape.

    Args:
        step: `(train_state, batch) -> (train_state, metrics)`; with a `Step`, `on_before_update` can run.
        eval_step: `(train_state, batch) -> metrics`, or None.
        chain: all callbacks.
        members: size of the member axis; None for a single run.
        evals: resident validation sets.
        host_prefixes: prefixes of the validation sets that the host feeds.
        host_values: names of the validation metrics that the host computes.
        probes: name -> probe of the step.
        host_names: names of the host metrics.
        cadence: when to validate.
        layout: how batches are found in the data.
        batch_axis: 0 if each member has its own batches, None if members share them.
        chain_axes: which numeric fields of the callbacks have a member axis, as `in_axes` of `vmap`.
        debug: whether to check for NaN at every step; only possible without compilation.
        over: maps a step over the members, `over(fn, in_axes) -> fn`; `jax.vmap` by default.
        placement: shardings of batches and train state, for a single run.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        step: Callable[..., Any],
        eval_step: Callable[..., Any] | None,
        chain: Chain,
        members: int | None,
        evals: Sequence[EvalSet],
        host_prefixes: Sequence[str],
        cadence: EvalSchedule,
        layout: BatchLayout,
        host_values: Sequence[str] = (),
        probes: Mapping[str, Probe] | None = None,
        host_names: Sequence[str] = (),
        batch_axis: int | None = None,
        chain_axes: Any = None,
        debug: bool = False,
        over: Callable[[Callable[..., Any], Any], Callable[..., Any]] = jax.vmap,
        placement: Placement = ONE_DEVICE,
    ) -> None:
        self.members, self.placement = members, placement
        self.over = over
        self.evals = tuple(evals)
        self.host_eval = bool(host_prefixes or host_values)
        self.host_values, self.host_names = tuple(host_values), tuple(host_names)
        self.probes = dict(probes or {})
        self.predicates = PositionPredicates(cadence, bool(evals) or self.host_eval)
        self.layout = layout
        self.batch_axis = batch_axis
        self.hooks = chain.hooks()
        self.probe_functions: dict[str, Any] = {}
        self.debug = debug
        probes_step = "on_before_update" in self.hooks or bool(self.probes)
        self.split_step = isinstance(step, Step) and (probes_step or debug)
        if probes_step and not self.split_step:
            who = ", ".join(f"the probe {name!r}" for name in self.probes) or self._owners(chain)
            raise ValueError(
                f"{who} needs the gradients before the update (on_before_update), but this train_step does not expose "
                "them. Use fit, or make the step with jc.Step(loss_fn) or jc.Step.from_gradients(fn)."
            )
        self.step = step
        over_members = (0, batch_axis)
        self._step = self._compiled(step, over_members)
        if isinstance(step, Step) and self.split_step:
            self._propose = self._compiled(step.compute_update, over_members)
            self.update = self._compiled(step.update, (0, 0, 0))
            self.probe_functions = {
                name: self._compiled(probe_function(name, probe, step.activations), (0, 0, batch_axis))
                for name, probe in self.probes.items()
            }
            self.answer_inside = self._compiled(materializer(step.activations), (0, 0, 0, batch_axis))
        self.answer = self._compiled(materialize, (0, 0))
        self.eval_step = self._compiled(eval_step, (0, None)) if eval_step is not None else None
        tree = jax.tree.structure(chain)
        axes = None if chain_axes is None else tree.flatten_up_to(chain_axes)
        make = functools.partial(members_hook, axes) if members is not None else hook_of
        self.hook = {hook: jax.jit(make(hook, tree)) for hook in self.hooks}
        self.populations = tuple(n for n, callback in chain.items() if isinstance(callback, PopulationCallback))
        if self.populations and members is None:
            raise ValueError(f"{', '.join(self.populations)} acts on a population: pass it to jc.sweep, not to fit.")
        self.expect(ProgramShapes(MetricShapes({}, {}, {}, members), {}))

    def _compiled(self, fn: Callable[..., Any], in_axes: Any) -> Any:
        """Jits a function, mapped over members if there are any. One jit per function means one trace per shape."""
        if fn.__hash__ is None:  # jax.jit needs a hashable function; a partial hashes by identity
            fn = functools.partial(fn)
        return jax.jit(self.over(fn, in_axes) if self.members is not None else self.placement.with_mesh(fn))

    # Shapes and costs, known before the first step

    def jaxpr(self, train: TrainState, batch: Any) -> Any:
        """Returns the traced step. The programs reuse this trace."""
        return self.first_half.trace(train, batch).jaxpr

    def traced(self, train: TrainState, batch: Any) -> TracedStep:
        """Returns the traced step, with the location of its metrics."""
        traced = self.first_half.trace(train, batch)
        return TracedStep.of(traced, train, batch, lambda out: out.gradients.values if self.split_step else out[1])

    @property
    def first_half(self) -> Any:
        """The function that computes the gradients; the complete step if nothing runs between gradients and update."""
        return self._propose if self.split_step else self._step

    def flops(self, train: TrainState, batch: Any) -> float:
        """Returns the floating point operations of a step from XLA's cost analysis; NaN if it reports none."""
        lowered = [self.first_half.lower(train, batch)]
        if self.split_step:
            proposal = jax.eval_shape(self.first_half, train, batch)
            lowered.append(self.update.lower(train, proposal, self.actions.get("on_before_update", ())))
        return sum(float((part.cost_analysis() or {}).get("flops", jnp.nan)) for part in lowered)

    def expect(self, shapes: ProgramShapes) -> None:
        """Stores the shapes that are known so far."""
        self.shapes, self.actions = shapes, shapes.actions
        self.buffers = RecordBuffers(shapes.actions, shapes.answers, shapes.equal, shapes.never)

    @staticmethod
    def _owners(chain: Chain) -> str:
        return ", ".join(name for name, callback in chain.items() if "on_before_update" in callback.hooks())

    @property
    def steps_may_stop(self) -> bool:
        """Whether a step can request a stop: by a hook, or by a custom train step that sets `stop`."""
        actions = (a for hook in STEP_HOOKS for a in self.actions.get(hook, ()))
        return not isinstance(self.step, Step) or any(isinstance(a, Stop) for a in actions)

    def yields_at(self, *hooks: str) -> bool:
        """Returns whether any of these hooks can return a host action."""
        return any(
            isinstance(action, HostAction) and index not in self.shapes.never.get(hook, ())
            for hook in hooks
            for index, action in enumerate(self.actions.get(hook, ()))
        )

    # Metrics that a hook call sees

    def metrics_of(  # noqa: PLR0913
        self,
        values: Mapping[str, Any],
        train: TrainState,
        host: Mapping[str, Any],
        *,
        step: Any,
        epoch: Any,
        total: Any,
        last: bool,
        reported: Mapping[str, Any] | None = None,
        closes: Any = False,
    ) -> Metrics:
        rates: dict[str, Any] = {}
        for rate in learning_rates(train.opt_state)[:1]:
            if rate.schedule is None:
                rates["lr_scale"] = rate.scale
            else:
                rates["learning_rate"] = rate.applied if last else rate.effective()
                rates["base_learning_rate"] = rate.base(last=last)
        for several in accumulations(train.opt_state)[:1]:
            rates["updates"] = several.gradient_step
        shown = {**train.controls, **values, **rates}
        return Metrics._make(
            values=shown,
            step=step,
            epoch=epoch,
            total_steps=total,
            reported=dict.fromkeys(shown, step) | dict(reported or {}),
            closes_epoch=jnp.asarray(closes),
            host=dict(host),
        )

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
        return self.metrics_of(
            values,
            carry.train,
            inputs.host(self.host_names, self.shapes.host_read),
            step=carry.step,
            epoch=carry.epoch,
            total=inputs.numbers.total_steps,
            last=last,
            **more,
        )

    def closes_in(self, hook: str) -> bool | None:
        """Returns `closes_epoch` of a hook's metrics, if it is the same in every call; otherwise None."""
        if hook in ("on_eval_begin", "on_eval_end"):
            return True if self.predicates.cadence.closes_epochs else None
        return hook in ("on_epoch_end", "on_train_end")

    def seen_in(self, hook: str, metrics: Metrics, alive: Any, member: Any) -> Metrics:
        """Returns the metrics as a hook sees them; `alive` and `member` are only set for population callbacks."""
        together = {"alive": alive, "member": member} if self.populations else {}
        return metrics.replace(old=self.shapes.stale_names.get(hook, frozenset()), **together)

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
        if hook not in self.actions:
            return carry, rings, ()
        acting = ~carry.ended if alive is None else alive
        metrics = self.seen_in(hook, metrics, acting, carry.member)
        states, actions = call_preserving_identity(self.hook[hook], inputs.settings, carry.callbacks, metrics)
        if alive is not None:
            states = select(alive, states, carry.callbacks)
            actions = tuple(a.replace(when=a.when & alive) for a in actions)
        waiting = tuple(a for a in actions if isinstance(a, HostAction))
        at = RecordPosition(carry.seq, carry.step, carry.epoch, carry.cursor)
        new = carry.replace(
            train=self.placement.constrain_state(apply(actions, carry.train)),
            callbacks=states,
            yielded=carry.yielded | any_fires(waiting) if waiting else carry.yielded,
            seq=carry.seq + 1,
        )

        def answer(action: Any) -> Any:
            # the weights that the hook saw, not those after its control actions
            return (
                self.answer(action, carry.train) if inside is None else self.answer_inside(action, carry.train, *inside)
            )

        return new, self.buffers.append(rings, hook, at, actions, ok, answer), actions

    def boundary_waits(self, inputs: Inputs, carry: LoopState) -> Array:
        """Returns whether the next validation must be run by the host, bool ()."""
        return self.predicates.eval_due(inputs, carry) if self.host_eval else jnp.zeros((), bool)

    # Status

    def status(self, inputs: Inputs, carry: LoopState) -> Status:
        """Returns the status that the host reads after each dispatch."""
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
        )

    def halted(self, carry: LoopState) -> Array:
        """Returns whether further steps are no-ops until the host acts, bool ()."""
        return carry.yielded | self.predicates.all_stopped(carry)

    # The training step

    def train_step_with_hooks(
        self, inputs: Inputs, carry: LoopState, rings: Any, batch: Any, rows: int, *, ok: Any = None
    ) -> tuple[LoopState, Any]:
        """Runs one step with its hooks.

        Args:
            inputs: the inputs of the dispatch.
            carry: the loop state.
            rings: the record buffers.
            batch: one batch.
            rows: rows of the batch.
            ok: bool (); if false, nothing changes. None if the caller guarantees that the step may run.
        """
        # Constrain the shardings at both ends of a step. Otherwise XLA's partitioner chooses a layout for the body of
        # the surrounding loop, and reshards in every iteration.
        batch, carry = self.placement.split(batch), carry.replace(train=self.placement.constrain_state(carry.train))
        before, happens = carry, True if ok is None else ok
        # Fixed for the whole step: a member that stops in `on_batch_begin` still completes this step, as in a single
        # run.
        alive = None if self.members is None else ~(carry.train.stop | carry.ended)
        metrics = self.metrics(inputs, carry, {}, last=False)
        carry, rings, _ = self.run_hook("on_batch_begin", inputs, carry, rings, metrics, alive=alive, ok=happens)
        due: dict[str, Any] = {}
        if self.split_step:
            proposal = self._propose(carry.train, batch)
            if self.debug:
                loss_and_grads = proposal.gradients
                refuse_nan(
                    carry.step + 1, metric=loss_and_grads.values, gradient=loss_and_grads.grads, update=proposal.updates
                )
            merging = proposal.gradients.values
            values = computed(merging, self.members is not None)
            readings, due = self._run_probes(carry, proposal, batch)
            seen, reported = _with_readings(values, readings)
            # a probe reports the step that it probed, which is not counted yet
            reported = {n: jnp.where(at < 0, at, at - 1) for n, at in reported.items()}
            metrics = self.metrics(inputs, carry, seen, last=False, reported=reported)
            carry, rings, actions = self.run_hook(
                "on_before_update", inputs, carry, rings, metrics, alive=alive, ok=happens, inside=(proposal, batch)
            )
            train = call_preserving_identity(self.update, carry.train, proposal, actions)
            carry = carry.replace(readings=readings)
        else:
            train, merging = call_preserving_identity(self._step, carry.train, batch)
            values = computed(merging, self.members is not None)
        train = self.placement.constrain_state(
            cast_like(train, carry.train, "train_step: the train state", error=ValueError)
        )
        if self.debug:
            refuse_nan(carry.step + 1, metric=values, parameter=train.params)
        windows = {"": carry.windows[""].add(merging, rows)}
        for name, was_due in due.items():
            window = carry.windows[name]
            # a probe that is not due has an old value, which must not count twice
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
        self, carry: LoopState, proposal: PendingUpdate, batch: Any
    ) -> tuple[dict[str, ProbeValue], dict[str, Any]]:
        """Runs the probes that are due; the others keep their last values.

        Returns:
            Probe -> value, and probe -> whether it was due, bool ().
        """
        readings, due = {}, {}
        for name, probe in self.probes.items():
            probe_fn, last = self.probe_functions[name], carry.readings[name]
            due[name] = (carry.step + 1) % probe.every == 0

            def look(last: ProbeValue, probe_fn: Any = probe_fn) -> ProbeValue:
                del last
                return ProbeValue(probe_fn(carry.train, proposal, batch), carry.step + 1)

            if probe.every == 1:
                readings[name] = look(last)
            else:
                readings[name] = jax.lax.cond(due[name], look, lambda last: last, last)
        return readings, due

    # Validation

    def empty_eval(self, train: TrainState, batch: Any) -> MetricAccumulator:
        """Returns an empty accumulator for the metrics of a validation set."""
        assert self.eval_step is not None
        return MetricAccumulator.empty(
            jax.eval_shape(self.eval_step, train, self.placement.shapes(batch)), self.members
        )

    def eval_batch(self, window: MetricAccumulator, train: TrainState, batch: Any, index: Any) -> MetricAccumulator:
        """Adds the metrics of a validation batch, weighted by its rows. Its index is folded into the PRNG key."""
        assert self.eval_step is not None
        fold = jax.random.fold_in if self.members is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))
        train = train.replace(key=fold(train.key, index))
        return window.add(self.eval_step(train, self.placement.split(batch)), rows_in(batch))


def _with_readings(
    values: Mapping[str, Any], readings: Mapping[str, ProbeValue]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of a step joined with the last probe values, and the steps at which those were reported."""
    seen, reported = dict(values), {}
    for reading in readings.values():
        seen |= reading.values
        reported |= dict.fromkeys(reading.values, reading.step)
    return seen, reported
