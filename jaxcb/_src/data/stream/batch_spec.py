"""The check of batches: structure, shapes and dtypes must be those of the first batch."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.data.inputs import as_arrays
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.epochs import END, Epochs, SourcePosition
from jaxcb._src.utils.errors import DataError

_STACK_BYTES = 32 << 20  # size of a stacked chunk
MOST = 2048  # batches in a chunk


class BatchSpec(NamedTuple):
    """Shapes and dtypes of a validated batch. Equal specs are the same object.

    Attributes:
        leaves: shape and dtype of each array.
        smaller: whether it has fewer rows than the first batch.
        most: batches of a chunk. Fixed, so that chunks of every length run the same program.
    """

    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]
    smaller: bool
    most: int


class BatchValidator:
    """Checks that each batch is like the first one.

    If a batch consists of numpy arrays with structure, shapes and dtypes of the previous batch, nothing else is
    checked: further checks would take longer than a small step.

    Args:
        what: name of the data in errors.
        first: the first batch, of arrays.
        most: batches of a chunk; None to choose by their size.

    Attributes:
        tree: the structure of a batch.
    """

    def __init__(self, what: str, first: Any, most: int | None) -> None:
        leaves, self.tree = jax.tree.flatten(first)
        self._what, self._most = what, most
        self._first = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        self._dtypes = [jax.dtypes.canonicalize_dtype(x.dtype) for x in leaves]
        self._shapes = [x.shape for x in leaves]
        self._spec: BatchSpec | None = None  # spec of the previous batch
        self._specs: dict[BatchSpec, BatchSpec] = {}  # all specs so far

    def placeholder(self) -> BatchSpec:
        """Returns the spec of the first batch."""
        zeros = [np.zeros(x.shape, x.dtype) for x in self._first]
        return self.validate(self.tree.unflatten(zeros), 0, False)[1]

    def validate(self, batch: Any, number: int, new_shapes: bool) -> tuple[list[Any], BatchSpec]:
        """Returns the arrays of a batch and their spec.

        Args:
            batch: as returned by the source.
            number: number of the batch in its epoch, from 1, for errors.
            new_shapes: whether it begins an epoch whose batches may have new shapes.

        Raises:
            DataError: for a batch that is not like the first one.
        """
        form = self._spec
        if form is not None and not new_shapes:
            try:
                leaves = self.tree.flatten_up_to(batch)  # four times as fast as `jax.tree.flatten`
            except ValueError:
                leaves = None
            if leaves is not None and _match(leaves, form):
                return leaves, form
        return self._validate_fully(batch, f"batch {number} of {self._what}", new_shapes)

    def _validate_fully(self, batch: Any, what: str, new_shapes: bool) -> tuple[list[Any], BatchSpec]:
        arrays, rows = as_arrays(batch, what)
        leaves, found = jax.tree.flatten(arrays)
        if found != self.tree:
            raise DataError(f"{what} has the structure {found}, the first one {self.tree}.")
        if new_shapes:
            self._shapes = [x.shape for x in leaves]
        most = self._shapes[0][0]
        for x, dtype, shape in zip(leaves, self._dtypes, self._shapes, strict=True):
            if x.shape[1:] != shape[1:] or rows > most:
                cure = (
                    " No batch may have more rows than the first one: let the loader leave smaller ones out, such as "
                    "with drop_last=True, or begin with a full one."
                )
                raise DataError(
                    f"ragged batches: {what} has an array of shape {x.shape}, the first one {shape}."
                    f"{cure if x.shape[1:] == shape[1:] else ''}"
                )
            if jax.dtypes.canonicalize_dtype(x.dtype) != dtype:
                raise DataError(f"{what} has an array of dtype {x.dtype}, the first one {dtype}.")
        max_batches = 1  # a smaller batch is a chunk of its own
        if rows == most:
            max_batches = self._most or max(1, min(_STACK_BYTES // max(1, sum(x.nbytes for x in leaves)), MOST))
        form = BatchSpec(tuple((x.shape, x.dtype) for x in leaves), rows < most, max_batches)
        self._spec = self._specs.setdefault(form, form)
        return leaves, self._spec


# A checked batch: position after it, spec, arrays. A plain tuple, since one is made per batch. The end of an epoch has
# no spec.
CheckedBatch = tuple[SourcePosition, BatchSpec | None, list[Any] | None]


class CheckedBatches(Iterator[CheckedBatch]):
    """Checks the batches of each epoch, and leaves out smaller ones if they are not trained on.

    Args:
        batches: the batches of the source.
        validator: compares a batch with the first one.
        source: where they come from.
        train_remainder: whether to train on a smaller last batch.
    """

    def __init__(self, batches: Epochs, validator: BatchValidator, source: Source, *, train_remainder: bool) -> None:
        self._batches, self._validate, self._source = batches, validator.validate, source
        self._take = batches.__next__  # faster than `next`, since it is Python that calls Python
        self._train_remainder = train_remainder
        self._has_batch = False  # whether this epoch has had a batch

    def __next__(self) -> CheckedBatch:
        while True:
            batch, position = self._take()
            if batch is END:
                return self._end(position)
            # data that depends on the controls may have new shapes each epoch
            new_shapes = position.batches == 1 and self._source.per_epoch
            leaves, spec = self._validate(batch, position.batches, new_shapes)
            if self._train_remainder or not spec.smaller:
                self._has_batch = True
                return position, spec, leaves

    def get_state(self) -> Mapping[str, Any]:
        """Returns the position after the last batch, as JSON."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._has_batch = state["batches"] > 0
        self._batches.set_state(state)

    def _end(self, position: SourcePosition) -> CheckedBatch:
        if not self._has_batch:
            again = "" if self._source.per_epoch else " when it was iterated again"
            raise DataError(f"{self._source.describe(position.number - 1)} gave no batch{again}.")
        self._has_batch = False
        return position, None, None


def _match(leaves: list[Any], form: BatchSpec) -> bool:
    """Returns whether these are numpy arrays that match a spec."""
    for x, (shape, dtype) in zip(leaves, form.leaves, strict=True):
        if type(x) is not np.ndarray or x.shape != shape or x.dtype != dtype:
            return False
    return True
