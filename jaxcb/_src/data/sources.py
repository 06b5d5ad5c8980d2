"""Sources: the batches of a stream, epoch by epoch."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.data import inputs as _data
from jaxcb._src.data import inputs as _others
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.errors import DataError, takes

_SPARE_BITS = 10  # further random bits, so that a tie between two rows happens once in about a thousand epochs
_DATA = 0x64617461  # folded into the seed, so that the data order is independent of the keys of the steps


def key_of(seed: int) -> Array:
    """Returns the PRNG key of the data order."""
    return jax.random.key(seed ^ _DATA)


def draw(key: Array, epoch: Any, rows: int) -> Array:
    """Draws the order of an epoch by sorting rows by random bits. Works traced and untraced."""
    # XLA sorts a single array several times faster than an array with a payload. So each number contains random bits
    # and, below them, the index that it came from. Several such sorts in sequence are a radix sort by all random bits.
    place = max((rows - 1).bit_length(), 1)  # bits of an index
    sorts = -(-(2 * place + _SPARE_BITS) // (32 - place))
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (sorts, rows), jnp.uint32)
    places = jnp.arange(rows, dtype=jnp.uint32)
    order = jnp.arange(rows, dtype=jnp.int32)
    for chosen in bits:
        came_from = jax.lax.sort((chosen << place) | places) & ((1 << place) - 1)
        order = order.at[came_from].get(mode="promise_in_bounds")
    return order


def drawn(key: Array, epoch: int, rows: int) -> np.ndarray:
    """Draws the order of an epoch as a numpy array."""
    return np.asarray(_drawn(key, np.int32(epoch), rows))


_drawn = partial(jax.jit, static_argnums=2)(draw)


BATCH_SIZE = 32  # as in Keras


class Source:
    """An iterable of batches that is iterated once per epoch.

    Args:
        data: the iterable.
        what: its name in errors.
    """

    per_epoch = False  # whether the data of an epoch depends on the controls at its begin
    most: int | None = None  # maximum number of batches per iteration
    batches: int | None = None  # number of batches per iteration, if known

    def __init__(self, data: Any, what: str) -> None:
        self.data, self.what = data, what
        self.kind = type(data).__name__
        self.is_generator = _data.is_one_shot(data)

    def iterate(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        """Starts iteration `number`, from 0."""
        del controls
        return _others.walk(self.data, number)

    def describe(self, number: int) -> str:
        """Returns the name of an iteration, for errors."""
        return f"pass {number + 1} over {self.what} ({self.kind})"


class ArraySource(Source):
    """Cuts rows into batches on the host: arrays, or a Hugging Face `Dataset`.

    Args:
        data: the rows.
        what: their name in errors.
        batch_size: rows of a batch.
        shuffle: whether each epoch has its own order, a function of `seed` and its number.
        seed: seed of the orders.
        remainder: whether an epoch has a smaller last batch.
        most: maximum number of batches per epoch.
        placement: shardings of the batches; each process cuts out its own part.

    Raises:
        DataError: for batches that do not divide over the devices.
    """

    def __init__(
        self,
        data: Any,
        what: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        remainder: bool = True,
        most: int | None = None,
        placement: Placement = ONE_DEVICE,
    ) -> None:
        super().__init__(data, what)
        if _others.is_table(data):
            table = _others.as_numpy(data)
            rows, self._at = len(table), lambda index: table[index]
        else:
            arrays, rows = _data.as_arrays(data, what)
            arrays = jax.tree.map(np.asarray, arrays)
            self._at = lambda index: jax.tree.map(lambda x: x[index], arrays)
        size = self._size = min(batch_size, rows)
        self._rows, self._key = rows, key_of(int(seed)) if shuffle else None
        batches = batches_in(rows, batch_size, what, remainder=remainder)
        if most is not None:
            batches = min(batches, most)
        self.batches, self._end, self._share = batches, min(batches * size, rows), placement.share
        if self._share[1] > 1:  # no process has the rows of another one, so that every batch must divide
            placement.check_batch(size)
            smaller = self._end % size
            if smaller and not placement.divides(smaller):
                raise DataError(
                    f"{what} has {rows} rows: the last batch of {smaller} does not divide over "
                    f"{placement.parts} devices. Pass Execution(drop_remainder=True), or leave some rows out."
                )

    def iterate(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        del controls
        order = None if self._key is None else drawn(self._key, number, self._rows)
        return _BatchIterator(self._at, self._end, self._size, order, self.describe(number), self._share)


class _BatchIterator(Iterator[Any]):
    """Iterates over the batches of an epoch. Its state is the number of batches done."""

    def __init__(
        self,
        at: Callable[[Any], Any],
        rows: int,
        size: int,
        order: np.ndarray | None,
        what: str,
        share: tuple[int, int],
    ) -> None:
        self._at, self._rows, self._size, self._order, self._what = at, rows, size, order, what
        self._index, self._parts = share
        self._given = 0

    def __next__(self) -> Any:
        start = self._given * self._size
        if start >= self._rows:
            raise StopIteration
        self._given += 1
        share = min(self._size, self._rows - start) // self._parts
        rows = slice(start + self._index * share, start + (self._index + 1) * share)
        return self._at(rows if self._order is None else self._order[rows])

    def get_state(self) -> int:
        return self._given

    def set_state(self, given: int) -> None:
        batches = -(-self._rows // self._size)
        if given > batches:
            raise DataError(ran_out(self._what, batches, given))
        self._given = given


class CallableSource(Source):
    """Calls a function `(epoch, controls) -> data` at the begin of each epoch.

    Args:
        fn: the function.
        what: its name in errors.
        batch_size: rows of a batch, if it returns arrays or a table.
        shuffle: whether to draw a new order of rows each epoch.
        seed: seed of the orders.
        remainder: whether to train on a smaller last batch.
        steps_per_epoch: maximum number of batches per epoch.
        placement: shardings of the batches.
    """

    per_epoch = True

    def __init__(
        self,
        fn: Callable[[int, dict[str, float]], Any],
        what: str,
        *,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        remainder: bool = True,
        steps_per_epoch: int | None,
        placement: Placement = ONE_DEVICE,
    ) -> None:
        _check_arguments(fn, what)
        super().__init__(fn, what)
        self.is_generator = False
        self._fn, self.most = fn, steps_per_epoch
        self._cut: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "remainder": remainder,
            "placement": placement,
        }

    def iterate(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        data = self._fn(number, dict(controls))
        what = f"what {self.describe(number)} returned"
        if self.most is None and _data.is_endless(data):
            raise DataError(f"{what} is an endless stream, so its epoch never ends: pass steps_per_epoch=.")
        return source_of(data, what, **self._cut).iterate(number, controls)

    def describe(self, number: int) -> str:
        return f"{self.what}(epoch={number}, controls)"


class FirstBatches(Source):
    """The first batches of another source, kept in memory and the same in each epoch.

    Args:
        source: the other one; its first iteration is read as far as needed.
        number: how many batches.
    """

    def __init__(self, source: Source, number: int) -> None:
        super().__init__(source.data, source.what)
        self.is_generator = False
        self._source, self._number = source, number
        self._kept: list[Any] | None = None

    def iterate(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        if self._kept is None:
            batches = itertools.islice(self._source.iterate(0, controls), self._number)
            self._kept = [_data.copied(batch) for batch in batches]
        return iter(self._kept)


def source_of(
    data: Any,
    what: str,
    *,
    batch_size: int | None,
    shuffle: bool,
    seed: int,
    remainder: bool = True,
    most: int | None = None,
    placement: Placement = ONE_DEVICE,
) -> Source:
    """Returns the source for the user's data.

    Rows are cut for each process; a stream must already be that of the process. For the other arguments see
    `ArraySource`; they apply to rows only.

    Raises:
        DataError: for invalid data, or for a batch size with an iterable of batches.
    """
    if _data.are_arrays(data) or _others.is_table(data):
        size = batch_size or BATCH_SIZE
        return ArraySource(
            data,
            what,
            batch_size=size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            most=most,
            placement=placement,
        )
    _data.check_iterable(data, what)
    _data.check_list(data, what)
    if batch_size is not None:
        raise DataError(
            f"batch_size={batch_size} was given, but {what} is a {type(data).__name__}, an iterable that makes its own "
            "batches. Leave batch_size out, or pass arrays."
        )
    return Source(data, what)


def batches_in(rows: int, batch_size: int, what: str, *, remainder: bool) -> int:
    """Returns the number of batches in some rows, with or without a smaller last batch.

    Raises:
        DataError: if there is none.
    """
    if batch_size > rows and not remainder:
        raise DataError(
            f"drop_remainder=True leaves nothing to train on: {what} has {rows} rows, fewer than a batch of "
            f"{batch_size}."
        )
    return -(-rows // batch_size) if remainder else rows // batch_size


def sequential_source(data: Any, what: str, batch_size: int, placement: Placement = ONE_DEVICE) -> Source:
    """Returns the source of data in its own order; `batch_size` applies to arrays and tables only."""
    rows = _data.are_arrays(data) or _others.is_table(data)
    size = batch_size if rows else None
    return source_of(data, what, batch_size=size, shuffle=False, seed=0, placement=placement)


def ran_out(what: str, batches: int, done: int) -> str:
    """Returns the error text for data that has fewer batches than the run to resume."""
    return (
        f"{what} ended after {batches} batches, but the run to resume has trained on {done}: the data "
        "has changed. Pass the original data, or start a new run."
    )


def _check_arguments(fn: Callable[..., Any], what: str) -> None:
    """Checks that a function accepts epoch and controls."""
    if isinstance(fn, type):
        raise TypeError(f"{what} is the class {fn.__name__}, expected an instance of it.")
    if not takes(fn, 0, {}):
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"{what} is the function {name}{inspect.signature(fn)}, expected one of (epoch, controls) that returns an "
            f"epoch's data, such as {what}=lambda epoch, controls: batches."
        )
