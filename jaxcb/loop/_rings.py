"""Rings: how the records of a stretch of steps travel to the host in one piece."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._actions import Action, HostAction, LogAction, Stop
from jaxcb._struct import Struct

RING_BYTES = 1 << 18  # of one ring; a full one ends the stretch
_LARGE = 1 << 12  # an action whose payload is larger has a ring of its own
_MOST = 1 << 12  # entries
_LEAST = 2  # a boundary may follow a boundary


class Entry(Struct):
    """Where a record belongs."""

    seq: Any  # int32 (), counts the moments of a run that recorded anything
    step: Any  # int32 (), updates done
    epoch: Any  # int32 (), from 0
    batch: Any  # int32 (), steps done in this epoch


class Ring(Struct):
    """Entries of one record structure, oldest first."""

    count: Any  # int32 ()
    at: Entry  # each (capacity,)
    actions: tuple[Action, ...]  # each leaf (capacity, ...)

    def append(self, at: Entry, actions: tuple[Action, ...], fired: Array) -> "Ring":
        """Writes an entry; it counts only where `fired`, else the next one overwrites it."""

        def write(ring: Array, value: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(ring, value, self.count, 0)

        return Ring(
            self.count + fired.astype(jnp.int32),
            jax.tree.map(write, self.at, at),
            jax.tree.map(write, self.actions, actions),
        )


class Layout(NamedTuple):
    """One ring's place: which actions of which hook, and how many entries fit."""

    hook: str
    indices: tuple[int, ...]
    capacity: int


class Record(NamedTuple):
    """One action that fired, on the host, with concrete arrays."""

    action: Any
    hook: str
    step: int
    epoch: int
    batch: int


class Rings:
    """The rings of a program: made from the shapes of all hooks' actions."""

    def __init__(self, actions: dict[str, tuple[Any, ...]]) -> None:
        self.layouts: dict[str, Layout] = {}
        self._shapes: dict[str, Any] = {}
        for hook, shapes in actions.items():
            recorded = [i for i, a in enumerate(shapes) if isinstance(a, LogAction | HostAction | Stop)]
            small = tuple(i for i in recorded if _nbytes(shapes[i]) <= _LARGE)
            groups = ([small] if small else []) + [(i,) for i in recorded if i not in small]
            for number, indices in enumerate(groups):
                entry = tuple(shapes[i] for i in indices)
                capacity = int(np.clip(RING_BYTES // (_nbytes(entry) + 16), _LEAST, _MOST))
                self.layouts[f"{hook}/{number}"] = Layout(hook, indices, capacity)
                self._shapes[f"{hook}/{number}"] = entry

    def empty(self) -> dict[str, Ring]:
        """Makes the rings with nothing in them; in a program."""
        out = {}
        for name, layout in self.layouts.items():
            n = layout.capacity + 1  # what does not count is written behind the last entry
            column = jnp.zeros((n,), jnp.int32)
            stack = jax.tree.map(lambda s, n=n: jnp.zeros((n, *s.shape), s.dtype), self._shapes[name])
            out[name] = Ring(jnp.zeros((), jnp.int32), Entry(column, column, column, column), stack)
        return out

    def append(
        self, rings: dict[str, Ring], hook: str, at: Entry, actions: tuple[Action, ...], ok: Any
    ) -> dict[str, Ring]:
        """Writes a moment's recorded actions into their rings."""
        out = dict(rings)
        for name, layout in self.layouts.items():
            if layout.hook == hook:
                group = tuple(actions[i] for i in layout.indices)
                out[name] = rings[name].append(at, group, any_fires(group) & ok)
        return out

    def have_room(self, rings: dict[str, Ring]) -> Array:
        """Whether every ring can take one more entry of each kind that a boundary and a step write."""
        room = jnp.ones((), bool)
        for name, layout in self.layouts.items():
            room = room & (rings[name].count < layout.capacity)
        return room

    def read(self, rings: dict[str, Ring]) -> Iterator[Record]:
        """Reads fetched rings (host): every action that fired, in order."""
        rows: list[tuple[int, int, Record]] = []
        for name, layout in self.layouts.items():
            ring = rings[name]
            for entry in range(int(ring.count)):
                at = jax.tree.map(lambda x, e=entry: int(x[e]), ring.at)
                for index, action in zip(layout.indices, ring.actions, strict=True):
                    if np.any(action.when[entry]):
                        own = jax.tree.map(lambda x, e=entry: x[e], action)
                        rows.append((at.seq, index, Record(own, layout.hook, at.step, at.epoch, at.batch)))
        rows.sort(key=lambda row: row[:2])
        return (record for _, _, record in rows)


def any_fires(actions: tuple[Action, ...]) -> Array:
    """Whether any of the actions fires for any member, bool ()."""
    fires = jnp.zeros((), bool)
    for action in actions:
        fires = fires | jnp.any(action.when)
    return fires


def _nbytes(shapes: Any) -> int:
    return sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
