"""What users give as data: which kind it is, and whether it can be trained on."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcb._errors import DataError
from jaxcb._paths import leaf_name

_ENDLESS = (itertools.count, itertools.cycle)


def is_array(x: Any) -> bool:
    """Whether x is a numpy or jax array, or what numpy takes for one, such as a torch tensor."""
    return isinstance(x, np.ndarray | jax.Array) or (hasattr(x, "__array__") and hasattr(x, "shape"))


def are_arrays(data: Any) -> bool:
    """Whether data is a pytree of arrays to be cut into batches. A list is an iterable of batches."""
    return not isinstance(data, list | Iterator) and any(is_array(x) for x in jax.tree.leaves(data))


def rows_of(tree: Any, what: str) -> int:
    """Returns the common number of rows (leading axis) of a pytree of arrays.

    Raises:
        DataError: naming the leaves that differ, or where there are no rows.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    if not leaves:
        raise DataError(f"{what} holds no arrays.")
    lengths = {}
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise DataError(
                f"{what}: {leaf_name(path) or 'the array'} is a scalar; every array needs a leading axis of rows."
            )
        lengths[leaf_name(path)] = np.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name or 'array'}: {n}" for name, n in lengths.items())
        raise DataError(f"{what}: the arrays have different numbers of rows ({listed}); they must be equal.")
    rows = next(iter(lengths.values()))
    if rows == 0:
        raise DataError(f"{what} is empty: its arrays have 0 rows.")
    return rows


def is_one_shot(data: Any) -> bool:
    """Whether data can be walked only once, as a generator."""
    return isinstance(data, Iterator)


def named_sets(validation_data: Any, default: str = "val_") -> dict[str, Any]:
    """Returns validation sets by the prefix of their metrics: `{"wiki": data}` gives `val_wiki_`."""
    if validation_data is None:
        return {}
    if isinstance(validation_data, Mapping) and not any(is_array(v) for v in validation_data.values()):
        if not validation_data:
            raise DataError("validation_data is an empty dict.")
        return {f"{default}{name}_": data for name, data in validation_data.items()}
    return {default: validation_data}


def check_iterable(data: Any, what: str) -> None:
    """Requires an iterable of batches."""
    if isinstance(data, Iterable):
        return
    raise DataError(
        f"{what} is a {type(data).__name__}, expected a pytree of arrays such as (x, y) or {{'image': x, 'label': y}}, "
        "or an iterable of batches."
    )


def check_walkable(data: Any, *, epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> None:
    """Refuses, before the first step, a stream that would end too early or never."""
    if steps_per_epoch is not None:
        return
    if isinstance(data, _ENDLESS):
        if steps is None:
            raise DataError(
                "train_data is an endless stream, so an epoch of it never ends: pass steps_per_epoch=, or steps= and "
                "steps_per_epoch=."
            )
        return
    if is_one_shot(data) and steps is None and epochs is not None and epochs > 1:
        raise DataError(
            f"train_data is a {type(data).__name__}, which can be walked only once, but epochs={epochs}: it would "
            "be used up after the first epoch, or never end. Pass something that can be iterated again (a list, a "
            "dataset, an object whose __iter__ starts anew), or steps_per_epoch= to cut one long stream into epochs."
        )


def as_arrays(tree: Any, what: str) -> tuple[Any, int]:
    """Returns a pytree as numpy and jax arrays, and their common number of rows.

    Raises:
        DataError: naming the leaf that no device can hold, or those whose rows differ.
    """
    arrays = jax.tree.map(lambda x: x if isinstance(x, np.ndarray | jax.Array) else np.asarray(x), tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if isinstance(leaf, np.ndarray) and (leaf.dtype.kind in "USOMm" or leaf.dtype.names):
            raise DataError(
                f"{what}: {leaf_name(path) or 'the array'} has dtype {leaf.dtype}, which no device can hold; expected "
                "numbers."
            )
    return arrays, rows_of(arrays, what)
