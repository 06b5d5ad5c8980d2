"""`Packing`: a tree of small arrays as one row, so that many of them move as one."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_TOGETHER = 16  # numbers in one kernel, which looks at each of them for each place
_WORDS = ("int32", "uint32", "float32", "bool")  # what fits a row of int32; other types have rows of their own


class Packing:
    """How trees of one form become rows of few arrays, and come back.

    Every array that a compiled loop carries costs something at each step and at each transfer, however small it is.

    Args:
        shapes: a tree of shapes and dtypes.
    """

    def __init__(self, shapes: Any) -> None:
        leaves, self._tree = jax.tree.flatten(shapes)
        self._shapes = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
        self._names = [dtype.name for _, dtype in self._shapes]  # which numpy spells anew each time
        self._groups: dict[str, list[int]] = {}
        for index in sorted(range(len(leaves)), key=lambda i: leaves[i].size != 1):  # single numbers first
            name = self._names[index]
            self._groups.setdefault("int32" if name in _WORDS else name, []).append(index)

    def empty(self, rows: int) -> dict[str, Array]:
        """Makes room for so many rows; in a program."""
        widths = {name: sum(math.prod(self._shapes[i][0]) for i in own) for name, own in self._groups.items()}
        return {name: jnp.zeros((rows, width), jnp.dtype(name)) for name, width in widths.items()}

    def row(self, tree: Any) -> dict[str, Array]:
        """Packs a tree; in a program."""
        leaves = jax.tree.leaves(tree)
        rows = {}
        for name, own in self._groups.items():
            words = [_words(leaves[i]) for i in own]
            single = [word.reshape(()) for word in words if word.size == 1]
            vectors = [_vector(single[i : i + _TOGETHER]) for i in range(0, len(single), _TOGETHER)]
            rows[name] = jnp.concatenate(vectors + [word.ravel() for word in words if word.size != 1])
        return rows

    def unpack(self, rows: dict[str, np.ndarray]) -> Any:
        """Returns the tree whose leaves have the rows as their leading axis; on the host."""
        leaves: list[Any] = [None] * len(self._shapes)
        for name, own in self._groups.items():
            ends = list(itertools.accumulate(math.prod(self._shapes[i][0]) for i in own))
            for index, start, end in zip(own, [0, *ends[:-1]], ends, strict=True):
                (shape, dtype), own_name = self._shapes[index], self._names[index]
                part = rows[name][:, start:end]
                if own_name in _WORDS:
                    part = part.astype(bool) if own_name == "bool" else np.ascontiguousarray(part).view(dtype)
                leaves[index] = part.reshape(len(part), *shape)
        return jax.tree.unflatten(self._tree, leaves)


def _vector(numbers: list[Array]) -> Array:
    """A vector of single numbers.

    XLA makes one kernel of this and of all that computes them; of a concatenation, one for each of them besides.
    """
    places = jax.lax.iota(jnp.int32, len(numbers))
    out = jnp.broadcast_to(numbers[0], places.shape)
    for place, number in enumerate(numbers[1:], start=1):
        out = jax.lax.select(places == place, jnp.broadcast_to(number, places.shape), out)
    return out


def _words(array: Array) -> Array:
    """An array as one of its group's type, its bits untouched."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.int32)
    if array.dtype in (jnp.float32, jnp.uint32):
        return jax.lax.bitcast_convert_type(array, jnp.int32)
    return array
