"""Members of a sweep: making their configurations, grouping them by program, and stacking their states."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcb._src.core.chain import Chain, stacked_callbacks
from jaxcb._src.models.adapt import adapt
from jaxcb._src.models.adapter import Adapter, avals
from jaxcb._src.models.trainable import variable_types
from jaxcb._src.sweep.overrides import with_overrides
from jaxcb._src.sweep.space import Point
from jaxcb._src.training.learning_rate import LearningRate, map_learning_rates, with_hyperparameters
from jaxcb._src.training.optimizer_groups import rates_of_groups
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.errors import takes
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.kept_programs import KeptFunction, kept_program
from jaxcb._src.utils.program_key import key_of, tree_key
from jaxcb._src.utils.pytree import on_device


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        number: the member's number, from 0.
        point: its swept values.
        configuration: its configuration.
        adapter: the adapter of its model.
    """

    number: int
    point: Point
    configuration: TrainingConfig
    adapter: Adapter


def make_members(
    model_fn: Any, base: TrainingConfig, points: Sequence[Point], check: Callable[[Member], None]
) -> list[Member]:
    """Makes each member's configuration and model.

    Args:
        model_fn: as in `sweep`.
        base: the configuration that members share.
        points: the swept values of each member.
        check: called with the first member, before the models of the others are made.

    Returns:
        The members, in the order of `points`.

    Raises:
        ValueError: for an unknown path, a value out of range, or one that changes a shape.
    """
    trained = variable_types(base.trainable)
    make = _maker(model_fn, any(path.startswith("model.") for path in points[0]), trained)
    configurations = [with_overrides(base, point) for point in points]
    first = Member(0, points[0], configurations[0], make(configurations[0]))
    check(first)
    members = [first, *(Member(i, points[i], c, make(c)) for i, c in enumerate(configurations) if i)]
    shapes = avals(first.adapter.split())
    for member in members[1:]:
        _check_shapes(first, shapes, member)
    return members


def _made(model_fn: Callable[..., Any], seed: int, arguments: Mapping[str, Any]) -> Any:
    """Calls the user's function."""
    if not takes(model_fn, seed, **arguments):
        called = ", ".join(("seed", *(f"{name}=..." for name in arguments)))
        raise TypeError(
            f"model_fn is called as model_fn({called}), but got a function with the signature "
            f"{inspect.signature(model_fn)}."
        )
    return model_fn(seed, **arguments)


def _maker(model_fn: Any, with_arguments: bool, trained: tuple[type, ...]) -> Callable[[TrainingConfig], Adapter]:
    """Returns how to make a member's model: by a function of the seed, or as a copy of the given model."""
    if isinstance(model_fn, type):
        raise TypeError(f"model_fn is the class {model_fn.__name__}, expected a function: `lambda seed: ...`.")
    if inspect.isroutine(model_fn) or isinstance(model_fn, functools.partial) or hasattr(model_fn, "__wrapped__"):
        return lambda c: adapt(_made(model_fn, c.seed, c.model), copy=True, trained=trained)
    if with_arguments:
        raise TypeError("over: 'model.' values are arguments of model_fn, but model_fn is a model, not a function.")
    adapter = adapt(model_fn, copy=True, trained=trained)
    return lambda _: adapter


def _check_shapes(one: Member, first: Any, other: Member) -> None:
    """Checks that members differ only in numbers."""
    now = avals(other.adapter.split())
    if jax.tree.leaves(first) == jax.tree.leaves(now):
        return
    before, after = (
        {jax.tree_util.keystr(p): s for p, s in jax.tree_util.tree_leaves_with_path(tree)} for tree in (first, now)
    )
    where = next((p for p in sorted({*before, *after}) if before.get(p) != after.get(p)), "its structure")
    paths = [p for p in other.point if other.point[p] != one.point[p] and (p == "seed" or p.startswith("model."))]
    values = ", ".join(f"{p!r} = {other.point[p]!r}" for p in paths) or "the seed"
    raise ValueError(
        f"over: {values} changes the shape of the model at {where}: {_shape(before.get(where))} in member "
        f"{one.number}, {_shape(after.get(where))} in member {other.number}. Members of a sweep differ "
        "only in numbers; run one sweep for each shape."
    )


def _shape(struct: Any) -> str:
    return "nothing" if struct is None else f"{struct.dtype}{list(struct.shape)}"


# Which members share a program


def group_by_program(members: Sequence[Member]) -> tuple[list[list[Member]], tuple[str, ...]]:
    """Groups members that can share a program: those that differ only in numbers that can be arrays.

    Returns:
        The groups, and the names of the optimizer's numbers that must be Python values.
    """
    fixed = _fixed_numbers(members[0])
    groups: list[list[Member]] = []
    for member in members:
        for group in groups:
            if _share(group[0], member, fixed):
                group.append(member)
                break
        else:
            groups.append([member])
    return groups, fixed


def _share(one: Member, other: Member, fixed: tuple[str, ...]) -> bool:
    a, b = one.configuration, other.configuration
    if any(a.hyperparameters[n] != b.hyperparameters[n] for n in fixed):
        return False
    if jax.tree.structure(a.callbacks) != jax.tree.structure(b.callbacks):
        return False
    # Equal arguments make equal models, even if their forms differ because of functions that are new in each call.
    return a.model == b.model or one.adapter.form == other.adapter.form


def _fixed_numbers(member: Member) -> tuple[str, ...]:
    """Returns the optimizer's numbers that cannot be arrays, because it uses them in a Python `if`."""
    configuration = member.configuration
    params = avals(_parts(member)[0][0])

    def is_fixed(name: str, value: Any) -> bool:
        config = TrainingConfig(0, configuration.optimizer, 1.0, configuration.callbacks, {name: value})
        try:
            tx = optax.with_extra_args_support(config.transformation(params))
            eval_shape(lambda p: tx.update(p, tx.init(p), p, value=jnp.zeros(()), grad=p), params)
        except (jax.errors.TracerBoolConversionError, jax.errors.ConcretizationTypeError):
            return True
        except Exception:  # other errors of the optimizer are raised where it is used
            return False
        return False

    numbers = configuration.hyperparameters
    kept = kept_program(
        lambda: ("numbers", key_of((configuration.optimizer, tuple(numbers.items()))), tree_key(params))
    )
    return kept.fact("fixed", lambda: tuple(name for name, value in numbers.items() if is_fixed(name, value)))


def describe_group(group: Sequence[Member], others: Sequence[Member]) -> str:
    """Describes the values in which a group differs from other members."""
    paths = [p for p in group[0].point if len({m.point[p] for m in group}) == 1]
    paths = [p for p in paths if any(m.point[p] != group[0].point[p] for m in others)]
    return ", ".join(f"{p}={group[0].point[p]:g}" for p in paths)


# As one


class MemberGroup(NamedTuple):
    """The members of a group as one population.

    Attributes:
        state: their train states, each array with a leading member axis.
        callbacks: one chain, whose numbers are arrays (members,) where the members differ.
        axes: for each number of the chain, 0 if it has the member axis, else None.
        seeds: the seed of each member.
        frozen_axis: 0 if each member has its own frozen parameters, None if they share the arrays.
    """

    state: TrainState
    callbacks: Chain
    axes: tuple[int | None, ...]
    seeds: tuple[int, ...]
    frozen_axis: int | None = None


def stack_members(group: Sequence[Member], fixed: tuple[str, ...] = ()) -> MemberGroup:
    """Stacks members that share a program."""
    configurations = [m.configuration for m in group]
    callbacks, axes = stacked_callbacks([c.callbacks for c in configurations])
    parts, frozen = zip(*map(_parts, group), strict=True)
    shared = all(x is y for one in frozen for x, y in zip(*map(jax.tree.leaves, (one, frozen[0])), strict=True))
    state = _stacked_state(group, fixed, parts)
    state = state.replace(frozen=frozen[0] if shared else jax.tree.map(lambda *x: jnp.stack(x), *frozen))
    seeds = tuple(c.seed for c in configurations)
    return MemberGroup(state, callbacks, axes, seeds, None if shared else 0)


def _parts(member: Member) -> tuple[tuple[Any, Any, Any], Any]:
    """Returns trained parameters, model state and random generators of a member, and its frozen parameters."""
    params, model_state, rngs = member.adapter.split()
    params, frozen = member.configuration.split(params, member.adapter)
    return (params, model_state, rngs), frozen


def _stacked_state(group: Sequence[Member], fixed: tuple[str, ...], split: Sequence[Any]) -> TrainState:
    configurations = [m.configuration for m in group]
    first, adapter = configurations[0], group[0].adapter
    tx = first.without(fixed).transformation(split[0][0], adapter)
    controls = {n: on_device(np.asarray([c.controls[n] for c in configurations], np.float32)) for n in first.controls}
    keys = jnp.stack([jax.random.key(c.seed) for c in configurations])

    def create(params: Any, model_state: Any, rngs: Any, controls: Any, key: Any, rate: Any) -> TrainState:
        own = tx if rate is None else tx.with_rate(rate)  # pyright: ignore[reportAttributeAccessIssue]
        return TrainState.create(params=params, tx=own, model_state=model_state, rngs=rngs, controls=controls, seed=key)

    def create_all(split: Sequence[Any], *more: Any) -> TrainState:
        params, model_state, rngs = jax.tree.map(lambda *x: jnp.stack(x), *split)
        return jax.vmap(create)(params, model_state, rngs, *more).replace(tx=None)

    kept = kept_program(lambda: ("members", key_of((tx, adapter))))
    rate = getattr(tx, "rate", None)
    members = KeptFunction("create", create_all, kept)
    rates = jax.tree.map(lambda r: on_device(np.full(len(group), r, np.float32)), rate)
    state: TrainState = members(list(split), controls, keys, rates)
    state = state.replace(tx=tx, adapter=adapter)
    numbers = {
        name: on_device(np.asarray([c.hyperparameters[name] for c in configurations], np.float32))
        for name in first.hyperparameters
        if name not in fixed
    }
    opt_state = with_hyperparameters(state.opt_state, numbers)
    each = [_rates(c) for c in configurations]

    def own(rate: LearningRate) -> LearningRate:
        swept = [rates.get(rate.name) for rates in each]
        if len({id(r) if callable(r) else r for r in swept}) < 2:
            return rate
        base = on_device(np.asarray(swept, np.float32))
        return rate.replace(override=base, overridden=on_device(np.ones(len(swept), bool)), applied=base)

    return state.replace(opt_state=map_learning_rates(own, opt_state))


def _rates(configuration: TrainingConfig) -> dict[str, Any]:
    """Returns the learning rates by name; an only one under the key ""."""
    optimizer, rate = configuration.optimizer, configuration.learning_rate
    return rates_of_groups(optimizer, rate, "sweep") if isinstance(optimizer, Mapping) else {"": rate}


def bytes_of(member: Member) -> int:
    """Returns the bytes that a member needs on the device: its train state, its gradients and its updates.

    Frozen parameters are left out, since members of one model share them.
    """
    configuration = member.configuration.without(tuple(member.configuration.hyperparameters))
    adapter, callbacks = member.adapter, configuration.callbacks

    def count() -> int:
        state = eval_shape(lambda: configuration.train_state(adapter).init_optimizer().with_slots(callbacks))
        trained = (state.replace(frozen=None), state.params, state.params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trained))

    shapes = avals(adapter.split())
    parts = (configuration.optimizer, adapter, configuration.trainable)
    kept = kept_program(lambda: ("bytes", key_of(parts, mutable=True), tree_key((callbacks, shapes))))
    return kept.fact("bytes", count)
