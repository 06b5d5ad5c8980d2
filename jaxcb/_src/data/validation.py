"""Validation sets: rows on the devices, and batches that the host feeds."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxcb._src.data.inputs import ValidationConfig, are_arrays, as_arrays, copied, named_sets
from jaxcb._src.data.resident import fits_on_device
from jaxcb._src.data.sources import BATCH_SIZE, Source, sequential_source
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.pytree import dtype_on_device, on_device

__all__ = ["BATCH_SIZE", "HostSet", "ResidentSet", "validation_sets"]


class ResidentSet(NamedTuple):
    """Rows that stay on the devices; `arrays` is None for a validation of the train state alone."""

    arrays: Any
    rows: int
    batch_size: int

    @property
    def layout_key(self) -> tuple[int, int]:
        """What a program knows of the rows besides their shapes."""
        return self.rows, self.batch_size

    @property
    def example(self) -> Any:
        """The shapes of a batch."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype), self.arrays)


class HostSet:
    """Validation batches that the host feeds; iterated again at each validation.

    Args:
        source: where the batches come from.
        steps: maximum number of batches; None for all.

    Raises:
        DataError: for a generator or empty data.
    """

    layout_key = ()  # a program knows nothing of batches that the host feeds besides their shapes

    def __init__(self, source: Source, steps: int | None) -> None:
        if source.is_generator:
            raise DataError(
                f"{source.what} is a {source.kind}, which is exhausted after one validation. Pass a list of its "
                "batches, or something that can be iterated again."
            )
        self._source, self._steps = source, steps
        first = next(source.iterate(0, {}), None)
        if first is None:
            raise DataError(f"{source.what} is empty: it gave no batch.")
        batch, _ = as_arrays(first, f"the first batch of {source.what}")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype_on_device(x)), batch)

    def __iter__(self) -> Iterator[Any]:
        number, what = 0, self._source.what
        batches = itertools.islice(self._source.iterate(0, {}), self._steps)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except BaseException as error:
                error.add_note(f"This happened while batch {number + 1} of {what} was pulled.")
                raise
            number += 1
            yield copied(as_arrays(batch, f"batch {number} of {what}")[0])
        if number == 0:
            raise DataError(f"{what} gave no batch when it was iterated again; its __iter__ must start again.")


def validation_sets(
    config: ValidationConfig,
    *,
    like: Any = None,
    placement: Placement = ONE_DEVICE,
    processes: Processes = SINGLE_PROCESS,
    say: Callable[[str], None] | None = None,
) -> dict[str, ResidentSet | HostSet]:
    """Returns the validation sets by the prefix of their metrics.

    Args:
        config: the data, and how it becomes batches.
        like: a training batch, to tell a named set from a batch that is a dict; None if there is none.
        placement: shardings of the batches.
        processes: of the run.
        say: prints a line.
    """
    if config.of_state:
        return {"val_": ResidentSet(None, 1, 1)}
    steps, size = config.steps, config.batch_size or BATCH_SIZE
    sets: dict[str, ResidentSet | HostSet] = {}
    for prefix, one_set in named_sets(config.data, like=like).items():
        what = f"validation_data ({prefix.rstrip('_')})"
        if are_arrays(one_set):
            one_set, rows = as_arrays(one_set, what)
            rows = rows if steps is None else min(rows, steps * size)
            one_set = jax.tree.map(lambda x, rows=rows: x[:rows], one_set)
            if fits_on_device(one_set, what, config.resident, placement=placement, processes=processes, say=say):
                sets[prefix] = ResidentSet(jax.tree.map(on_device, one_set), rows, min(size, rows))
                continue
        sets[prefix] = HostSet(sequential_source(one_set, what, size, placement), steps)
    return sets
