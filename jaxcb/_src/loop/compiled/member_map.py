"""Which way over the members of a population is the fastest: a few steps are measured."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.validate import check_choice

Over = Callable[[Callable[..., Any], Any], Callable[..., Any]]  # fn and its in_axes -> fn over members


def one_by_one(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """One member after another, in a compiled loop.

    Args:
        fn: a function of one member.
        in_axes: for each argument, 0 where it has the member axis, None where members share it.
    """

    def run(*args: Any) -> Any:
        return jax.lax.map(lambda own: fn(*_merged(args, own, in_axes)), _own(args, in_axes))

    return run


def unrolled(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """One member after another, without a loop: what a loop's body makes slow stays fast, and compiles for each."""

    def run(*args: Any) -> Any:
        own = _own(args, in_axes)
        size = jax.tree.leaves(own)[0].shape[0]
        each = [fn(*_merged(args, jax.tree.map(lambda x, i=i: x[i], own), in_axes)) for i in range(size)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    return run


def _own(args: tuple[Any, ...], in_axes: tuple[int | None, ...]) -> list[Any]:
    return [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]


def _merged(args: tuple[Any, ...], own: list[Any], in_axes: tuple[int | None, ...]) -> list[Any]:
    rest = iter(own)
    return [next(rest) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True)]


STRATEGIES = ("vmap", "map", "shard")
_STEPS, _ROUNDS = 4, 3
_UNROLLED = 16  # members up to which a program is written out for each

_WORDS = {"vmap": "all members at once", "map": "one member after another", "shard": "members spread over the devices"}


class Strategy(NamedTuple):
    """How a program goes over its members.

    Attributes:
        name: "vmap", "map" or "shard".
        over: what a step's functions go over the members with.
        placement: the devices that members are spread over. A batch is whole on each.
    """

    name: str
    over: Over
    placement: Placement = ONE_DEVICE

    @property
    def least(self) -> int:
        """Members that a program must be a multiple of."""
        return 1 if self.placement.mesh is None else self.placement.mesh.size

    def place(self, tree: Any, own: bool) -> Any:
        """Puts arrays where they belong: spread by members where they have that axis, else on each device."""
        return self.placement.put_rows(tree) if own else self.placement.put_everywhere(tree)


def known(name: str, members: int, kind: str, mesh: Mesh | None = None) -> Strategy:
    """Returns a strategy by its name, for an executor ("looped" or "stepped"); members are spread over all devices.

    Raises:
        ValueError: for another name, and for members that cannot be spread evenly over the devices.
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
) -> tuple[Strategy, str]:
    """Picks the fastest way over the members, and says why.

    Args:
        step: the step of one member.
        state: the population's train state.
        batch: a batch.
        batch_axis: 0 where each member has its own.
        members: how many.
        kind: of executor, "looped" or "stepped".
        mesh: the devices; all of them where None.
    """
    names = ["vmap"]
    if kind == "looped" or members <= _UNROLLED:
        names.append("map")
    devices = len(jax.devices()) if mesh is None else mesh.size
    if devices > 1 and members % devices == 0:
        names.append("shard")
    found = {name: known(name, members, kind, mesh) for name in names}
    seconds = {name: _seconds(own, step, state, batch, batch_axis, kind) for name, own in found.items()}
    best = min(seconds, key=seconds.__getitem__)
    return found[best], _said(best, seconds)


def _said(best: str, seconds: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {took * 1e3:.3g} ms" for name, took in seconds.items())
    return f"{best}, {_WORDS[best]}; a step took: {shown}"


def _seconds(own: Strategy, step: Any, state: Any, batch: Any, batch_axis: int | None, kind: str) -> float:
    """Seconds of a step, the best of a few rounds."""
    over = own.over(step, (0, batch_axis))
    state, batch = own.place(state, True), own.place(batch, batch_axis == 0)
    if kind == "looped":
        run = jax.jit(lambda s, b: jax.lax.fori_loop(0, _STEPS, lambda _, s: over(s, b)[0], s))
    else:
        once = jax.jit(lambda s, b: over(s, b)[0])

        def run(s: Any, b: Any) -> Any:
            for _ in range(_STEPS):
                s = own.placement.block_if_needed(once(s, b))
            return s

    jax.block_until_ready(run(state, batch))
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(run(state, batch))
        took.append(time.perf_counter() - began)
    return min(took) / _STEPS
