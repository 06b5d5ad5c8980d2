"""The user's data: how it is configured, what it is, and its checks."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.sharding.arrays import with_automatic_axes
from jaxcb._src.training.loss import Weighted
from jaxcb._src.utils.errors import DataError, check_between
from jaxcb._src.utils.names import leaf_name


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How training data becomes batches, and how long it is used.

    Attributes:
        epochs: maximum number of epochs; None for no limit.
        steps: maximum number of steps; None for no limit.
        steps_per_epoch: steps of an epoch; None if the data ends each epoch.
        batch_size: rows of a batch, for arrays and tables; None for the default.
        shuffle: whether to draw a new order of rows each epoch.
        seed: seed of the orders; a sequence for a population, with one per member. Members share a stream, in the order
            of the first seed.
        drop_remainder: whether a smaller last batch is left out.
        resident: whether to keep arrays on the devices; None if they have enough memory.
        steps_per_execution: batches of a chunk; None to choose by their size.
        overfit_batches: number of batches that are trained on in each epoch, the first ones; None for all.
        resumes: whether checkpoints are written, from which a run resumes.
    """

    epochs: int | None = None
    steps: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    shuffle: bool = True
    seed: int | Sequence[int] = 0
    drop_remainder: bool = False
    resident: bool | None = None
    steps_per_execution: int | None = None
    overfit_batches: int | None = None
    resumes: bool = False

    @property
    def order(self) -> dict[str, Any]:
        """What the order of the batches depends on, as JSON."""
        seed = self.seed if isinstance(self.seed, int) else list(self.seed)
        return {
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "shuffle": self.shuffle,
            "seed": seed,
            **({} if self.overfit_batches is None else {"overfit_batches": self.overfit_batches}),
        }


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The validation data, and how it becomes batches.

    Attributes:
        data: one set, or a dict of named sets; each is arrays or an iterable of batches.
        batch_size: rows of a batch, for arrays and tables; None for the default.
        steps: maximum number of batches of a set; None for all.
        resident: whether to keep arrays on the devices; None if they have enough memory.
        of_state: whether the train state alone is validated, without data.
    """

    data: Any = None
    batch_size: int | None = None
    steps: int | None = None
    resident: bool | None = None
    of_state: bool = False


def is_table(data: Any) -> bool:
    """Returns whether data is a Hugging Face `Dataset`, which has rows and is not an iterable of batches."""
    return _is(data, "datasets", "Dataset")


def as_numpy(table: Any) -> Any:
    """Returns a Hugging Face `Dataset` that returns numpy arrays. A custom transform is kept."""
    if table.format["type"] in ("numpy", "custom"):
        return table
    return table.with_format("numpy", columns=table.format["columns"])


def walk(data: Any, number: int) -> Iterator[Any]:
    """Starts epoch `number` (from 0) of an iterable of batches, with a new order if the data set supports it."""
    if _is(data, "grain", "MapDataset"):
        return iter(_grain_pass(data, number))
    if _is(data, "datasets", "IterableDataset") and getattr(data, "_formatting", None) is None:
        data = data.with_format("numpy")  # its default format is Python lists
    for part in _parts_with_set_epoch(data):
        part.set_epoch(number)
    return iter(data)


def _grain_pass(data: Any, number: int) -> Iterable[Any]:
    """Returns the elements of an epoch of a Grain `MapDataset`.

    It draws a new order each time it repeats, but the same order each time it is iterated.
    """
    if number == 0:
        return data
    return data.repeat(number + 1)[number * len(data) :]


def _parts_with_set_epoch(data: Any) -> list[Any]:
    """Returns the objects with `set_epoch`, such as PyTorch's distributed samplers."""
    batches = getattr(data, "batch_sampler", None)
    parts = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    parts = (*parts, getattr(data, "dataset", None))
    return list({id(part): part for part in parts if callable(getattr(part, "set_epoch", None))}.values())


def repeats_for_ever(data: Any) -> bool:
    """Returns whether data reports that it is infinite."""
    if _is(data, "grain", "MapDataset"):
        return len(data) == sys.maxsize
    if _is(data, "grain", "IterDataset"):
        return "Limit" not in type(data).__name__ and any(repeats_for_ever(parent) for parent in data.parents)
    if _is(data, "grain", "DataLoader"):
        return getattr(getattr(data, "_sampler", None), "_num_epochs", 0) is None
    if callable(getattr(data, "cardinality", None)):  # `tf.data` returns -1 for infinite data
        return int(data.cardinality()) == -1
    return False


def _is(data: Any, module: str, name: str) -> bool:
    """Returns whether data is an instance of a class of a library, without importing the library."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(data, cls)


_ENDLESS = (itertools.count, itertools.cycle)


def is_array(x: Any) -> bool:
    """Returns whether x is a numpy or jax array, or convertible by numpy, such as a torch tensor."""
    return isinstance(x, np.ndarray | jax.Array) or (hasattr(x, "__array__") and hasattr(x, "shape"))


def are_arrays(data: Any) -> bool:
    """Returns whether data is a pytree of arrays to cut into batches. A list is an iterable of batches."""
    return not isinstance(data, list | Iterator) and any(is_array(x) for x in jax.tree.leaves(data))


def rows_of(tree: Any, what: str) -> int:
    """Returns the common number of rows (leading axis) of a pytree of arrays.

    Raises:
        DataError: if the leaves differ, or if there are no rows.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    if not leaves:
        raise DataError(f"{what} contains no arrays.")
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
    """Returns whether data can be iterated only once, like a generator."""
    return isinstance(data, Iterator)


def is_endless(data: Any) -> bool:
    """Returns whether data is known to be infinite."""
    return isinstance(data, _ENDLESS) or repeats_for_ever(data)


def named_sets(validation_data: Any, default: str = "val_", *, like: Any = None) -> dict[str, Any]:
    """Returns validation sets by the prefix of their metrics: `{"wiki": data}` gives `val_wiki_`.

    A dict contains named sets unless it is a batch-like set itself: if `like`, a training batch, is a dict with common
    names. Without `like`, a dict that contains arrays is a set.
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
    """Checks for an iterable of batches.

    Raises:
        DataError: for anything else.
    """
    if isinstance(data, Iterable) and not isinstance(data, Mapping | str | bytes):
        return
    if isinstance(data, Mapping) and data:
        raise DataError(
            f"{what} is a {type(data).__name__} of {', '.join(map(str, data))} without arrays; expected one data "
            "set, such as one of these."
        )
    raise DataError(
        f"{what} is a {type(data).__name__}, expected a pytree of arrays such as (x, y) or {{'image': x, 'label': y}}, "
        "or an iterable of batches."
    )


def check_list(data: Any, what: str) -> None:
    """Rejects Keras's `[x, y]`, which would be read as two batches.

    Raises:
        DataError: for a list of arrays of different shapes.
    """
    if isinstance(data, list) and len(data) > 1 and all(isinstance(x, np.ndarray | jax.Array) for x in data):
        shapes = {(np.shape(x)[1:], str(x.dtype)) for x in data}
        if len(shapes) > 1:
            raise DataError(
                f"{what} is a list of arrays of different shapes. A list is an iterable of batches; arrays that "
                "belong together go in a tuple: (x, y)."
            )


def check_walkable(data: Any, config: DataConfig) -> None:
    """Rejects, before the first step, a stream that would end too early or never.

    Raises:
        DataError: for such a stream.
    """
    if config.steps_per_epoch is not None:
        return
    if is_endless(data):
        if config.steps is None:
            raise DataError(
                "train_data is an endless stream, so an epoch of it never ends: pass steps_per_epoch=, or steps= and "
                "steps_per_epoch=."
            )
        return
    epochs = config.epochs
    if is_one_shot(data) and config.steps is None and epochs is not None and epochs > 1:
        raise DataError(
            f"train_data is a {type(data).__name__}, which can be iterated only once, but epochs={epochs}: it would "
            "be used up after the first epoch, or never end. Pass something that can be iterated again (a list, a "
            "dataset, an object whose __iter__ starts again), or steps_per_epoch= to cut one long stream into epochs."
        )


def as_arrays(tree: Any, what: str) -> tuple[Any, int]:
    """Returns a pytree as numpy and jax arrays, and their common number of rows.

    Raises:
        DataError: for a leaf that no device can hold, or if the numbers of rows differ.
    """
    # mappings that are no pytrees, such as the output of Hugging Face tokenizers
    tree = jax.tree.map(lambda x: dict(x) if isinstance(x, Mapping) else x, tree)
    arrays = jax.tree_util.tree_map_with_path(lambda path, x: _as_array(x, path, what), tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if isinstance(leaf, np.ndarray) and (leaf.dtype.kind in "USOMm" or leaf.dtype.names):
            raise DataError(
                f"{what}: {leaf_name(path) or 'the array'} has dtype {leaf.dtype}, which no device can hold; expected "
                "numbers."
            )
    check_fits(arrays, what)
    return arrays, rows_of(arrays, what)


def check_fits(arrays: Any, what: str) -> None:
    """Checks that numbers of 64 bits keep their value on the device, which has 32 unless JAX is told otherwise.

    A file that is mapped into memory is not read for this: its rows are checked as they are used.

    Raises:
        DataError: for a number that would become another one.
    """
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if not isinstance(leaf, np.ndarray) or isinstance(leaf, np.memmap) or leaf.dtype.itemsize < 8 or not leaf.size:
            continue
        narrow = _NARROW.get(leaf.dtype.kind)
        if narrow is None:
            continue
        low, high, known = leaf.min(), leaf.max(), np.iinfo(narrow)
        if low < known.min or high > known.max:
            raise DataError(
                f"{what}: {leaf_name(path) or 'the array'} has dtype {leaf.dtype} and numbers from {low} to {high}, "
                f"which do not fit into {narrow.__name__}, the type that JAX gives them on the device. Number them "
                "again, for example with np.unique(x, return_inverse=True), or allow 64 bits before the first array is "
                'made: jax.config.update("jax_enable_x64", True).'
            )


_NARROW = {"i": np.int32, "u": np.uint32}


def _as_array(x: Any, path: Any, what: str) -> Any:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, jax.Array):
        return with_automatic_axes(x)
    # numpy cannot convert torch tensors that are on an accelerator or require a gradient
    if hasattr(x, "detach") and hasattr(x, "cpu"):
        x = x.detach().cpu()
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        if hasattr(x, "__dlpack__"):  # a dtype that numpy does not support, such as torch's bfloat16
            return np.asarray(jnp.from_dlpack(x))
        raise DataError(
            f"{what}: {leaf_name(path) or 'the array'} is a {type(x).__name__} that numpy cannot convert: {error}"
        ) from error


def copied(arrays: Any) -> Any:
    """Copies numpy arrays, since a loader may reuse its buffers for the next batch.

    A CPU device may alias the memory of a numpy array instead of copying it.
    """
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, arrays)


def with_weights(owner: str, data: Any, sample_weight: Any) -> Any:
    """Returns the data with the weights of its rows beside it; the data itself if there are none.

    Raises:
        DataError: for data that is not arrays.
    """
    if sample_weight is None:
        return data
    if not are_arrays(data):
        raise DataError(
            f"{owner}: sample_weight is an array for data of arrays, got a {type(data).__name__}. Put the weights of a "
            'stream into its batches: {"x": x, "y": y, "sample_weight": weights}.'
        )
    if not is_array(sample_weight):
        sample_weight = np.asarray(sample_weight)
    if isinstance(sample_weight, np.ndarray) and sample_weight.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(sample_weight))
        if odd.size:
            raise DataError(
                f"{owner}: sample_weight is {sample_weight.flat[odd[0]]} at {odd[0]}, expected finite numbers. A row "
                "without weight has 0."
            )
    return Weighted(data, sample_weight)


def is_no_split(fraction: Any) -> bool:
    """Returns whether a `validation_split` asks for nothing; anything but a number is for `split_off` to refuse."""
    return isinstance(fraction, int | float) and fraction == 0


def split_off(owner: str, train_data: Any, validation_data: Any, fraction: float) -> tuple[Any, Any]:
    """Splits the last rows off as validation data.

    Raises:
        ValueError: for an invalid fraction, or if validation data was also given.
        DataError: for data that is not arrays, or too few rows.
    """
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
