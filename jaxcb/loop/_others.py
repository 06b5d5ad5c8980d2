"""Data sets of other libraries: what they want beyond being walked.

Nothing is imported here that the user has not imported.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any


def is_table(data: Any) -> bool:
    """Whether data is a Hugging Face `Dataset`: rows to be cut into batches, and no iterable of batches."""
    return _is(data, "datasets", "Dataset")


def as_numpy(table: Any) -> Any:
    """Returns a Hugging Face `Dataset` whose rows come as arrays; a transform of the user's own is kept."""
    if table.format["type"] in ("numpy", "custom"):
        return table
    return table.with_format("numpy", columns=table.format["columns"])


def walk(data: Any, number: int) -> Iterator[Any]:
    """Starts pass `number`, from 0, over an iterable of batches, in an order of its own where the data set has one."""
    if _is(data, "grain", "MapDataset"):
        return iter(_grain_pass(data, number))
    if _is(data, "datasets", "IterableDataset") and getattr(data, "_formatting", None) is None:
        data = data.with_format("numpy")  # else it gives lists
    for part in _told(data):
        part.set_epoch(number)
    return iter(data)


def _grain_pass(data: Any, number: int) -> Iterable[Any]:
    """A `MapDataset` draws a new order each time it repeats, but the same one each time it is walked."""
    if number == 0:
        return data
    return data.repeat(number + 1)[number * len(data) :]


def _told(data: Any) -> list[Any]:
    """Who is to know which pass begins: those with `set_epoch`, as PyTorch's distributed samplers have it."""
    batches = getattr(data, "batch_sampler", None)
    parts = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    parts = (*parts, getattr(data, "dataset", None))
    return list({id(part): part for part in parts if callable(getattr(part, "set_epoch", None))}.values())


def is_endless(data: Any) -> bool:
    """Whether data says of itself that it never ends."""
    if _is(data, "grain", "MapDataset"):
        return len(data) == sys.maxsize
    if _is(data, "grain", "IterDataset"):
        return "Limit" not in type(data).__name__ and any(is_endless(parent) for parent in data.parents)
    if _is(data, "grain", "DataLoader"):
        return getattr(getattr(data, "_sampler", None), "_num_epochs", 0) is None
    if callable(getattr(data, "cardinality", None)):  # of `tf.data`, which has -1 for it
        return int(data.cardinality()) == -1
    return False


def _is(data: Any, module: str, name: str) -> bool:
    """Whether data is of a class of a library that is in use."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(data, cls)
