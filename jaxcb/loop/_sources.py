"""Sources: where the batches of a stream come from, pass after pass."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcb._errors import DataError
from jaxcb._processes import ALONE, Processes
from jaxcb.loop import _data, _others

BATCH_SIZE = 32  # as in Keras


class Source:
    """An iterable of batches, walked anew each pass.

    Args:
        data: the iterable.
        what: its name in errors.
    """

    follows = False  # whether a pass is an epoch, and is asked for with the controls of its begin
    most: int | None = None  # batches of a pass, where it is to be cut short

    def __init__(self, data: Any, what: str) -> None:
        self.data, self.what = data, what
        self.kind = type(data).__name__
        self.one_shot = _data.is_one_shot(data)

    def walk(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        """Starts pass `number`, from 0."""
        del controls
        return _others.walk(self.data, number)

    def describe(self, number: int) -> str:
        """Names a pass, for errors."""
        return f"pass {number + 1} over {self.what} ({self.kind})"


class Cut(Source):
    """Rows that are cut into batches on the host: arrays, or a Hugging Face `Dataset`.

    Args:
        data: the rows.
        what: their name in errors.
        batch_size: rows of a batch.
        shuffle: whether each pass has its own order, a function of `seed` and its number.
        seed: of the orders.
        processes: of the run, each of which cuts its own part out of each batch.
    """

    def __init__(
        self,
        data: Any,
        what: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(data, what)
        self._size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._processes = processes
        if batch_size % processes.count:
            raise DataError(
                f"{what} is cut into batches of {batch_size} rows, which do not divide over {processes.count} "
                f"processes. Pass batch_size={-(-batch_size // processes.count) * processes.count}."
            )
        if _others.is_table(data):
            table = _others.as_numpy(data)
            self._rows, self._at = len(table), lambda index: table[index]
        else:
            arrays, self._rows = _data.as_arrays(data, what)
            arrays = jax.tree.map(np.asarray, arrays)
            self._at = lambda index: jax.tree.map(lambda x: x[index], arrays)

    def walk(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        del controls
        order = None
        if self._shuffle:
            order = np.random.default_rng([int(self._seed), number]).permutation(self._rows)
        return _Slices(self._at, self._rows, self._size, order, self.describe(number), self._processes)


class _Slices(Iterator[Any]):
    """The batches of a pass over rows. Its state is how many of them it has given."""

    def __init__(
        self,
        at: Callable[[Any], Any],
        rows: int,
        size: int,
        order: np.ndarray | None,
        what: str,
        processes: Processes,
    ) -> None:
        self._at, self._rows, self._size, self._order, self._what = at, rows, size, order, what
        self._index, self._parts = processes.index, processes.count
        self._given = 0

    def __next__(self) -> Any:
        start = self._given * self._size
        if start >= self._rows:
            raise StopIteration
        self._given += 1
        size = min(self._size, self._rows - start)
        if size % self._parts:
            raise DataError(
                f"the last batch of {self._what} has {size} rows, which do not divide over {self._parts} processes. "
                "Leave some rows out."
            )
        own = size // self._parts
        rows = slice(start + self._index * own, start + (self._index + 1) * own)
        return self._at(rows if self._order is None else self._order[rows])

    def get_state(self) -> int:
        return self._given

    def set_state(self, given: int) -> None:
        batches = -(-self._rows // self._size)
        if given > batches:
            raise DataError(ran_out(self._what, batches, given))
        self._given = given


class Asked(Source):
    """A function `(epoch, controls) -> data`, asked at the begin of each epoch.

    Args:
        fn: the function.
        what: its name in errors.
        batch_size: rows of a batch, where it returns arrays or a data set of rows.
        shuffle: whether these get a new order each epoch.
        seed: of the orders.
        steps_per_epoch: at most that many batches of what it returns.
        processes: of the run.
    """

    follows = True

    def __init__(
        self,
        fn: Callable[[int, dict[str, float]], Any],
        what: str,
        *,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        steps_per_epoch: int | None,
        processes: Processes = ALONE,
    ) -> None:
        _check_arguments(fn, what)
        super().__init__(fn, what)
        self.one_shot = False
        self._fn, self.most = fn, steps_per_epoch
        self._cut: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "processes": processes,
        }

    def walk(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        data = self._fn(number, dict(controls))
        what = f"what {self.describe(number)} returned"
        if self.most is None and _data.is_endless(data):
            raise DataError(f"{what} is an endless stream, so its epoch never ends: pass steps_per_epoch=.")
        return source_of(data, what, **self._cut).walk(number, controls)

    def describe(self, number: int) -> str:
        return f"{self.what}(epoch={number}, controls)"


def source_of(
    data: Any, what: str, *, batch_size: int | None, shuffle: bool, seed: int, processes: Processes = ALONE
) -> Source:
    """Returns the source of what a user gave as data. Rows are cut for several processes; a stream is each one's own.

    Raises:
        DataError: for what is no data, and for a batch size that cannot be followed.
    """
    if _data.are_arrays(data) or _others.is_table(data):
        size = batch_size or BATCH_SIZE
        return Cut(data, what, batch_size=size, shuffle=shuffle, seed=seed, processes=processes)
    _data.check_iterable(data, what)
    _data.check_list(data, what)
    if batch_size is not None:
        raise DataError(
            f"batch_size={batch_size} was given, but {what} is a {type(data).__name__}, an iterable that makes its own "
            "batches. Leave batch_size out, or pass arrays."
        )
    return Source(data, what)


def in_order(data: Any, what: str, batch_size: int, processes: Processes = ALONE) -> Source:
    """Returns the source of what is walked in its own order; `batch_size` is for arrays and rows alone."""
    rows = _data.are_arrays(data) or _others.is_table(data)
    size = batch_size if rows else None
    return source_of(data, what, batch_size=size, shuffle=False, seed=0, processes=processes)


def ran_out(what: str, batches: int, done: int) -> str:
    """Says that data has changed, so that a run cannot go on where it stood."""
    return (
        f"{what} ended after {batches} batches, but {done} of it were done in the run that is to be resumed: the data "
        "has changed. Pass the data that the run began with, or begin anew."
    )


def _check_arguments(fn: Callable[..., Any], what: str) -> None:
    """Requires a function that can be called with the epoch and the controls."""
    if isinstance(fn, type):
        raise TypeError(f"{what} is the class {fn.__name__}, expected an instance of it.")
    try:
        signature = inspect.signature(fn)
    except ValueError:  # a builtin may have none
        return
    try:
        signature.bind(0, {})
    except TypeError:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"{what} is the function {name}{signature}, expected one of (epoch, controls) that returns an epoch's "
            f"data, such as {what}=lambda epoch, controls: batches."
        ) from None
