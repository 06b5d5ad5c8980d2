"""The moments of a run as pure functions of the carry; both executors are made of these."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from jaxcb._src.data.feed import BatchLayout, rows_in
from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator, computed
from jaxcb._src.loop.compiled.position import EvalSchedule, PositionPredicates
from jaxcb._src.loop.compiled.record_buffer import RecordBuffers, RecordPosition, any_fires
from jaxcb._src.loop.compiled.state import Inputs, LoopState, ProbeValue, Status
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.learning_rate import accumulations, learning_rates
from jaxcb._src.training.probes import Probe, look, readings
from jaxcb._src.training.train_state import TrainState, apply
from jaxcb._src.training.train_step import PendingUpdate, Step
from jaxcb._src.utils.leaf_names import leaf_name
from jaxcb._src.utils.pytree import cast_like, select


@contextlib.contextmanager
def debugging(debug: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Runs what is inside step by step in Python, where that is wanted.

    JAX's own `jax_debug_nans` is put aside: NaN stands for values that nothing has reported yet, and would trip it.
    """
    with contextlib.ExitStack() as stack:
        if debug:
            stack.enter_context(jax.disable_jit())
            say("jaxcb: debug=True runs without compilation, and stops at the first NaN.")
        if getattr(jax.config, "jax_debug_nans"):  # noqa: B009, its stubs do not know it
            stack.enter_context(jax.debug_nans(False))
            if not debug:
                say("jaxcb: jax_debug_nans is put aside for this run; debug=True finds the step and leaf of a NaN.")
        yield


def refuse_nan(step: Any, **trees: Any) -> None:
    """Raises an error at the first NaN, naming the step and the leaf. Needs concrete arrays.

    Args:
        step: the step (from 1) that is looked at.
        **trees: what each tree is called -> a tree.

    Raises:
        FloatingPointError: where there is one.
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
                    "is the first one of the run; what stands before it in the step is finite or infinite."
                )


def hook_of(hook: str, tree: Any) -> Callable[..., Any]:
    """A hook of all callbacks as a function of their numbers; what is static in them is never compared again.

    Args:
        hook: its name.
        tree: the structure of the chain.
    """

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        return getattr(jax.tree.unflatten(tree, settings), hook)(states, metrics)

    run.__name__ = hook
    return run


def members_hook(axes: Any, hook: str, tree: Any) -> Callable[..., Any]:
    """The same over the members of a population; callbacks that see all of them at once come after the others.

    Args:
        axes: which of the callbacks' numbers have a member axis, as `vmap`'s `in_axes`.
        hook: its name.
        tree: the structure of the chain.
    """
    one = hook_of(hook, tree)

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        own = metrics.replace(alive=None, member=None)
        seen = jax.tree.map(lambda _: None, own).replace(values=0)
        states, actions = jax.vmap(one, in_axes=(axes, 0, seen))(settings, states, own)
        if metrics.alive is None:
            return states, actions
        states, more = one(settings, states, metrics)
        return states, actions + more

    run.__name__ = hook
    return run


def probe_function(name: str, own: Probe, forward: Callable[..., Any]) -> Callable[..., dict[str, Array]]:
    """A probe as a function of the step's halves."""

    def run(train: TrainState, proposal: PendingUpdate, batch: Any) -> dict[str, Array]:
        return readings(name, own, look(train, proposal, batch, forward))

    return run


def materializer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """What a request between the halves of a step is answered with."""

    def run(asked: Any, train: TrainState, proposal: PendingUpdate, batch: Any) -> Any:
        return materialize(asked, look(train, proposal, batch, forward))

    return run


def call_preserving_identity(fn: Any, *args: Any) -> Any:
    """Calls a jitted function inside a program; what it hands through comes back as the given array itself.

    JAX makes an array of its own of each result, and so would carry and select what stays as it is like what changes.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return fn(*args)
    out, tree = jax.tree.flatten(fn(*args))
    jaxpr = fn.trace(*args).jaxpr.jaxpr
    given = {id(v): x for v, x in zip(jaxpr.invars, jax.tree.leaves(args), strict=True)}
    return jax.tree.unflatten(tree, [given.get(id(v), x) for v, x in zip(jaxpr.outvars, out, strict=True)])


class EvalSet(NamedTuple):
    """One validation set inside the program: rows that stay on the device."""

    prefix: str  # of its metrics' names, "val_" or "val_wiki_"
    rows: int
    batch_size: int


class Program:
    """Traced pieces of one run. Each hook and each step function is traced once a batch shape.

    Args:
        step: `(train_state, batch) -> (train_state, metrics)`; a `Step` also runs `on_before_update`.
        eval_step: `(train_state, batch) -> metrics`, or None.
        chain: all callbacks.
        members: the size of the member axis, None for a single run.
        evals: resident validation sets; those that the host feeds are in `host_prefixes`.
        host_prefixes: prefixes of the validation sets that the host feeds.
        host_values: names of the validation metrics that the host computes.
        probes: looks inside the step, by name.
        host_names: names of the host metrics.
        cadence: when to validate.
        layout: how batches are found.
        batch_axis: 0 where each member sees its own batches, None where all see the same.
        chain_axes: which of the callbacks' numbers have a member axis, as `vmap`'s `in_axes`.
        debug: whether to look for NaN at every step, which only an uncompiled run can.
        over: how a step goes over the members, `over(fn, in_axes) -> fn`; `jax.vmap` does them all at once.
        placement: where batches and the train state lie, of a single run.
    """

    def __init__(
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
        self._over = over
        self.evals = tuple(evals)
        self.host_eval = bool(host_prefixes or host_values)
        self.host_values, self.host_names = tuple(host_values), tuple(host_names)
        self.probes = dict(probes or {})
        self.predicates = PositionPredicates(cadence, bool(evals) or self.host_eval)
        self.layout = layout
        self.batch_axis = batch_axis
        self.hooks = chain.hooks()
        self.probe_functions: dict[str, Any] = {}
        self.host_read: tuple[str, ...] = ()  # host metrics that a hook makes use of
        self.stale_names: dict[str, frozenset[str]] = {}  # hook -> names of which nothing is reported at that moment
        self.scales_final_updates = False  # whether callbacks scale the final updates of an optimizer made elsewhere
        self.debug = debug
        looked_into = "on_before_update" in self.hooks or bool(self.probes)
        self.split_step = isinstance(step, Step) and (looked_into or debug)
        if looked_into and not self.split_step:
            who = ", ".join(f"the probe {name!r}" for name in self.probes) or self._owners(chain)
            raise ValueError(
                f"{who} needs the gradients before the update (on_before_update), but this train_step does not hand "
                "them out. Use fit, or make the step with jc.Step(loss_fn) or jc.Step.from_gradients(fn)."
            )
        self.step = step
        over_members = (0, batch_axis)
        self._step = self._compiled(step, over_members)
        if isinstance(step, Step) and self.split_step:
            self._propose = self._compiled(step.compute_update, over_members)
            self.update = self._compiled(step.update, (0, 0, 0))
            self.probe_functions = {
                name: self._compiled(probe_function(name, own, step.activations), (0, 0, batch_axis))
                for name, own in self.probes.items()
            }
            self.answer_inside = self._compiled(materializer(step.activations), (0, 0, 0, batch_axis))
        self.answer = self._compiled(materialize, (0, 0))
        self.eval_step = self._compiled(eval_step, (0, None)) if eval_step is not None else None
        self.chain = chain
        tree = jax.tree.structure(chain)
        axes = None if chain_axes is None else tree.flatten_up_to(chain_axes)
        make = functools.partial(members_hook, axes) if members is not None else hook_of
        self.hook = {hook: jax.jit(make(hook, tree)) for hook in self.hooks}
        self.populations = tuple(n for n, callback in chain.items() if isinstance(callback, PopulationCallback))
        if self.populations and members is None:
            raise ValueError(f"{', '.join(self.populations)} acts on a population: pass it to jc.sweep, not to fit.")
        self.expect({})

    def _compiled(self, fn: Callable[..., Any], in_axes: Any) -> Any:
        """One trace a shape, wherever it is called from; over members where there are some."""
        if fn.__hash__ is None:  # jax.jit wants a key; a partial is one by its identity
            fn = functools.partial(fn)
        return jax.jit(self._over(fn, in_axes) if self.members is not None else self.placement.with_mesh(fn))

    # What is known before the first step

    def jaxpr(self, train: TrainState, batch: Any) -> Any:
        """The traced step; the trace is the one that the programs use."""
        return self.first_half.trace(train, batch).jaxpr

    def traced(self, train: TrainState, batch: Any) -> TracedStep:
        """The traced step, and where its metrics are."""
        traced = self.first_half.trace(train, batch)
        return TracedStep.of(traced, train, batch, lambda out: out.gradients.values if self.split_step else out[1])

    @property
    def first_half(self) -> Any:
        """What computes the gradients: the whole step, where nobody looks between its halves."""
        return self._propose if self.split_step else self._step

    def flops(self, train: TrainState, batch: Any) -> float:
        """Floating point operations of a training step, from XLA's cost analysis; NaN where it does not tell."""
        lowered = [self.first_half.lower(train, batch)]
        if self.split_step:
            proposal = jax.eval_shape(self.first_half, train, batch)
            lowered.append(self.update.lower(train, proposal, self.actions.get("on_before_update", ())))
        return sum(float((part.cost_analysis() or {}).get("flops", jnp.nan)) for part in lowered)

    def expect(
        self,
        actions: dict[str, tuple[Any, ...]],
        answers: Mapping[str, Mapping[int, tuple[Any, ...]]] | None = None,
    ) -> None:
        """Takes note of the shapes of what each hook returns; hooks that are not among them never run.

        Args:
            actions: of each hook.
            answers: hook -> index of each request among its actions -> what it stands for.
        """
        self.actions = actions
        self.buffers = RecordBuffers(actions, answers)

    @staticmethod
    def _owners(chain: Chain) -> str:
        return ", ".join(name for name, callback in chain.items() if "on_before_update" in callback.hooks())

    @property
    def steps_may_stop(self) -> bool:
        """Whether a step can ask for the end: by a hook of its own, or as a train step that sets `stop` itself."""
        asked = (a for hook in STEP_HOOKS for a in self.actions.get(hook, ()))
        return not isinstance(self.step, Step) or any(isinstance(a, Stop) for a in asked)

    def yields_at(self, *hooks: str) -> bool:
        """Whether a host action is possible in any of these hooks."""
        return any(isinstance(a, HostAction) for hook in hooks for a in self.actions.get(hook, ()))

    # Metrics of a moment

    def metrics_of(
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
        """The metrics of a moment: `values`, the learning rate (in force, or of the last update), host metrics."""
        return self.metrics_of(
            values,
            carry.train,
            inputs.host(self.host_names),
            step=carry.step,
            epoch=carry.epoch,
            total=inputs.numbers.total_steps,
            last=last,
            **more,
        )

    def seen_in(self, hook: str, metrics: Metrics, alive: Any, member: Any) -> Metrics:
        """The metrics of a moment as a hook sees them; `alive` and `member` are for those who see the population."""
        together = {"alive": alive, "member": member} if self.populations else {}
        return metrics.replace(old=self.stale_names.get(hook, frozenset()), **together)

    # One moment

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
        """Runs a hook: new states, control actions applied, the rest recorded.

        Args:
            hook: its name.
            inputs: the dispatch's inputs.
            carry: the run.
            rings: the records so far.
            metrics: what the hook sees.
            alive: members that still act, bool (members,); None where all do.
            ok: whether the moment happens at all, bool (); what it did to the carry is for the caller to drop.
            inside: between the halves of a step, what was proposed and the batch, for requests.
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

        def answer(asked: Any) -> Any:
            # of the weights that the hook saw
            return (
                self.answer(asked, carry.train) if inside is None else self.answer_inside(asked, carry.train, *inside)
            )

        return new, self.buffers.append(rings, hook, at, actions, ok, answer), actions

    def boundary_waits(self, inputs: Inputs, carry: LoopState) -> Array:
        """Whether the boundary must wait for the host, bool ()."""
        return self.predicates.eval_due(inputs, carry) if self.host_eval else jnp.zeros((), bool)

    # What the host is told

    def status(self, inputs: Inputs, carry: LoopState) -> Status:
        """What the host is told."""
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
            window=carry.windows[""].means(),
            controls=dict(carry.train.controls),
        )

    def halted(self, carry: LoopState) -> Array:
        """Whether further steps would change nothing for now, bool ()."""
        return carry.yielded | self.predicates.all_stopped(carry)

    # A step

    def train_step_with_hooks(
        self, inputs: Inputs, carry: LoopState, rings: Any, batch: Any, rows: int, *, ok: Any = None
    ) -> tuple[LoopState, Any]:
        """One step with its moments.

        Args:
            inputs: the dispatch's inputs.
            carry: the run.
            rings: the records so far.
            batch: one batch.
            rows: its rows.
            ok: where false, nothing changes; None where the caller has made sure.
        """
        # at both ends of a step: in between, and so in the loop around it, the partitioner would choose by itself
        batch, carry = self.placement.split(batch), carry.replace(train=self.placement.constrain_state(carry.train))
        before, happens = carry, True if ok is None else ok
        alive = None if self.members is None else ~(carry.train.stop | carry.ended)
        metrics = self.metrics(inputs, carry, {}, last=False)
        carry, rings, _ = self.run_hook("on_batch_begin", inputs, carry, rings, metrics, alive=alive, ok=happens)
        due: dict[str, Any] = {}
        if self.split_step:
            proposal = self._propose(carry.train, batch)
            if self.debug:
                own = proposal.gradients
                refuse_nan(carry.step + 1, metric=own.values, gradient=own.grads, update=proposal.updates)
            merging = proposal.gradients.values
            values = computed(merging, self.members is not None)
            readings, due = self._look_inside(carry, proposal, batch)
            seen, reported = _with_readings(values, readings)
            # a look is noted at the step that it looked into, which here is not yet counted
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
        for name, looked in due.items():
            window = carry.windows[name]
            windows[name] = jax.lax.cond(
                looked, lambda w, r: w.add(r, rows), lambda w, _: w, window, carry.readings[name].values
            )
        carry = carry.replace(
            # counts on from where the given state stood, so that a second run draws other keys
            train=train.replace(step=before.train.step + 1),
            windows=windows,
            step=carry.step + 1,
        )
        seen, reported = _with_readings(values, carry.readings)
        metrics = self.metrics(inputs, carry, seen, last=True, reported=reported)
        carry, rings, _ = self.run_hook("on_batch_end", inputs, carry, rings, metrics, alive=alive, ok=happens)
        mask = alive if ok is None else (ok if alive is None else ok & alive)
        if mask is not None:
            frozen = {
                name: select(mask, getattr(carry, name), getattr(before, name))
                for name in ("train", "callbacks", "windows")
            }
            carry = carry.replace(**frozen)
        if ok is not None:
            places = ("step", "seq", "yielded", "readings")
            carry = carry.replace(**{name: select(ok, getattr(carry, name), getattr(before, name)) for name in places})
        return carry, rings

    def _look_inside(
        self, carry: LoopState, proposal: PendingUpdate, batch: Any
    ) -> tuple[dict[str, ProbeValue], dict[str, Any]]:
        """Runs the probes that are due; the others keep what they saw last. Also returns which were due."""
        readings, due = {}, {}
        for name, own in self.probes.items():
            looker, last = self.probe_functions[name], carry.readings[name]
            due[name] = (carry.step + 1) % own.every == 0

            def look(last: ProbeValue, looker: Any = looker) -> ProbeValue:
                del last
                return ProbeValue(looker(carry.train, proposal, batch), carry.step + 1)

            if own.every == 1:
                readings[name] = look(last)
            else:
                readings[name] = jax.lax.cond(due[name], look, lambda last: last, last)
        return readings, due

    # A validation batch

    def empty_eval(self, train: TrainState, batch: Any) -> MetricAccumulator:
        """The window of a validation set before its first batch."""
        assert self.eval_step is not None
        return MetricAccumulator.empty(
            jax.eval_shape(self.eval_step, train, self.placement.shapes(batch)), self.members
        )

    def eval_batch(self, window: MetricAccumulator, train: TrainState, batch: Any, index: Any) -> MetricAccumulator:
        """Adds one validation batch, weighted by its rows. Its index sets its key apart from the others'."""
        assert self.eval_step is not None
        fold = jax.random.fold_in if self.members is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))
        train = train.replace(key=fold(train.key, index))
        return window.add(self.eval_step(train, self.placement.split(batch)), rows_in(batch))


def _with_readings(
    values: Mapping[str, Any], readings: Mapping[str, ProbeValue]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step's values with what probes saw last, and the steps of their reports."""
    seen, reported = dict(values), {}
    for reading in readings.values():
        seen |= reading.values
        reported |= dict.fromkeys(reading.values, reading.step)
    return seen, reported
