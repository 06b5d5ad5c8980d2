"""What users give as data: which kind it is, and whether it can be trained on."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.leaf_names import leaf_name
from jaxcb._src.utils.validate import check_between


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


def repeats_for_ever(data: Any) -> bool:
    """Whether data says of itself that it never ends."""
    if _is(data, "grain", "MapDataset"):
        return len(data) == sys.maxsize
    if _is(data, "grain", "IterDataset"):
        return "Limit" not in type(data).__name__ and any(repeats_for_ever(parent) for parent in data.parents)
    if _is(data, "grain", "DataLoader"):
        return getattr(getattr(data, "_sampler", None), "_num_epochs", 0) is None
    if callable(getattr(data, "cardinality", None)):  # of `tf.data`, which has -1 for it
        return int(data.cardinality()) == -1
    return False


def _is(data: Any, module: str, name: str) -> bool:
    """Whether data is of a class of a library that is in use."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(data, cls)


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


def is_endless(data: Any) -> bool:
    """Whether data is known never to end."""
    return isinstance(data, _ENDLESS) or repeats_for_ever(data)


def named_sets(validation_data: Any, default: str = "val_", *, like: Any = None) -> dict[str, Any]:
    """Returns validation sets by the prefix of their metrics: `{"wiki": data}` gives `val_wiki_`.

    A dict names sets, unless it is itself a set: where `like`, a training batch, is a dict of the same names. Without
    one, a dict with arrays in it is a set.
    """
    if validation_data is None:
        return {}
    if isinstance(validation_data, Mapping):
        if not validation_data:
            raise DataError("validation_data is an empty dict.")
        if like is None:
            is_set = any(is_array(v) for v in validation_data.values())
        else:
            is_set = isinstance(like, Mapping) and bool(like.keys() & validation_data.keys())
        if not is_set:
            return {f"{default}{name}_": data for name, data in validation_data.items()}
    return {default: validation_data}


def check_iterable(data: Any, what: str) -> None:
    """Requires an iterable of batches."""
    if isinstance(data, Iterable) and not isinstance(data, Mapping | str | bytes):
        return
    if isinstance(data, Mapping) and data:
        raise DataError(
            f"{what} is a {type(data).__name__} of {', '.join(map(str, data))} that holds no arrays; expected one data "
            "set, such as one of these."
        )
    raise DataError(
        f"{what} is a {type(data).__name__}, expected a pytree of arrays such as (x, y) or {{'image': x, 'label': y}}, "
        "or an iterable of batches."
    )


def check_list(data: Any, what: str) -> None:
    """Refuses Keras's `[x, y]`, which would be taken for two batches."""
    if isinstance(data, list) and len(data) > 1 and all(isinstance(x, np.ndarray | jax.Array) for x in data):
        shapes = {(np.shape(x)[1:], str(x.dtype)) for x in data}
        if len(shapes) > 1:
            raise DataError(
                f"{what} is a list of arrays of different shapes. A list is an iterable of batches; arrays that "
                "belong together go in a tuple: (x, y)."
            )


def check_walkable(data: Any, *, epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> None:
    """Refuses, before the first step, a stream that would end too early or never."""
    if steps_per_epoch is not None:
        return
    if is_endless(data):
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
    # such as what tokenizers of Hugging Face return
    tree = jax.tree.map(lambda x: dict(x) if isinstance(x, Mapping) else x, tree)
    arrays = jax.tree_util.tree_map_with_path(lambda path, x: _as_array(x, path, what), tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if isinstance(leaf, np.ndarray) and (leaf.dtype.kind in "USOMm" or leaf.dtype.names):
            raise DataError(
                f"{what}: {leaf_name(path) or 'the array'} has dtype {leaf.dtype}, which no device can hold; expected "
                "numbers."
            )
    return arrays, rows_of(arrays, what)


def _as_array(x: Any, path: Any, what: str) -> Any:
    if isinstance(x, np.ndarray | jax.Array):
        return x
    if hasattr(x, "detach") and hasattr(x, "cpu"):  # torch's are no arrays on an accelerator, nor with a gradient
        x = x.detach().cpu()
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        if hasattr(x, "__dlpack__"):  # a dtype that numpy lacks, such as torch's bfloat16
            return np.asarray(jnp.from_dlpack(x))
        raise DataError(
            f"{what}: {leaf_name(path) or 'the array'} is a {type(x).__name__} that numpy cannot take: {error}"
        ) from error


def copied(arrays: Any) -> Any:
    """Copies numpy arrays, because a loader may use its buffer for the next batch.

    On a CPU the device may take the memory of an array over in place of copying it.
    """
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, arrays)


def split_off(owner: str, train_data: Any, validation_data: Any, fraction: float) -> tuple[Any, Any]:
    """Takes the last rows of arrays for validation."""
    check_between(owner, "validation_split", fraction, 0.0, 1.0)
    if validation_data is not None:
        raise ValueError(f"{owner}: validation_split and validation_data were both given; pass one of them.")
    if not are_arrays(train_data):
        raise DataError(f"validation_split needs arrays, got a {type(train_data).__name__}; pass validation_data.")
    train_data, rows = as_arrays(train_data, "train_data")
    at = int(rows * (1.0 - fraction))
    if at in (0, rows):
        raise DataError(f"validation_split={fraction} leaves nothing to train or to validate on ({rows} rows).")
    return jax.tree.map(lambda x: x[:at], train_data), jax.tree.map(lambda x: x[at:], train_data)
