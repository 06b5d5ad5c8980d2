"""Shape inference and checks before the first step, without running any computation."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.control import ScaleLearningRate, ScaleUpdates, SkipUpdate
from jaxcb._src.core.actions.utils import check_lazy, is_lazy
from jaxcb._src.core.callback import HOOKS
from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.loop.compiled.metric_accumulator import computed
from jaxcb._src.loop.compiled.program import Program, ProgramShapes
from jaxcb._src.loop.compiled.state import MetricShapes
from jaxcb._src.training.learning_rate import learning_rates
from jaxcb._src.training.train_state import TrainState, check_actions
from jaxcb._src.utils.program_key import NoProgramKey, trace_key
from jaxcb._src.utils.pytree import cast_like
from jaxcb._src.utils.xla import equal_outputs, outputs_always_false

RESERVED = ("learning_rate", "base_learning_rate", "lr_scale", "epoch", "step", "updates")

Shapes = dict[str, Any]  # name -> shape


def infer_shapes(
    program: Program, train: TrainState, callbacks: Any, settings: Any, batch: Any, val: Mapping[str, Any]
) -> ProgramShapes:
    """Infers the shapes of metrics and actions, by tracing each hook and each step function once.

    Args:
        program: its functions are traced; it is given the shapes.
        train: the train state, or its shapes; likewise for the other arguments.
        callbacks: the callbacks' states.
        settings: the callbacks' numeric fields, as in `Inputs`.
        batch: a training batch.
        val: prefix -> a batch of each validation set.

    Returns:
        The shapes, which `Program.expect` takes.

    Raises:
        ValueError: for a metric name that is taken.
        TypeError: for a step that returns something else than expected.
    """
    proposal = None
    if program.split_step:
        proposal = jax.eval_shape(program.first_half, train, batch)
        raw = proposal.gradients.values
    else:
        new, raw = _pair(jax.eval_shape(program.first_half, train, batch))
        _check_names("train_step", raw)
        _check_state(new, train)
    probe_shapes = {
        name: jax.eval_shape(probe, train, proposal, batch) for name, probe in program.probe_functions.items()
    }
    names: Shapes = {}
    _add(names, _computed(raw, program), "a metric of the step")
    for name, readings in probe_shapes.items():
        _add(names, readings, f"the probe {name!r}")
    train_names = dict(names)
    for prefix, shapes in val.items():
        assert program.eval_step is not None
        found = jax.eval_shape(program.eval_step, train, shapes)
        _check_names("eval_step", found)
        prefixed = {prefix + name: value for name, value in _computed(found, program).items()}
        _add(names, prefixed, "a validation's metric")
    _add(names, {name: _scalar(program) for name in program.host_values}, "an evaluator's metric")
    for name in (*RESERVED, *program.host_names):
        # a metric may have the name of a control, to report the value that the step used
        if name in names or name in train.controls:
            raise ValueError(f"the metric name {name!r} is reserved: jaxcb reports it itself. Rename yours.")
    validated = frozenset(names.keys() - train_names.keys())
    program.expect(
        ProgramShapes(
            metrics=MetricShapes(raw, probe_shapes, names, program.members),
            stale_names={
                "on_eval_end": frozenset(train_names),
                "on_epoch_end": validated,
                "on_train_end": frozenset(names),
            },
        )
    )
    shapes = _with_actions(program, train, callbacks, settings, train_names, names)
    actions = shapes.actions
    answers = {hook: _answers(program, hook, listed, train, proposal, batch) for hook, listed in actions.items()}
    if proposal is not None:
        before_update = actions.get("on_before_update", ())
        _check_state(jax.eval_shape(program.update, train, proposal, before_update), train)
    scaled = any(isinstance(a, ScaleLearningRate) for listed in actions.values() for a in listed)
    shapes = shapes._replace(
        answers=answers,
        scales_final_updates=scaled and any(r.schedule is None for r in learning_rates(train.opt_state)),
    )
    program.expect(shapes)
    return shapes


def _with_actions(
    program: Program, train: TrainState, callbacks: Any, settings: Any, step_names: Shapes, names: Shapes
) -> ProgramShapes:
    """Returns the shapes of the program with everything that the traces of the hooks tell."""
    out: dict[str, tuple[Any, ...]] = {}
    equal: dict[str, tuple[int, ...]] = {}
    never: dict[str, frozenset[int]] = {}
    traces: dict[str, Hashable] | None = {}
    read: set[str] = set()
    for hook in sorted(program.hooks, key=HOOKS.index):
        if hook in ("on_eval_begin", "on_eval_end") and not program.predicates.validates:
            continue
        given = {"on_batch_end": step_names, "on_before_update": step_names}.get(hook, {})
        if hook in ("on_eval_begin", "on_eval_end", "on_epoch_end", "on_train_end"):
            given = {name: jax.ShapeDtypeStruct(v.shape, jnp.float32) for name, v in names.items()}

        def seen(given: Any, train: TrainState) -> Any:
            zero = jnp.zeros((), jnp.int32)
            values = {name: jnp.zeros(v.shape, v.dtype) for name, v in given.items()}
            host = {name: jnp.zeros((), jnp.float32) for name in program.host_names}
            return program.metrics_of(values, train, host, step=zero, epoch=zero, total=zero, last=False)

        metrics = jax.eval_shape(seen, given, train)
        members = (jax.ShapeDtypeStruct((program.members or 1,), kind) for kind in (jnp.bool_, jnp.int32))
        metrics = program.seen_in(hook, metrics, *members)
        traced = program.hook[hook].trace(settings, callbacks, metrics)
        states, actions = traced.out_info
        before, jaxpr, given = len(jax.tree.leaves(states)), traced.jaxpr.jaxpr, (settings, callbacks, metrics)
        equal[hook] = tuple(i - before for i in equal_outputs(jaxpr)[before:])
        try:
            if traces is not None:
                traces[hook] = trace_key(jaxpr, traced.jaxpr.consts)
        except NoProgramKey:
            traces = None
        closes = program.closes_in(hook)
        known = {} if closes is None else {_leaf_index(given, "[2].closes_epoch"): closes}
        never[hook] = _never_fire(actions, outputs_always_false(jaxpr, known)[before:])
        read |= {name for name in program.host_names if _is_read(jaxpr, _leaf_index(given, f"[2].host['{name}']"))}
        actions = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), actions)
        check_actions(actions, train)
        _check_place(hook, actions)
        _check_payload(hook, actions)
        out[hook] = actions
    host_read = tuple(name for name in program.host_names if name in read)
    return program.shapes._replace(actions=out, equal=equal, never=never, traces=traces, host_read=host_read)


def _never_fire(actions: tuple[Any, ...], always_false: Sequence[bool]) -> frozenset[int]:
    """Returns the indices of actions whose `when` is always false, given that of each array of the actions."""
    flags = jax.tree.unflatten(jax.tree.structure(actions), always_false)
    return frozenset(index for index, action in enumerate(flags) if action.when)


def _answers(
    program: Program, hook: str, actions: tuple[Any, ...], train: TrainState, proposal: Any, batch: Any
) -> dict[int, tuple[Any, ...]]:
    """Returns the shapes that the lazy log actions of a hook compute."""
    found = {}
    for index, action in enumerate(actions):
        if is_lazy(action):
            check_lazy(action, hook)
            if hook == "on_before_update":
                found[index] = jax.eval_shape(program.answer_inside, action, train, proposal, batch)
            else:
                found[index] = jax.eval_shape(program.answer, action, train)
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


def _computed(values: Any, program: Program) -> Shapes:
    try:
        return jax.eval_shape(lambda v: computed(v, program.members is not None), values)
    except Exception as error:
        merging = ", ".join(repr(name) for name, v in values.items() if is_mergeable(v))
        error.add_note(f"This happened in compute() of one of the metrics {merging}, which must run under jit.")
        raise


def _scalar(program: Program) -> Any:
    return jax.ShapeDtypeStruct(() if program.members is None else (program.members,), jnp.float32)


def _check_state(new: Any, train: TrainState) -> None:
    if not isinstance(new, TrainState):
        raise TypeError(
            f"train_step returned {type(new).__name__} first, expected the new TrainState: `return state, metrics`."
        )
    jax.eval_shape(lambda n: cast_like(n, train, "train_step: the train state", error=ValueError), new)


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
