"""`Population`: the configuration of members that train in one program. `ActiveMembers`: those still in the program."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.loop.compiled.device_state import DeviceState
from jaxcb._src.loop.compiled.executor import Executor
from jaxcb._src.loop.compiled.member_map import Strategy
from jaxcb._src.loop.compiled.state import Inputs, LoopState, ProbeValue
from jaxcb._src.writers.run_handle import Record


class Population(NamedTuple):
    """Configuration of a population.

    Attributes:
        size: number of members.
        axes: for each numeric field of the callbacks (leaves of the chain) 0 if it has a member axis, None if shared.
        seeds: seed of the data order of each member.
        strategy: how a step is mapped over members: "vmap", "map" or "shard"; None measures.
        repack: whether stopped members are removed from the program: at each power of two (True), never (False), or
            once they have wasted as much time as a new program takes to build (None).
        frozen_axis: 0 if each member has its own frozen parameters, None if all share the same arrays.
    """

    size: int
    axes: tuple[int | None, ...]
    seeds: tuple[int, ...]
    strategy: str | None = None
    repack: bool | None = None
    frozen_axis: int | None = None


def member_axes(carry: LoopState, frozen_axis: int | None) -> list[bool]:
    """Returns for each leaf of the loop state of a population whether it has the member axis."""

    def mark(tree: Any, has: bool) -> Any:
        return jax.tree.map(lambda _: has, tree)

    marks = mark(carry, False).replace(
        train=mark(carry.train, True).replace(frozen=mark(carry.train.frozen, frozen_axis == 0)),
        callbacks=mark(carry.callbacks, True),
        windows=mark(carry.windows, True),
        readings={name: ProbeValue(mark(probe.values, True), False) for name, probe in carry.readings.items()},
        latest=mark(carry.latest, False).replace(values=mark(carry.latest.values, True)),
        ended=True,
        member=True,
        order=None if carry.order is None else jnp.ndim(carry.order) > 1,
    )
    return jax.tree.leaves(marks)


def _with_leaves(carry: LoopState, leaves: list[Any]) -> LoopState:
    return jax.tree.unflatten(jax.tree.structure(carry), leaves)


class ActiveMembers:
    """Tracks which members of a population the program still holds.

    A stopped member does not change any more, so its rows can be moved out of the program. The size of the program
    shrinks by powers of two; some stopped members stay as padding.

    Args:
        population: all members.
        strategy: how a step is mapped over members.
        build: returns the executor for a number of rows.
    """

    def __init__(self, population: Population, strategy: Strategy, build: Callable[[int], Executor]) -> None:
        self.size, self.strategy = population.size, strategy
        self.rows = np.arange(self.size)  # member in each row of the program
        self.sizes = [self.size]  # sizes of all programs so far
        self._repack, self._axes, self._build = population.repack, population.axes, build
        self.frozen_axis = population.frozen_axis
        # removed members, and their rows of each leaf that has the member axis
        self._removed: list[tuple[np.ndarray, list[Any]]] = []
        self._alive = np.ones(self.size, bool)  # for each row of the program
        self._seconds_to_build, self._wasted = 0.0, 0.0

    # When to compact

    def note(self, alive: np.ndarray, seconds: float) -> None:
        """Notes which rows are alive, and the seconds of the last dispatch."""
        self._alive = np.asarray(alive)
        self._wasted += seconds * (1 - self._rows_needed / len(self.rows))

    def built_in(self, seconds: float) -> None:
        """Notes the seconds that it takes to build a program."""
        self._seconds_to_build = seconds

    @property
    def alive(self) -> int:
        """Number of members that still train."""
        return int(self._alive.sum())

    @property
    def _rows_needed(self) -> int:
        """Rows of the smallest program that holds all members that still train."""
        rows = self.strategy.least
        while rows < self.alive:
            rows *= 2
        return min(rows, len(self.rows))

    @property
    def due(self) -> bool:
        """Whether to compact now.

        None compacts when the time wasted on stopped members exceeds the time to build a program, so the total cost
        is at most twice that of the best choice in hindsight.
        """
        if self._repack is False or not self.alive or self._rows_needed == len(self.rows):
            return False
        return self._repack is True or self._wasted > self._seconds_to_build

    # Compaction

    def compact(self, live: DeviceState, inputs: Inputs) -> tuple[Executor, DeviceState, Inputs]:
        """Returns the executor of a smaller program, with loop state and inputs for it."""
        carry = live.carry()
        given, marks = jax.tree.leaves(carry), member_axes(carry, self.frozen_axis)
        order = np.argsort(~self._alive, kind="stable")  # members that still train first, in their order
        stay, leave = np.sort(order[: self._rows_needed]), order[self._rows_needed :]
        self._removed.append(
            (self.rows[leave], [x[leave] for x, has_axis in zip(given, marks, strict=True) if has_axis])
        )
        leaves = [x[stay] if has_axis else x for x, has_axis in zip(given, marks, strict=True)]
        self.rows, self._alive, self._wasted = self.rows[stay], self._alive[stay], 0.0
        self.sizes.append(len(stay))
        settings = [x[stay] if axis == 0 else x for x, axis in zip(inputs.settings, self._axes, strict=True)]
        key = inputs.key[stay] if inputs.key is not None and jnp.ndim(inputs.key) else inputs.key
        return self._build(len(stay)), *self.put(
            DeviceState.of(_with_leaves(carry, leaves)), inputs.replace(settings=settings, key=key)
        )

    def put(self, live: DeviceState, inputs: Inputs) -> tuple[DeviceState, Inputs]:
        """Puts loop state and inputs on the devices of the strategy."""
        place, axes = self.strategy.place, self._axes
        if self.strategy.placement.mesh is None:
            return live, inputs
        carry = live.carry()
        marks = member_axes(carry, self.frozen_axis)
        leaves = [place(x, has_axis) for x, has_axis in zip(jax.tree.leaves(carry), marks, strict=True)]
        settings = [place(x, axis == 0) for x, axis in zip(inputs.settings, axes, strict=True)]
        key = inputs.key if inputs.key is None else place(inputs.key, jnp.ndim(inputs.key) > 0)
        # the feed places the training data
        live = DeviceState.of(_with_leaves(carry, leaves))
        return live, inputs.replace(settings=settings, key=key, val=place(inputs.val, False))

    def full_state(self, live: DeviceState) -> LoopState:
        """Returns the loop state of the complete population, members in order.

        If no member was removed, the arrays are those of the run itself.
        """
        carry = live.carry()
        if not self._removed:
            return carry
        order = np.argsort(np.concatenate([self.rows, *(m for m, _ in self._removed)]))
        removed = [iter(rows) for _, rows in self._removed]
        leaves = [
            jnp.concatenate([x, *(next(rows) for rows in removed)])[order] if has_axis else x
            for x, has_axis in zip(jax.tree.leaves(carry), member_axes(carry, self.frozen_axis), strict=True)
        ]
        return _with_leaves(carry, leaves)

    def scatter_records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Expands records from the program's rows to the full member axis. Actions of removed members do not fire."""
        packed = len(self.rows) < self.size

        def full(rows: np.ndarray) -> np.ndarray:
            out = np.zeros((self.size, *rows.shape[1:]), rows.dtype)
            out[self.rows] = rows
            return out

        for record in records:
            yield record._replace(action=jax.tree.map(full, record.action)) if packed else record
