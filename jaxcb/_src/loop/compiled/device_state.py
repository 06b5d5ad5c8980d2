"""`DeviceState`: the loop state between two dispatches, with all its single numbers in one vector."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from jaxcb._src.loop.compiled.record_buffer import PACKED_DTYPES, as_packed
from jaxcb._src.loop.compiled.state import LoopState


class _Own:
    """Marks a leaf that has an array of its own."""


class _Frozen:
    """Marks a frozen parameter."""


class StateForm(NamedTuple):
    """The structure of a loop state, and which of its leaves are single numbers.

    Attributes:
        tree: the structure.
        numbers: for each leaf its dtype if it is a number in the vector; None for an array of its own, and `_Frozen`
            for a frozen parameter.
    """

    tree: Any
    numbers: tuple[Any, ...]

    @classmethod
    def of(cls, carry: LoopState, *, in_blocks: bool = False) -> "StateForm":
        """Returns the form of a loop state, of arrays or of shapes.

        Args:
            carry: the loop state.
            in_blocks: whether what every step changes is in the vector, too. Otherwise it has arrays of its own, since
                a step that writes the complete vector is slower on a CPU. A block masks each step, and each number
                that it masks by itself would be a kernel of a GPU.
        """

        def dtype(x: Any) -> Any:
            return _Own() if x.shape or x.dtype.name not in PACKED_DTYPES else x.dtype

        marked = jax.tree.map(dtype, carry)
        if not in_blocks:
            marked = marked.replace(train=jax.tree.map(lambda _: _Own(), carry.train), step=_Own())
        frozen = jax.tree.map(lambda _: _Frozen, carry.train.frozen)
        marked = marked.replace(train=marked.train.replace(frozen=frozen))
        numbers = tuple(None if isinstance(x, _Own) else x for x in jax.tree.leaves(marked))
        return cls(jax.tree.structure(carry), numbers)

    @property
    def dtypes(self) -> list[Any]:
        """The dtypes of the numbers in the vector."""
        return [dtype for dtype in self.numbers if dtype is not None and dtype is not _Frozen]

    def split(self, leaves: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Splits leaves of the loop state into numbers, arrays and frozen parameters."""
        found: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        for leaf, kind in zip(leaves, self.numbers, strict=True):
            found[_part_of(kind)].append(leaf)
        return found

    def join(self, numbers: list[Any], arrays: list[Any], frozen: Sequence[Any]) -> LoopState:
        """Inverts `split`, and returns the loop state."""
        parts = [list(reversed(part)) for part in (numbers, arrays, frozen)]
        return jax.tree.unflatten(self.tree, [parts[_part_of(kind)].pop() for kind in self.numbers])

    def changed(self, change: Callable[[LoopState], LoopState]) -> "StateForm":
        """Returns the form with other static fields."""
        some = jax.tree.unflatten(self.tree, range(len(self.numbers)))
        return self._replace(tree=jax.tree.structure(change(some)))


def _part_of(kind: Any) -> int:
    return 1 if kind is None else 2 if kind is _Frozen else 0


class DeviceState(NamedTuple):
    """The loop state between dispatches, as flat leaves: the vector of all numbers, then the arrays.

    Flattening the state of a large model on each dispatch would cost more than a small step. Each array that a program
    takes or returns costs host time, and each number that it changes is a kernel to compile and to run; so numbers
    share a vector.

    Frozen parameters are apart, because they are arguments of the programs and not part of what these return.
    """

    leaves: list[Any]
    form: StateForm
    frozen: tuple[Any, ...] = ()

    @classmethod
    def of(cls, carry: LoopState) -> "DeviceState":
        """Packs a loop state. Waits for its numbers."""
        form = StateForm.of(carry)
        numbers, arrays, frozen = form.split(jax.tree.leaves(carry))
        words = [np.asarray(x) for x in numbers]
        vector = np.stack([x.astype(np.int32) if x.dtype == np.bool_ else x.view(np.int32) for x in words])
        return cls([_like(vector, numbers[0]), *arrays], form, tuple(frozen))

    def carry(self) -> LoopState:
        """Unpacks the loop state. Waits for the last dispatch; the next one donates the arrays."""
        vector, *arrays = self.leaves
        words, dtypes = np.asarray(vector), self.form.dtypes
        numbers = [
            np.asarray(x != 0) if dtype == np.bool_ else x.view(dtype) for x, dtype in zip(words, dtypes, strict=True)
        ]
        return self.form.join([_like(x, vector) for x in numbers], arrays, self.frozen)

    def shapes(self) -> LoopState:
        """Returns the shapes of the loop state, with its static fields. Does not wait."""
        arrays, frozen = ([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs] for xs in (self.leaves[1:], self.frozen))
        return self.form.join([jax.ShapeDtypeStruct((), dtype) for dtype in self.form.dtypes], arrays, frozen)


def _from_packed(word: Array, dtype: Any) -> Array:
    """Inverts `as_packed`."""
    return word != 0 if dtype == np.bool_ else jax.lax.bitcast_convert_type(word, dtype)


def _like(value: Any, like: Any) -> Array:
    """Puts a host array on the devices of another one, replicated if that one is."""
    if isinstance(like.sharding, NamedSharding):
        # no `device_put`: with several processes it would compare the value among them
        return jax.make_array_from_callback(np.shape(value), like.sharding, lambda _: np.asarray(value))
    return jax.device_put(value, like.sharding if like.committed else None)


class StatePacking:
    """Packs and unpacks a loop state inside a program, and runs branches and loops on the packed state.

    A branch or loop body then writes one vector for all numbers that it changes; each number of its own would be a
    kernel, and each one it passes through a copy. Numbers that were unpacked and not changed cost nothing, which is
    known by the identity of their tracers. Make one for each trace.

    The frozen parameters are in each unpacked state. Branches and loops close over them, so that no loop carries them.

    Args:
        form: the form of the state.
        frozen: the frozen parameters.
    """

    def __init__(self, form: StateForm, frozen: Sequence[Any] = ()) -> None:
        self.form, self._frozen = form, frozen
        self._known: dict[int, tuple[Any, Any, int]] = {}  # id of a number -> number, its vector, its place there
        dtypes = form.dtypes

        def numbers(vector: Array) -> list[Array]:
            words = jax.lax.split(vector, (1,) * len(dtypes))
            return [_from_packed(jax.lax.squeeze(w, (0,)), dtype) for w, dtype in zip(words, dtypes, strict=True)]

        self._numbers = jax.jit(numbers)  # traced once, for all branches and loop bodies

    def unpack(self, leaves: list[Any]) -> LoopState:
        """Returns the loop state. Traced."""
        vector, *arrays = leaves
        numbers = self._numbers(vector)
        self._known |= {id(number): (number, vector, place) for place, number in enumerate(numbers)}
        return self.form.join(numbers, arrays, self._frozen)

    def pack(self, carry: LoopState) -> list[Any]:
        """Returns the packed leaves. Traced."""
        leaves, tree = jax.tree.flatten(carry)
        if tree != self.form.tree:
            raise TypeError(f"the run's state changed its structure from {self.form.tree} to {tree}.")
        numbers, arrays, _ = self.form.split(leaves)
        origins = [self._known.get(id(number)) for number in numbers]
        vector = next((origin[1] for origin in origins if origin is not None), None)
        places = jax.lax.iota(jnp.int32, len(numbers))
        packed = jax.lax.full_like(places, 0) if vector is None else vector
        # A chain of selects, although `select_n` would be one operation: XLA then rounds some sums of a block otherwise
        # than those of a loop without blocks. The operations are those of `jax.lax`, which trace in half of the time.
        for place, (number, origin) in enumerate(zip(numbers, origins, strict=True)):
            assert number.shape == ()
            if origin is None or origin[1] is not vector or origin[2] != place:
                word = jax.lax.broadcast(as_packed(number), places.shape)
                packed = jax.lax.select(jax.lax.eq(places, np.full(places.shape, place, np.int32)), word, packed)
        return [packed, *arrays]

    def cond(self, predicate: Any, fn: Callable[..., Any], carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
        """Returns `fn(carry, rings)` if the predicate holds, otherwise the given ones. Traced."""

        def run(leaves: list[Any], rings: Any) -> tuple[list[Any], Any]:
            new, rings = fn(self.unpack(leaves), rings)
            return self.pack(new), rings

        leaves, rings = jax.lax.cond(predicate, run, lambda *same: same, self.pack(carry), rings)
        return self.unpack(leaves), rings

    def block(self, count: int, body: Callable[..., Any], carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
        """Repeats `body(carry, rings)`, a step that masks itself, a fixed number of times. Traced."""
        # XLA dissolves a loop of one trip, and would fuse what packs and unpacks the numbers with the step
        packing = self if count == 1 else StatePacking(StateForm.of(carry, in_blocks=True), self._frozen)

        def step(_: Any, loop: Any) -> Any:
            new, rings = body(packing.unpack(loop[0]), loop[1])
            return packing.pack(new), rings

        leaves, rings = jax.lax.fori_loop(0, count, step, (packing.pack(carry), rings))
        return packing.unpack(leaves), rings

    def while_loop(
        self, more: Callable[..., Any], body: Callable[..., Any], carry: LoopState, rings: Any, *further: Any
    ) -> tuple[Any, ...]:
        """Repeats `body(carry, rings, *further)`, which returns the same, as long as `more` of these holds. Traced."""

        def step(loop: Any) -> Any:
            leaves, *rest = loop
            new, *rest = body(self.unpack(leaves), *rest)
            return self.pack(new), *rest

        leaves, *rest = jax.lax.while_loop(
            lambda loop: more(self.unpack(loop[0]), *loop[1:]), step, (self.pack(carry), rings, *further)
        )
        return self.unpack(leaves), *rest
