"""`Population`: members that train in one program; `Members`: which of them a program still holds."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.loop.compiled.executor import DeviceState, Executor
from jaxcb._src.loop.compiled.member_map import Strategy
from jaxcb._src.loop.compiled.state import Inputs, LoopState, ProbeValue
from jaxcb._src.writers.run_handle import Record


class Population(NamedTuple):
    """What is to be known of a population before its program is built.

    Attributes:
        size: how many members.
        axes: for each number of the callbacks, in the order of their leaves, 0 where each member has its own, None
            where all share one.
        seeds: of each member's order of the data.
        strategy: how a step goes over the members: "vmap", "map" or "shard"; None measures.
        repack: whether members that have ended leave the program: at each power of two (True), never (False), or once
            what they waste has cost as much as a new program (None).
    """

    size: int
    axes: tuple[int | None, ...]
    seeds: tuple[int, ...]
    strategy: str | None = None
    repack: bool | None = None


def member_axes(carry: LoopState) -> list[bool]:
    """For each leaf of a population's carry, whether it has the member axis."""

    def mark(tree: Any, has: bool) -> Any:
        return jax.tree.map(lambda _: has, tree)

    marks = mark(carry, False).replace(
        train=mark(carry.train, True),
        callbacks=mark(carry.callbacks, True),
        windows=mark(carry.windows, True),
        readings={name: ProbeValue(mark(own.values, True), False) for name, own in carry.readings.items()},
        latest=mark(carry.latest, False).replace(values=mark(carry.latest.values, True)),
        ended=True,
        member=True,
        order=None if carry.order is None else jnp.ndim(carry.order) > 1,
    )
    return jax.tree.leaves(marks)


class ActiveMembers:
    """The members of a population that a program still holds, and those that have left it.

    A member that has ended trains no more and its rows of the carry are final, so that they may be put aside. The
    program for those that are left is smaller by powers of two; where there are fewer members than rows, some of those
    that have ended stay.

    Args:
        population: all of them.
        strategy: how the program goes over them.
        build: makes the executor for so many rows.
    """

    def __init__(self, population: Population, strategy: Strategy, build: Callable[[int], Executor]) -> None:
        self.size, self.strategy = population.size, strategy
        self.rows = np.arange(self.size)  # the member in each row of the program
        self.sizes = [self.size]  # of the programs so far
        self._repack, self._axes, self._build = population.repack, population.axes, build
        self._away: list[tuple[np.ndarray, list[Any]]] = []  # who has left, and their rows of each leaf with the axis
        self._alive = np.ones(self.size, bool)  # of the program's rows
        self._seconds_to_build, self._wasted = 0.0, 0.0

    # When to repack

    def note(self, alive: np.ndarray, seconds: float) -> None:
        """Takes note of who is alive, and of the seconds that the last stretch took."""
        self._alive = np.asarray(alive)
        self._wasted += seconds * (1 - self._wanted / len(self.rows))

    def built_in(self, seconds: float) -> None:
        """Says how long it takes to make a program."""
        self._seconds_to_build = seconds

    @property
    def alive(self) -> int:
        """Members that still train."""
        return int(self._alive.sum())

    @property
    def _wanted(self) -> int:
        """Rows of the smallest program that holds all who are alive."""
        rows = self.strategy.least
        while rows < self.alive:
            rows *= 2
        return min(rows, len(self.rows))

    @property
    def due(self) -> bool:
        """Whether a smaller program is worth its making: never more than twice what the best choice would cost."""
        if self._repack is False or not self.alive or self._wanted == len(self.rows):
            return False
        return self._repack is True or self._wasted > self._seconds_to_build

    # Repacking

    def compact(self, live: DeviceState, inputs: Inputs) -> tuple[Executor, DeviceState, Inputs]:
        """Returns a smaller program, with the run and its inputs for it."""
        carry = live.carry()
        marks = member_axes(carry)
        order = np.argsort(~self._alive, kind="stable")  # those alive first, as they stood
        stay, leave = np.sort(order[: self._wanted]), order[self._wanted :]
        self._away.append((self.rows[leave], [x[leave] for x, own in zip(live.leaves, marks, strict=True) if own]))
        leaves = [x[stay] if own else x for x, own in zip(live.leaves, marks, strict=True)]
        self.rows, self._alive, self._wasted = self.rows[stay], self._alive[stay], 0.0
        self.sizes.append(len(stay))
        settings = [x[stay] if axis == 0 else x for x, axis in zip(inputs.settings, self._axes, strict=True)]
        key = inputs.key[stay] if inputs.key is not None and jnp.ndim(inputs.key) else inputs.key
        return self._build(len(stay)), *self.put(
            DeviceState(leaves, live.tree), inputs.replace(settings=settings, key=key)
        )

    def put(self, live: DeviceState, inputs: Inputs) -> tuple[DeviceState, Inputs]:
        """Puts the run and its inputs on the devices that they belong to."""
        place, axes = self.strategy.place, self._axes
        if self.strategy.placement.mesh is None:
            return live, inputs
        leaves = [place(x, own) for x, own in zip(live.leaves, member_axes(live.carry()), strict=True)]
        settings = [place(x, axis == 0) for x, axis in zip(inputs.settings, axes, strict=True)]
        key = inputs.key if inputs.key is None else place(inputs.key, jnp.ndim(inputs.key) > 0)
        # the rows are the feed's to place
        return DeviceState(leaves, live.tree), inputs.replace(settings=settings, key=key, val=place(inputs.val, False))

    def full_state(self, live: DeviceState) -> LoopState:
        """The carry of the whole population, members in order; the run's own arrays where nobody has left."""
        if not self._away:
            return live.carry()
        marks, order = member_axes(live.carry()), np.argsort(np.concatenate([self.rows, *(m for m, _ in self._away)]))
        away = [iter(rows) for _, rows in self._away]
        leaves = [
            jnp.concatenate([x, *(next(rows) for rows in away)])[order] if own else x
            for x, own in zip(live.leaves, marks, strict=True)
        ]
        return jax.tree.unflatten(live.tree, leaves)

    def scatter_records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Gives records of the program's rows the axis of the whole population; for the others nothing fires."""
        packed = len(self.rows) < self.size

        def full(rows: np.ndarray) -> np.ndarray:
            out = np.zeros((self.size, *rows.shape[1:]), rows.dtype)
            out[self.rows] = rows
            return out

        for record in records:
            yield record._replace(action=jax.tree.map(full, record.action)) if packed else record
