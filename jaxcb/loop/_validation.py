"""Validation batches that the host feeds."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._errors import DataError
from jaxcb.loop._data import as_batch, check_iterable, is_one_shot


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
                f"{what} is a {type(data).__name__}, which is used up after one validation. Pass a list of its batches, or "
                "something that can be iterated again."
            )
        self._data, self._steps, self._what = data, steps, what
        first = next(iter(data), None)
        if first is None:
            raise DataError(f"{what} is empty: it gave no batch.")
        batch, _ = as_batch(first, f"the first batch of {what}")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(itertools.islice(iter(self._data), self._steps)):
            yield jax.device_put(as_batch(batch, f"batch {number + 1} of {self._what}")[0])
