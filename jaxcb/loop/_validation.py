"""Validation sets: rows that stay on the device, and batches that the host feeds."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcb._errors import DataError
from jaxcb.loop._data import are_arrays, as_arrays, check_iterable, is_one_shot, named_sets

BATCH_SIZE = 32  # as in Keras


class ResidentSet(NamedTuple):
    """Rows that stay on the device."""

    arrays: Any
    rows: int
    batch_size: int

    @property
    def example(self) -> Any:
        """The shapes of a batch."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype), self.arrays)


class HostSet:
    """An iterable of validation batches, walked anew at each validation.

    Args:
        data: the iterable.
        steps: at most that many batches; all where None.
        what: its name in errors.
    """

    def __init__(self, data: Any, steps: int | None, what: str) -> None:
        check_iterable(data, what)
        if is_one_shot(data):
            raise DataError(
                f"{what} is a {type(data).__name__}, which is used up after one validation. Pass a list of its "
                "batches, or something that can be iterated again."
            )
        self._data, self._steps, self._what = data, steps, what
        first = next(iter(data), None)
        if first is None:
            raise DataError(f"{what} is empty: it gave no batch.")
        batch, _ = as_arrays(first, f"the first batch of {what}")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)

    def __iter__(self) -> Iterator[Any]:
        number = 0
        for number, batch in enumerate(itertools.islice(iter(self._data), self._steps), 1):
            yield jax.device_put(as_arrays(batch, f"batch {number} of {self._what}")[0])
        if number == 0:
            raise DataError(f"{self._what} gave no batch when it was walked again; its __iter__ must start anew.")


def validation_sets(data: Any, batch_size: int | None, steps: int | None) -> dict[str, ResidentSet | HostSet]:
    """Returns the validation sets by the prefix of their metrics' names."""
    sets: dict[str, ResidentSet | HostSet] = {}
    for prefix, own in named_sets(data).items():
        what = f"validation_data ({prefix.rstrip('_')})"
        if are_arrays(own):
            size = batch_size or BATCH_SIZE
            own, rows = as_arrays(own, what)
            rows = rows if steps is None else min(rows, steps * size)
            arrays = jax.tree.map(lambda x, rows=rows: jnp.asarray(x[:rows]), own)
            sets[prefix] = ResidentSet(arrays, rows, min(size, rows))
        else:
            sets[prefix] = HostSet(own, steps, what)
    return sets
