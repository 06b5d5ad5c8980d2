"""Rings: how the records of a stretch of steps travel to the host in one piece."""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._actions import Action, HostAction, LogAction, Stop
from jaxcb._struct import Struct
from jaxcb.loop._packing import Packing

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
    rows: dict[str, Any]  # packed `(Entry, actions)`, each (capacity, width)

    def append(self, row: dict[str, Array], fired: Array) -> "Ring":
        """Writes an entry; it counts only where `fired`, else the next one overwrites it."""

        def write(rows: Array, value: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(rows, value, self.count, 0)

        return Ring(self.count + fired.astype(jnp.int32), jax.tree.map(write, self.rows, row))


class Layout(NamedTuple):
    """One ring's place: which actions of which hook, and how many entries fit.

    A request's ring holds its answers, as many as they are, all under its index.
    """

    hook: str
    indices: tuple[int, ...]
    capacity: int
    request: int | None = None


class Record(NamedTuple):
    """One action that fired, on the host, with concrete arrays."""

    action: Any
    hook: str
    step: int
    epoch: int
    batch: int


Answer = Callable[[Any], tuple[Action, ...]]  # computes what a request stands for


class Rings:
    """The rings of a program.

    Args:
        actions: the shapes of each hook's actions.
        answers: hook -> index of each request among its actions -> the shapes of its answers.
    """

    def __init__(
        self,
        actions: Mapping[str, tuple[Any, ...]],
        answers: Mapping[str, Mapping[int, tuple[Any, ...]]] | None = None,
    ) -> None:
        self.layouts: dict[str, Layout] = {}
        self._shapes: dict[str, Any] = {}
        self._packings: dict[str, Packing] = {}
        for hook, shapes in actions.items():
            asked = (answers or {}).get(hook, {})
            recorded = [
                i for i, a in enumerate(shapes) if isinstance(a, LogAction | HostAction | Stop) and i not in asked
            ]
            small = tuple(i for i in recorded if _nbytes(shapes[i]) <= _LARGE)
            groups = ([small] if small else []) + [(i,) for i in recorded if i not in small]
            for number, indices in enumerate(groups):
                self._add(f"{hook}/{number}", hook, indices, tuple(shapes[i] for i in indices))
            for index, own in asked.items():
                if own:
                    self._add(f"{hook}/asked/{index}", hook, (index,) * len(own), own, index)

    def _add(
        self, name: str, hook: str, indices: tuple[int, ...], entry: tuple[Any, ...], request: int | None = None
    ) -> None:
        capacity = int(np.clip(RING_BYTES // (_nbytes(entry) + 16), _LEAST, _MOST))
        self.layouts[name] = Layout(hook, indices, capacity, request)
        self._shapes[name] = entry
        word = jax.ShapeDtypeStruct((), jnp.int32)
        self._packings[name] = Packing((Entry(word, word, word, word), entry))

    def empty(self) -> dict[str, Ring]:
        """Makes the rings with nothing in them; in a program."""
        # what does not count is written behind the last entry
        return {
            name: Ring(jnp.zeros((), jnp.int32), self._packings[name].empty(layout.capacity + 1))
            for name, layout in self.layouts.items()
        }

    def append(
        self,
        rings: dict[str, Ring],
        hook: str,
        at: Entry,
        actions: tuple[Action, ...],
        ok: Any,
        answer: Answer | None = None,
    ) -> dict[str, Ring]:
        """Writes a moment's recorded actions into their rings; `answer` computes what requests stand for."""
        out = dict(rings)
        for name, layout in self.layouts.items():
            if layout.hook != hook:
                continue
            if layout.request is None:
                group = tuple(actions[i] for i in layout.indices)
                out[name] = rings[name].append(self._packings[name].row((at, group)), any_fires(group) & ok)
                continue
            assert answer is not None
            asked = actions[layout.request]
            fired = any_fires((asked,)) & ok
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self._shapes[name])
            group = jax.lax.cond(fired, lambda a=asked: answer(a), lambda n=nothing: n)
            out[name] = rings[name].append(self._packings[name].row((at, group)), fired)
        return out

    def have_room(self, rings: dict[str, Ring], hooks: Container[str] | None = None) -> Array:
        """Whether every ring, or every one of some hooks, can take one more entry."""
        room = jnp.ones((), bool)
        for name, layout in self.layouts.items():
            if hooks is None or layout.hook in hooks:
                room = room & (rings[name].count < layout.capacity)
        return room

    def read(self, rings: dict[str, Ring]) -> Iterator[Record]:
        """Reads fetched rings (host): every action that fired, in order."""
        rows: list[tuple[int, int, Record]] = []
        for name, layout in self.layouts.items():
            ring = rings[name]
            count = int(ring.count)
            if not count:
                continue
            # copies, as records may be kept, and a part of a ring would keep all of it
            packed = {key: rows[:count].copy() for key, rows in ring.rows.items()}
            column, actions = self._packings[name].unpack(packed)
            at = [Entry(*place) for place in zip(*(c.tolist() for c in jax.tree.leaves(column)), strict=True)]
            for index, stack in zip(layout.indices, actions, strict=True):
                leaves, tree = jax.tree.flatten(stack)
                for entry in np.flatnonzero(stack.when.reshape(count, -1).any(axis=1)).tolist():
                    own = jax.tree.unflatten(tree, [leaf[entry] for leaf in leaves])
                    where = at[entry]
                    rows.append((where.seq, index, Record(own, layout.hook, where.step, where.epoch, where.batch)))
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
