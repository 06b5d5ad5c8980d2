"""Fixed-size device buffers that batch log records for one transfer to the host."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.records import RecordPosition
from jaxcb._src.loop.compiled.program_spec import HookSpec
from jaxcb._src.utils.pytree import Struct
from jaxcb._src.writers.run_handle import Record

_SCALARS_PER_KERNEL = 16  # scalars that one kernel joins; its cost is quadratic in them
# dtypes that are bitcast to int32 and share a row; others have rows of their own
PACKED_DTYPES = ("int32", "uint32", "float32", "bool")


class TreePacker:
    """Packs trees of one structure into rows of few arrays, and unpacks them on the host.

    Every array in the state of a compiled loop has a fixed cost per step and per transfer, however small it is.

    Args:
        shapes: a tree of shapes and dtypes.
    """

    def __init__(self, shapes: Any) -> None:
        leaves, self._tree = jax.tree.flatten(shapes)
        self._shapes = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
        self._names = [dtype.name for _, dtype in self._shapes]  # numpy computes `dtype.name` on each access
        self._groups: dict[str, list[int]] = {}
        # scalars first, since they are joined by another kernel
        for index in sorted(range(len(leaves)), key=lambda i: leaves[i].size != 1):
            name = self._names[index]
            self._groups.setdefault("int32" if name in PACKED_DTYPES else name, []).append(index)

    def empty(self, rows: int) -> dict[str, Array]:
        """Returns zeros for this many rows, one after the other. Traced."""
        widths = {name: sum(math.prod(self._shapes[i][0]) for i in indices) for name, indices in self._groups.items()}
        return {name: jnp.zeros(rows * width, jnp.dtype(name)) for name, width in widths.items()}

    def row(self, tree: Any) -> dict[str, Array]:
        """Packs a tree. Traced."""
        leaves = jax.tree.leaves(tree)
        rows = {}
        for name, indices in self._groups.items():
            words = [as_packed(leaves[i]) for i in indices]
            single = [word.reshape(()) if word.shape else word for word in words if word.size == 1]
            vectors = [_vector(single[i : i + _SCALARS_PER_KERNEL]) for i in range(0, len(single), _SCALARS_PER_KERNEL)]
            rows[name] = jnp.concatenate(vectors + [word.ravel() for word in words if word.size != 1])
        return rows

    def unpack(self, rows: dict[str, np.ndarray]) -> Any:
        """Unpacks rows. The leaves have the rows as their leading axis. Runs on the host."""
        leaves: list[Any] = [None] * len(self._shapes)
        for name, indices in self._groups.items():
            ends = list(itertools.accumulate(math.prod(self._shapes[i][0]) for i in indices))
            for index, start, end in zip(indices, [0, *ends[:-1]], ends, strict=True):
                (shape, dtype), dtype_name = self._shapes[index], self._names[index]
                part = rows[name][:, start:end]
                if dtype_name in PACKED_DTYPES:
                    part = part.astype(bool) if dtype_name == "bool" else np.ascontiguousarray(part).view(dtype)
                leaves[index] = part.reshape(len(part), *shape)
        return jax.tree.unflatten(self._tree, leaves)


def _vector(numbers: list[Array]) -> Array:
    """Joins scalars to a vector.

    XLA fuses this with the computation of the scalars into one kernel. A concatenation would need one more kernel for
    each scalar.
    """
    size = len(numbers)
    return jax.lax.select_n(jax.lax.iota(jnp.int32, size), *(jax.lax.broadcast(number, (size,)) for number in numbers))


def as_packed(array: Array) -> Array:
    """Returns an array in the dtype of its group, with the same bits."""
    if array.dtype == jnp.bool_:
        return jax.lax.convert_element_type(array, jnp.int32)
    if array.dtype in (jnp.float32, jnp.uint32):
        return jax.lax.bitcast_convert_type(array, jnp.int32)
    return array


BUFFER_BYTES = 1 << 18  # size of one buffer; a full one ends the dispatch
_LARGE = 1 << 12  # bytes; an action with a larger payload has a buffer of its own
_MOST = 1 << 12  # entries
_LEAST = 2  # one dispatch may pass two epoch ends without a step between them


def buffer_limits() -> tuple[int, ...]:
    """Returns everything that the capacities depend on besides the shapes of the actions."""
    return BUFFER_BYTES, _LARGE, _MOST, _LEAST


class RecordBuffer(Struct):
    """Entries of one structure, oldest first.

    The rows share one vector, since a TPU pads each row of a matrix to 128 numbers: a buffer of short rows would take
    many times its size.
    """

    count: Any  # int32 ()
    rows: dict[str, Any]  # packed positions and arrays of the actions, each (capacity * width,)

    def append(self, row: dict[str, Array], fired: Array) -> "RecordBuffer":
        """Writes an entry. If not `fired`, it does not count, and the next entry overwrites it."""

        def write(rows: Array, value: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, value, self.count * value.size, 0)

        return RecordBuffer(self.count + fired.astype(jnp.int32), jax.tree.map(write, self.rows, row))


class BufferLayout(NamedTuple):
    """Contents of one buffer: actions of one hook, and the capacity.

    Arrays that are always equal are stored once: several loggers of the same numbers cost no more than one.

    The buffer of a lazy log action holds the actions that it computes, all under its index.
    """

    hook: str
    indices: tuple[int, ...]
    capacity: int
    stored: tuple[int, ...]  # for each array of the actions, the index of the array that is stored for it
    request: int | None = None


Materialize = Callable[[Any], tuple[Action, ...]]  # computes the actions of a lazy log action


class RecordBuffers:
    """The record buffers of a program.

    Args:
        hooks: the hooks of the program.
    """

    def __init__(self, hooks: Mapping[str, HookSpec]) -> None:
        self.layouts: dict[str, BufferLayout] = {}
        self._shapes: dict[str, Any] = {}
        self._packings: dict[str, TreePacker] = {}
        for hook, own in hooks.items():
            shapes, recorded = own.actions, own.recorded
            small = tuple(i for i in recorded if _size_in_bytes(shapes[i]) <= _LARGE)
            groups = ([small] if small else []) + [(i,) for i in recorded if i not in small]
            numbers = iter(own.equal)
            numbers = [[next(numbers) for _ in jax.tree.leaves(action)] for action in shapes]
            for number, indices in enumerate(groups):
                entry = tuple(shapes[i] for i in indices)
                self._add(f"{hook}/{number}", hook, indices, entry, [n for i in indices for n in numbers[i]])
            for index, requests in own.answers.items():
                if requests:
                    every = list(range(len(jax.tree.leaves(requests))))
                    self._add(f"{hook}/asked/{index}", hook, (index,) * len(requests), requests, every, index)

    def _add(
        self,
        name: str,
        hook: str,
        indices: tuple[int, ...],
        entry: tuple[Any, ...],
        numbers: list[int],
        request: int | None = None,
    ) -> None:
        """Adds a buffer for actions; arrays with the same number are stored once."""
        first = {number: index for index, number in reversed(list(enumerate(numbers)))}
        stored = tuple(first[number] for number in numbers)
        leaves = jax.tree.leaves(entry)
        distinct = [leaves[i] for i in dict.fromkeys(stored)]
        capacity = int(np.clip(BUFFER_BYTES // (_size_in_bytes(distinct) + 16), _LEAST, _MOST))
        self.layouts[name] = BufferLayout(hook, indices, capacity, stored, request)
        self._shapes[name] = entry
        word = jax.ShapeDtypeStruct((), jnp.int32)
        self._packings[name] = TreePacker((RecordPosition(word, word, word, word), distinct))

    def _row(self, name: str, at: RecordPosition, group: tuple[Action, ...]) -> dict[str, Array]:
        """Packs an entry. Traced."""
        leaves = jax.tree.leaves(group)
        return self._packings[name].row((at, [leaves[i] for i in dict.fromkeys(self.layouts[name].stored)]))

    def _entries(self, name: str, rows: dict[str, np.ndarray]) -> tuple[RecordPosition, tuple[Action, ...]]:
        """Unpacks the entries of a buffer: their positions and actions, stacked. Runs on the host."""
        at, distinct = self._packings[name].unpack(rows)
        stored = self.layouts[name].stored
        leaves = dict(zip(dict.fromkeys(stored), distinct, strict=True))
        return at, jax.tree.unflatten(jax.tree.structure(self._shapes[name]), [leaves[i] for i in stored])

    def empty(self, hooks: Container[str]) -> dict[str, RecordBuffer]:
        """Returns empty buffers for the hooks that a dispatch may run. Traced.

        A buffer that nothing writes would still be filled with zeros, returned, and fetched by the host.
        """
        # one spare row: entries that do not count are written there when the buffer is full
        return {
            name: RecordBuffer(jnp.zeros((), jnp.int32), self._packings[name].empty(layout.capacity + 1))
            for name, layout in self.layouts.items()
            if layout.hook in hooks
        }

    def append(
        self,
        rings: dict[str, RecordBuffer],
        hook: str,
        at: RecordPosition,
        actions: tuple[Action, ...],
        ok: Any,
        answer: Materialize | None = None,
    ) -> dict[str, RecordBuffer]:
        """Writes the recorded actions of a hook call into their buffers.

        Args:
            rings: the buffers.
            hook: name of the hook.
            at: position of the record.
            actions: what the hook returned.
            ok: whether the hook call counts.
            answer: computes lazy log actions; called only for those that fire.
        """
        out = dict(rings)
        for name, layout in self.layouts.items():
            if layout.hook != hook:
                continue
            if layout.request is None:
                group = tuple(actions[i] for i in layout.indices)
                out[name] = rings[name].append(self._row(name, at, group), any_fires(group) & ok)
                continue
            assert answer is not None
            lazy = actions[layout.request]
            fired = any_fires((lazy,)) & ok
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self._shapes[name])
            group = jax.lax.cond(fired, lambda a=lazy: answer(a), lambda n=nothing: n)
            out[name] = rings[name].append(self._row(name, at, group), fired)
        return out

    def have_room(self, rings: dict[str, RecordBuffer], hooks: Container[str] | None = None) -> Array:
        """Returns whether every given buffer, or every one of `hooks`, has room for one more entry."""
        room = jnp.ones((), bool)
        for name, ring in rings.items():
            if hooks is None or self.layouts[name].hook in hooks:
                room = room & (ring.count < self.layouts[name].capacity)
        return room

    def capacity_of(self, hooks: Container[str]) -> int:
        """Returns the entries for which every buffer of these hooks has room."""
        return min((layout.capacity for layout in self.layouts.values() if layout.hook in hooks), default=_MOST)

    def read(self, rings: dict[str, RecordBuffer]) -> Iterator[Record]:
        """Yields every action that fired, in order, from fetched buffers. Runs on the host."""
        rows: list[tuple[int, int, Record]] = []
        for name, layout in self.layouts.items():
            if name not in rings:
                continue
            buffer = rings[name]
            count = int(buffer.count)
            if not count:
                continue
            # copies: a record that is kept must not keep the complete buffer alive
            packed = {key: rows.reshape(layout.capacity + 1, -1)[:count].copy() for key, rows in buffer.rows.items()}
            column, actions = self._entries(name, packed)
            at = [RecordPosition(*place) for place in zip(*(c.tolist() for c in jax.tree.leaves(column)), strict=True)]
            for index, stack in zip(layout.indices, actions, strict=True):
                leaves, tree = jax.tree.flatten(stack)
                for entry in np.flatnonzero(stack.when.reshape(count, -1).any(axis=1)).tolist():
                    action = jax.tree.unflatten(tree, [leaf[entry] for leaf in leaves])
                    where = at[entry]
                    rows.append((where.seq, index, Record(action, layout.hook, where.step, where.epoch, where.batch)))
        rows.sort(key=lambda row: row[:2])
        return (record for _, _, record in rows)


def any_fires(actions: tuple[Action, ...]) -> Array:
    """Returns whether any action fires for any member, bool ()."""
    fires = {id(a.when): jnp.any(a.when) if jnp.ndim(a.when) else a.when for a in actions}
    return functools.reduce(operator.or_, fires.values()) if fires else jnp.zeros((), bool)


def _size_in_bytes(shapes: Any) -> int:
    return sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
