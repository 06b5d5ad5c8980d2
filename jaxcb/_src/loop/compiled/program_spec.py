"""`ProgramSpec`: what is known of a program before its first step, by tracing its functions once."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcb._src.core.actions.base import Action, HostAction, LogAction
from jaxcb._src.core.actions.control import Exploit, ScaleLearningRate, ScaleUpdates, SkipUpdate, Stop
from jaxcb._src.core.actions.utils import check_lazy, is_lazy
from jaxcb._src.core.callback import HOOKS, STEP_HOOKS
from jaxcb._src.core.metrics import Metrics, is_mergeable, split_reported
from jaxcb._src.loop.compiled.metric_accumulator import computed
from jaxcb._src.loop.compiled.position import EvalSchedule, PositionPredicates
from jaxcb._src.loop.compiled.state import MetricShapes
from jaxcb._src.loop.compiled.traced_functions import TracedFunctions, variables_of
from jaxcb._src.training.accumulation import accumulations
from jaxcb._src.training.apply import check_actions
from jaxcb._src.training.learning_rate import learning_rates
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import Step
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.names import is_rate, leaf_name
from jaxcb._src.utils.program_key import NoProgramKey, trace_key
from jaxcb._src.utils.pytree import cast_like
from jaxcb._src.utils.xla import equal_outputs, outputs_always_false

RESERVED = ("epoch", "step", "updates")  # and the names of learning rates

Shapes = dict[str, Any]  # name -> shape


class EvalSet(NamedTuple):
    """A validation set whose rows stay on the device."""

    prefix: str  # prefix of its metrics' names, such as "val_" or "val_wiki_"
    rows: int
    batch_size: int


class ValidationPlan(NamedTuple):
    """What is validated, and when.

    Attributes:
        schedule: when.
        resident: the sets whose rows stay on the device.
        host_prefixes: prefixes of the sets that the host feeds.
        host_values: names of the metrics that the host computes.
    """

    schedule: EvalSchedule
    resident: tuple[EvalSet, ...] = ()
    host_prefixes: tuple[str, ...] = ()
    host_values: tuple[str, ...] = ()

    @property
    def needs_host(self) -> bool:
        """Whether the host runs the validation."""
        return bool(self.host_prefixes or self.host_values)

    @property
    def predicates(self) -> PositionPredicates:
        """The predicates of the loop state."""
        return PositionPredicates(self.schedule, bool(self.resident) or self.needs_host)


class HookSpec(NamedTuple):
    """What the trace of a hook tells.

    Attributes:
        actions: shapes of its actions.
        equal: for each array of its actions the index of the first one that is always equal, or a negative number if
            that is part of a callback's state.
        never: indices of the actions that never fire, and are not recorded: such as the row of a logger at a validation
            within an epoch, if every validation is at the end of one.
        answers: index of each lazy log action -> shapes of the actions that it computes.
        trace: key of the trace; None if it cannot be compared with others.
    """

    actions: tuple[Any, ...]
    equal: tuple[int, ...]
    never: frozenset[int] = frozenset()
    answers: Mapping[int, tuple[Any, ...]] = {}
    trace: Hashable = None

    @property
    def recorded(self) -> tuple[int, ...]:
        """The indices of the actions that are recorded as they are; a lazy one is recorded by what it computes."""
        skipped = {*self.answers, *self.never}
        kinds = LogAction | HostAction | Stop
        return tuple(i for i, a in enumerate(self.actions) if isinstance(a, kinds) and i not in skipped)

    @property
    def may_yield(self) -> bool:
        """Whether it can return a host action."""
        return any(isinstance(a, HostAction) and index not in self.never for index, a in enumerate(self.actions))


class ProgramSpec(NamedTuple):
    """What is known of a program before its first step. `plan_program` makes it.

    Attributes:
        metrics: the shapes of everything that the run reports.
        stale_names: hook -> names that are not reported by that hook call.
        hooks: the hooks that run.
        host_names: names of the host metrics.
        host_read: those of them that a hook reads.
        scales_final_updates: whether callbacks scale the final updates, because the optimizer has no schedule of its
            own to scale.
    """

    metrics: MetricShapes
    stale_names: Mapping[str, frozenset[str]]
    hooks: Mapping[str, HookSpec] = {}
    host_names: tuple[str, ...] = ()
    host_read: tuple[str, ...] = ()
    scales_final_updates: bool = False

    def acts_at_steps(self) -> str | None:
        """Returns who acts on the host at every step, or computes what it logs; None if no one does."""
        for hook in STEP_HOOKS:
            own = self.hooks.get(hook)
            if own is not None and (own.may_yield or own.answers):
                found = ((i, a) for i, a in enumerate(own.actions) if i not in own.never)
                return next(a.owner for i, a in found if isinstance(a, HostAction) or i in own.answers)
        return None

    def actions_of(self, *hooks: str) -> tuple[Any, ...]:
        """Returns the shapes of the actions of some hooks; of all without an argument."""
        return tuple(action for hook, own in self.hooks.items() if not hooks or hook in hooks for action in own.actions)


def metrics_of(
    values: Mapping[str, Any],
    train: TrainState,
    host: Mapping[str, Any],
    *,
    last: bool,
    reported: Mapping[str, Any] | None = None,
    closes: Any = False,
    **place: Any,
) -> Metrics:
    """Returns metrics with the values, the controls, the learning rate and the host metrics.

    Args:
        values: name -> value.
        train: the train state.
        host: name -> host metric, float32 ().
        last: whether the learning rate is that of the last update; otherwise of the next one.
        reported: name -> step of the last report, where that is not the current step.
        closes: whether the hook call ends an epoch, bool ().
        **place: `step`, `epoch` and `total_steps` of `Metrics`.
    """
    rates: dict[str, Any] = {}
    known = learning_rates(train.opt_state)
    for rate in [rate for rate in known if rate.name] or known[:1]:
        of = f"/{rate.name}" if rate.name else ""
        if rate.schedule is None:
            rates[f"lr_scale{of}"] = rate.scale
        else:
            rates[f"learning_rate{of}"] = rate.applied if last else rate.effective()
            rates[f"base_learning_rate{of}"] = rate.base(last=last)
    for several in accumulations(train.opt_state)[:1]:
        rates["updates"] = several.gradient_step
    shown = {**train.controls, **values, **rates}
    return Metrics._make(
        values=shown,
        reported=dict.fromkeys(shown, place["step"]) | dict(reported or {}),
        closes_epoch=jnp.asarray(closes),
        host=dict(host),
        **place,
    )


def closes_epoch_in(hook: str, schedule: EvalSchedule) -> bool | None:
    """Returns `closes_epoch` of a hook's metrics, if it is the same in every call; otherwise None."""
    if hook in ("on_eval_begin", "on_eval_end"):
        return True if schedule.closes_epochs else None
    return hook in ("on_epoch_end", "on_train_end")


def plan_program(
    functions: TracedFunctions,
    validation: ValidationPlan,
    host_names: tuple[str, ...],
    train: TrainState,
    callbacks: Any,
    settings: Any,
    batch: Any,
    val: Mapping[str, Any],
) -> ProgramSpec:
    """Finds the shapes of metrics and actions, by tracing each hook and each step function once.

    Args:
        functions: they are traced.
        validation: what is validated, and when.
        host_names: names of the host metrics.
        train: the train state, or its shapes; likewise for the other arguments.
        callbacks: the callbacks' states.
        settings: the callbacks' numeric fields, as in `Inputs`.
        batch: a training batch.
        val: prefix -> a batch of each validation set.

    Raises:
        ValueError: for a metric name that is taken.
        TypeError: for a step that returns something else than expected.
    """
    members, proposal = functions.mapping.members, None
    if functions.split_step:
        proposal = eval_shape(functions.first_half, train, batch)
        raw, at_times = split_reported(proposal.gradients.values)
    else:
        new, raw = _pair(eval_shape(functions.first_half, train, batch))
        raw, at_times = split_reported(raw) if isinstance(raw, Mapping) else (raw, {})
        _check_names("train_step", raw)
        _check_state(new, train)
        _check_frozen(functions, train, batch)
    probes = {name: eval_shape(fn, train, proposal, batch) for name, fn in functions.probe_functions.items()}
    probes |= _reported_at_times(at_times, probes, members)
    names: Shapes = {}
    _add(names, _computed(raw, members), "a metric of the step")
    for name, readings in probes.items():
        _add(names, readings, f"the probe {name!r}" if name not in at_times else "a metric of the step")
    train_names = dict(names)
    for prefix, shapes in val.items():
        assert functions.eval_step is not None
        found = eval_shape(functions.eval_step, train, shapes)
        _check_names("eval_step", found)
        _add(names, {prefix + n: value for n, value in _computed(found, members).items()}, "a validation's metric")
    _add(names, {name: _scalar(members) for name in validation.host_values}, "an evaluator's metric")
    # a metric may have the name of a control, to report the value that the step used
    for name in {**names, **train.controls}:
        if name in RESERVED or name in host_names or is_rate(name):
            raise ValueError(f"the metric name {name!r} is reserved: jaxcb reports it itself. Rename yours.")
    stale = {
        "on_eval_end": frozenset(train_names),
        "on_epoch_end": frozenset(names.keys() - train_names.keys()),
        "on_train_end": frozenset(names),
    }
    spec = ProgramSpec(MetricShapes(raw, probes, names, members), stale, host_names=host_names)
    spec = _with_hooks(spec, functions, validation, train, (settings, callbacks), train_names)
    answers = {
        hook: _answers(functions, hook, own.actions, (train, proposal, batch)) for hook, own in spec.hooks.items()
    }
    if proposal is not None:
        actions = spec.actions_of("on_before_update")
        _check_state(eval_shape(functions.update, train, proposal, actions), train)
    scaled = any(isinstance(action, ScaleLearningRate) for action in spec.actions_of())
    return spec._replace(
        hooks={hook: own._replace(answers=answers[hook]) for hook, own in spec.hooks.items()},
        scales_final_updates=scaled and any(r.schedule is None for r in learning_rates(train.opt_state)),
    )


def _with_hooks(
    spec: ProgramSpec,
    functions: TracedFunctions,
    validation: ValidationPlan,
    train: TrainState,
    states: tuple[Any, Any],
    step_names: Shapes,
) -> ProgramSpec:
    """Returns the spec with what the traces of the hooks tell."""
    hooks, read = {}, set[str]()
    for hook in sorted(functions.hook, key=HOOKS.index):
        if hook in ("on_eval_begin", "on_eval_end") and not validation.predicates.validates:
            continue
        given = {"on_batch_end": step_names, "on_before_update": step_names}.get(hook, {})
        if hook in ("on_eval_begin", "on_eval_end", "on_epoch_end", "on_train_end"):
            given = {name: jax.ShapeDtypeStruct(v.shape, jnp.float32) for name, v in spec.metrics.epoch.items()}
        metrics = _hook_metrics(spec, functions, train, hook, given)
        traced = functions.hook[hook].trace(*states, metrics)
        arguments, jaxpr = (*states, metrics), traced.jaxpr.jaxpr
        new, actions = traced.out_info
        before = len(jax.tree.leaves(new))
        closes = closes_epoch_in(hook, validation.schedule)
        known = {} if closes is None else {_leaf_index(arguments, "[2].closes_epoch"): closes}
        never = _never_fire(actions, outputs_always_false(jaxpr, known)[before:])
        read |= {name for name in spec.host_names if _is_read(jaxpr, _leaf_index(arguments, f"[2].host['{name}']"))}
        actions = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), actions)
        check_actions(actions, train)
        _check_exploit(actions, functions, train)
        _check_place(hook, actions)
        _check_payload(hook, actions)
        equal = tuple(i - before for i in equal_outputs(jaxpr)[before:])
        hooks[hook] = HookSpec(actions, equal, never, trace=_trace_key(traced.jaxpr))
    return spec._replace(hooks=hooks, host_read=tuple(name for name in spec.host_names if name in read))


def _hook_metrics(spec: ProgramSpec, functions: TracedFunctions, train: TrainState, hook: str, given: Shapes) -> Any:
    """Returns the shapes of the metrics that a hook sees."""

    def seen(given: Any, train: TrainState) -> Any:
        zero = jnp.zeros((), jnp.int32)
        values = {name: jnp.zeros(v.shape, v.dtype) for name, v in given.items()}
        host = {name: jnp.zeros((), jnp.float32) for name in spec.host_names}
        return metrics_of(values, train, host, last=False, step=zero, epoch=zero, total_steps=zero)

    size = (functions.mapping.members or 1,)
    alive, member = (jax.ShapeDtypeStruct(size, kind) for kind in (jnp.bool_, jnp.int32))
    together = {"alive": alive, "member": member} if functions.populations else {}
    return eval_shape(seen, given, train).replace(old=spec.stale_names.get(hook, frozenset()), **together)


def _reported_at_times(at_times: Mapping[str, Any], probes: Mapping[str, Any], members: int | None) -> Shapes:
    """Returns the shapes of the metrics that a step reports at times, in the form of probes.

    Raises:
        ValueError: for the name of a probe, or for a population, whose members share the steps of all reports.
    """
    for name in at_times:
        if name in probes:
            raise ValueError(f"{name!r} is the name of a metric of the step and of a probe; rename one of them.")
        if members is not None:
            raise ValueError(
                f"the metric {name!r} is reported at times (jc.probes.reported), which the members of a sweep cannot "
                "do each. Report its last value at every step, or train the runs with jc.scan under jax.vmap."
            )
    return {name: {name: jax.ShapeDtypeStruct(own.value.shape, jnp.float32)} for name, own in at_times.items()}


def _trace_key(closed: Any) -> Hashable:
    try:
        return trace_key(closed.jaxpr, closed.consts)
    except NoProgramKey:
        return None


def _never_fire(actions: tuple[Any, ...], always_false: Sequence[bool]) -> frozenset[int]:
    """Returns the indices of actions whose `when` is always false, given that of each array of the actions."""
    flags = jax.tree.unflatten(jax.tree.structure(actions), always_false)
    return frozenset(index for index, action in enumerate(flags) if action.when)


def _answers(
    functions: TracedFunctions, hook: str, actions: tuple[Any, ...], seen: tuple[TrainState, Any, Any]
) -> dict[int, tuple[Any, ...]]:
    """Returns the shapes that the lazy log actions of a hook compute."""
    found = {}
    for index, action in enumerate(actions):
        if is_lazy(action):
            check_lazy(action, hook)
            if hook == "on_before_update":
                found[index] = eval_shape(functions.answer_inside, action, *seen)
            else:
                found[index] = eval_shape(functions.answer, action, seen[0])
    return found


def _leaf_index(arguments: Any, path: str) -> int:
    """Returns the index of the leaf at a path, as `jax.tree_util.keystr` writes it."""
    return [jax.tree_util.keystr(at) for at, _ in jax.tree_util.tree_leaves_with_path(arguments)].index(path)


def _is_read(jaxpr: Any, index: int) -> bool:
    """Returns whether a jaxpr uses an input."""
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return id(jaxpr.invars[index]) in used


def _check_place(hook: str, actions: tuple[Action, ...]) -> None:
    for action in actions:
        if isinstance(action, SkipUpdate | ScaleUpdates) and hook != "on_before_update":
            raise ValueError(f"{action.owner}: {type(action).__name__} acts in on_before_update, not in {hook}.")


def _check_exploit(actions: tuple[Action, ...], functions: TracedFunctions, train: TrainState) -> None:
    if train.frozen is None or functions.mapping.frozen_axis is None:
        return
    for action in actions:
        if isinstance(action, Exploit):
            raise ValueError(
                f"{action.owner} copies the trained parameters of a member to another one, but each member has its own "
                "frozen parameters, which no program changes. Pass a model instead of model_fn, so that all share them."
            )


def _check_payload(hook: str, actions: tuple[Action, ...]) -> None:
    for action in actions:
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(action)):
            raise TypeError(
                f"{action.owner}: {type(action).__name__} in {hook} holds a PRNG key, which no file can store. "
                "Pass jax.random.key_data(key)."
            )


def _add(names: Shapes, new: Mapping[str, Any], what: str) -> None:
    """Adds names to those that are taken, and raises an error for a duplicate."""
    for name in sorted(new.keys() & names.keys()):
        raise ValueError(f"{name!r} is the name of {what} and of another reported value; rename one of them.")
    names |= new


def _computed(values: Any, members: int | None) -> Shapes:
    try:
        return eval_shape(lambda v: computed(v, members is not None), values)
    except Exception as error:
        merging = ", ".join(repr(name) for name, v in values.items() if is_mergeable(v))
        error.add_note(f"This happened in compute() of one of the metrics {merging}, which must run under jit.")
        raise


def _scalar(members: int | None) -> Any:
    return jax.ShapeDtypeStruct(() if members is None else (members,), jnp.float32)


def _check_state(new: Any, train: TrainState) -> None:
    if not isinstance(new, TrainState):
        raise TypeError(
            f"train_step returned {type(new).__name__} first, expected the new TrainState: `return state, metrics`."
        )
    eval_shape(lambda n: cast_like(n, train, "train_step: the train state", error=ValueError), new)


def _check_frozen(functions: TracedFunctions, train: TrainState, batch: Any) -> None:
    """Refuses a step that changes the frozen parameters: no program returns them, so the change would be lost."""
    if train.frozen is None or isinstance(functions.step, Step):
        return
    (given, _), (new, _) = variables_of(functions.first_half, train, batch)
    parts = map(jax.tree_util.tree_leaves_with_path, (given.frozen, new.frozen))
    for (path, before), (_, after) in zip(*parts, strict=True):
        if before is not after:
            raise ValueError(
                f"train_step changes the frozen parameter {leaf_name(path)}, which trainable= left out, so it is "
                "read-only. Train it, too, or return state.frozen as it was given."
            )


def _pair(result: Any) -> tuple[Any, Any]:
    """Checks that a train step returned a pair."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise TypeError(
            f"train_step returned {type(result).__name__}, expected (train_state, metrics): `return state, metrics`."
        )
    return result[0], result[1]


def _check_names(what: str, values: Any) -> None:
    """Checks that metrics are a dict of names to arrays, or to metrics with their own merge."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} returned metrics as {type(values).__name__}, expected a dict of names to arrays.")
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{what} returned a metric with the name {name!r}, expected a string that is not empty.")
        if not hasattr(value, "dtype") and not is_mergeable(value):
            raise TypeError(f"{what} returned the metric {name!r} as {type(value).__name__}, expected an array.")
