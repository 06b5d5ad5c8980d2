"""Strategies to map a step over the members of a population, and a measurement that picks the fastest one."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_choice
from jaxcb._src.utils.flat_jit import FlatJit
from jaxcb._src.utils.pytree import map_nodes

Over = Callable[[Callable[..., Any], Any], Callable[..., Any]]  # (fn, in_axes) -> fn over members


def one_by_one(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Maps over members in a compiled loop.

    Args:
        fn: a function of one member.
        in_axes: for each argument 0 if it has the member axis, None if members share it.
    """

    def run(*args: Any) -> Any:
        return jax.lax.map(lambda one: fn(*_merged(args, one, in_axes)), _own(args, in_axes))

    return run


def unrolled(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Maps over members without a loop, where XLA compiles a loop body badly. Compile time grows with the members."""

    def run(*args: Any) -> Any:
        one = _own(args, in_axes)
        size = jax.tree.leaves(one)[0].shape[0]
        each = [fn(*_merged(args, jax.tree.map(lambda x, i=i: x[i], one), in_axes)) for i in range(size)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    return run


def over_members(
    over: Over, fn: Callable[..., Any], in_axes: tuple[int | None, ...], frozen_axis: int | None
) -> Callable[..., Any]:
    """Maps a function of train states over members that may share the frozen parameters.

    Args:
        over: maps a function over the members.
        fn: a function of one member; a train state that it returns has the frozen parameters of the one that it took.
        in_axes: for each argument 0 if it has the member axis, None if members share it.
        frozen_axis: the same for the frozen parameters of the train states.
    """

    def is_state(x: Any) -> bool:
        return isinstance(x, TrainState)

    def with_frozen(tree: Any, frozen: Any) -> Any:
        return map_nodes(lambda x: x.replace(frozen=frozen), tree, is_state)

    def run(*args: Any) -> Any:
        frozen = next((x.frozen for x in args if is_state(x)), None)
        if frozen is None:
            return over(fn, in_axes)(*args)

        def one(frozen: Any, *args: Any) -> Any:
            return with_frozen(fn(*with_frozen(args, frozen)), None)

        return with_frozen(over(one, (frozen_axis, *in_axes))(frozen, *with_frozen(args, None)), frozen)

    return run


def _own(args: tuple[Any, ...], in_axes: tuple[int | None, ...]) -> list[Any]:
    return [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]


def _merged(args: tuple[Any, ...], mapped: list[Any], in_axes: tuple[int | None, ...]) -> list[Any]:
    rest = iter(mapped)
    return [next(rest) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True)]


STRATEGIES = ("vmap", "map", "shard")
_STEPS, _ROUNDS = 4, 3
_UNROLLED = 16  # members up to which an unrolled program is tried

_WORDS = {"vmap": "all members at once", "map": "one member after another", "shard": "members spread over the devices"}


class Strategy(NamedTuple):
    """A strategy to map a step over members.

    Attributes:
        name: "vmap", "map" or "shard".
        over: the transformation, `over(fn, in_axes) -> fn`.
        placement: the devices that members are sharded over. Each device holds the complete batch.
    """

    name: str
    over: Over
    placement: Placement = ONE_DEVICE

    @property
    def least(self) -> int:
        """The number of members must be a multiple of this."""
        return 1 if self.placement.mesh is None else self.placement.mesh.size

    def place(self, tree: Any, per_member: bool) -> Any:
        """Puts arrays on the devices: sharded over members if `own`, otherwise replicated."""
        return self.placement.put_rows(tree) if per_member else self.placement.put_everywhere(tree)


def known(name: str, members: int, kind: str, mesh: Mesh | None = None) -> Strategy:
    """Returns the strategy with a name, for an executor ("looped" or "stepped").

    Raises:
        ValueError: for an unknown name, or if the members do not divide over the devices.
    """
    check_choice("sweep", "strategy", name, STRATEGIES)
    if name == "map":
        return Strategy("map", one_by_one if kind == "looped" else unrolled)
    if name != "shard":
        return Strategy("vmap", jax.vmap)
    mesh = Mesh(np.asarray(jax.devices()), ("members",)) if mesh is None else mesh
    if members % mesh.size:
        raise ValueError(
            f"strategy='shard' spreads {members} members over {mesh.size} devices, which must divide them. Give "
            f"{-(-members // mesh.size) * mesh.size} members, or strategy='vmap'."
        )
    return Strategy("shard", jax.vmap, Placement.devices(mesh))


def measured(
    step: Callable[..., Any],
    state: Any,
    batch: Any,
    batch_axis: int | None,
    members: int,
    kind: str,
    mesh: Mesh | None = None,
    frozen_axis: int | None = None,
) -> tuple[Strategy, str]:
    """Measures the possible strategies for a few steps. Returns the fastest, and a text that says why.

    Args:
        step: the step of one member.
        state: the train state of the population.
        batch: a batch.
        batch_axis: 0 if each member has its own batch, None if they share one.
        members: number of members.
        kind: executor, "looped" or "stepped".
        mesh: the devices; None for all devices.
        frozen_axis: 0 if each member has its own frozen parameters, None if they share them.
    """
    names = ["vmap"]
    if kind == "looped" or members <= _UNROLLED:
        names.append("map")
    devices = len(jax.devices()) if mesh is None else mesh.size
    if devices > 1 and members % devices == 0:
        names.append("shard")
    found = {name: known(name, members, kind, mesh) for name in names}
    axes = (batch_axis, frozen_axis)
    seconds = {name: _seconds(strategy, step, state, batch, axes, kind) for name, strategy in found.items()}
    best = min(seconds, key=seconds.__getitem__)
    return found[best], _explain(best, seconds)


def _explain(best: str, seconds: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {took * 1e3:.3g} ms" for name, took in seconds.items())
    return f"{best}, {_WORDS[best]}; a step took: {shown}"


def _seconds(
    strategy: Strategy, step: Any, state: Any, batch: Any, axes: tuple[int | None, int | None], kind: str
) -> float:
    """Returns the seconds of a step, the minimum over a few rounds."""
    batch_axis, frozen_axis = axes
    over = over_members(strategy.over, step, (0, batch_axis), frozen_axis)
    if isinstance(state, TrainState):
        frozen = strategy.place(state.frozen, frozen_axis == 0)
        state = strategy.place(state.replace(frozen=None), True).replace(frozen=frozen)
    else:
        state = strategy.place(state, True)
    batch = strategy.place(batch, batch_axis == 0)
    if kind == "looped":
        run: Callable[[Any, Any], Any] = FlatJit(
            lambda s, b: jax.lax.fori_loop(0, _STEPS, lambda _, s: over(s, b)[0], s)
        )
    else:
        once = FlatJit(lambda s, b: over(s, b)[0])

        def run(s: Any, b: Any, /) -> Any:
            for _ in range(_STEPS):
                s = strategy.placement.block_if_needed(once(s, b))
            return s

    jax.block_until_ready(run(state, batch))
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(run(state, batch))
        took.append(time.perf_counter() - began)
    return min(took) / _STEPS
