"""`largest_batch_size`: the largest batch that fits, found from the memory of compiled steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, as_chain
from jaxcb._src.data.inputs import are_arrays, rows_of
from jaxcb._src.data.resident import free_bytes
from jaxcb._src.loop.programs import prepared_state
from jaxcb._src.models.adapt import adapt
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import Step
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.errors import DataError, check_bool, check_int, check_seed
from jaxcb._src.utils.flat_jit import eval_shape

_PRECISION = 32  # the search ends where one part in so many is left
_MOST_GROWTH = 16  # factor between two sizes while all fit
_MARGIN = 0.95  # fraction of the free memory that a step may need: the rest is for records and validation


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits.

    Attributes:
        batch_size: its rows.
        needed: bytes that a training step of it needs, with the train state and the resident data.
        memory: bytes that it may need.
        measured: rows -> bytes, of all sizes that were compiled.
    """

    batch_size: int
    needed: int
    memory: int
    measured: dict[int, int]


def largest_batch_size(  # noqa: PLR0913
    model: Any,
    loss_fn: Callable[..., Any],
    train_data: Any,
    *,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    learning_rate: float | optax.Schedule | None = None,
    callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    multiple_of: int = 1,
    memory: int | None = None,
    resident: bool = True,
    seed: int = 0,
) -> LargestBatch:
    """Finds the largest batch with which a model trains on one device.

    It compiles training steps for about ten batch sizes, and reads from each how much memory it needs: arguments,
    results and temporary arrays. Nothing is run, and nothing has to fail. Weights that callbacks keep, such as the best
    ones, count.

    Args:
        model: as for `fit`.
        loss_fn: as for `fit`.
        train_data: a pytree of arrays with a common leading axis, or of `jax.ShapeDtypeStruct`.
        optimizer: as for `fit`.
        learning_rate: as for `fit`.
        callbacks: as for `fit`.
        multiple_of: the batch size is a multiple of this number, such as 8 or the number of devices.
        memory: bytes that may be needed. None is 95 % of those that are free on the default device; on a CPU, of the
            machine's memory.
        resident: whether the data will be kept on the device, as `fit` does with arrays that take at most half of it.
        seed: as for `fit`.

    Returns:
        A `LargestBatch`. Its `batch_size` is at most the rows of the data, and less than 4 % below the largest one.

    Raises:
        TypeError: for an argument of an unsupported type.
        ValueError: for a number out of range.
        DataError: for data that is not arrays.
        MemoryError: if the smallest batch does not fit.

    Example:
        >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
        >>> x = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
        >>> def loss_fn(params, x):
        ...     return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)
        >>> found = jc.search.largest_batch_size({"w": jnp.ones((64, 64))}, loss_fn, x, optimizer=optax.sgd(0.1),
        ...                                      memory=10_000_000, resident=False, multiple_of=8)
        >>> found.needed <= 10_000_000, found.batch_size % 8
        (True, 0)

    Source: `jax.stages.Compiled.memory_analysis`; Lightning's `BatchSizeFinder` doubles until a run fails.
    """
    owner = "largest_batch_size"
    multiple = check_int(owner, "multiple_of", multiple_of, least=1, concrete=True)
    seed, resident = check_seed(owner, seed), check_bool(owner, "resident", resident)
    if memory is not None:
        memory = check_int(owner, "memory", memory, least=1, concrete=True)
    shapes, rows = _shapes(train_data)
    if multiple > rows:
        raise ValueError(f"{owner}: multiple_of={multiple} is more than the {rows} rows of train_data.")
    training = TrainingConfig(seed, optimizer, learning_rate, as_chain(callbacks))
    state = eval_shape(lambda: prepared_state(training.train_state(adapt(model)), training.callbacks)[0])
    device = next(iter(jax.numpy.zeros(()).devices()))
    memory = int(free_bytes([device]) * _MARGIN) if memory is None else memory
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) if resident else 0
    measured: dict[int, int] = {}

    def fits(size: int) -> bool:
        measured[size] = kept + _bytes_of_step(Step(loss_fn), state, _batch(shapes, size))
        return measured[size] <= memory

    if not fits(multiple):
        data = f", {kept:,} of them the data (resident=False leaves it on the host)" if kept else ""
        raise MemoryError(
            f"{owner}: a step with {multiple} rows needs {measured[multiple]:,} bytes{data}, and there are {memory:,}. "
            "Use a smaller model, accumulate no copies of the weights, or shard it over several devices."
        )
    best = _search(fits, measured, memory, multiple, rows)
    return LargestBatch(best, measured[best], memory, dict(sorted(measured.items())))


def _search(fits: Callable[[int], bool], measured: dict[int, int], memory: int, multiple: int, rows: int) -> int:
    """Returns the largest size that fits, of the multiples up to `rows`; the smallest one is known to fit.

    The memory of a step is nearly linear in the rows, so the next size is where the line through two sizes reaches the
    limit: the largest one that fits, and the smallest one that does not, or else the one before. It is kept between
    what is known to fit and what is not.
    """
    best, least, top = multiple, None, rows // multiple * multiple
    while best < top and (least is None or least - best > max(multiple, best // _PRECISION)):
        other = max((size for size in measured if size < best), default=None) if least is None else least
        guess = 2 * best
        if other is not None:
            slope = (measured[best] - measured[other]) / (best - other)
            guess = int(best + (memory - measured[best]) / slope) if slope > 0 else _MOST_GROWTH * best
        highest = min(top, _MOST_GROWTH * best) if least is None else least - multiple
        size = min(max(guess // multiple * multiple, best + multiple), highest)
        if fits(size):
            best = size
        else:
            least = size
    return best


def _shapes(train_data: Any) -> tuple[Any, int]:
    """Returns the shapes of arrays, and their rows."""
    leaves = jax.tree.leaves(train_data)
    given = bool(leaves) and all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    if not given and not are_arrays(train_data):
        raise DataError(
            f"largest_batch_size: train_data is a {type(train_data).__name__}, expected a pytree of arrays, or of "
            "jax.ShapeDtypeStruct, with a common leading axis. For a stream, describe all its rows by shapes."
        )
    rows = rows_of(train_data, "train_data") if not given else leaves[0].shape[0]
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), train_data
    ), rows


def _batch(shapes: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), shapes)


def _bytes_of_step(step: Step, state: TrainState, batch: Any) -> int:
    """Returns the bytes that a compiled training step needs while it runs, its donated train state counted once."""
    leaves, structure = jax.tree.flatten(state)

    def run(leaves: list[Any], batch: Any) -> list[Any]:
        return jax.tree.leaves(step(jax.tree.unflatten(structure, leaves), batch))

    # lists, so that no cache of JAX refers to the optimizer
    stats = jax.jit(run, donate_argnums=0).lower(leaves, batch).compile().memory_analysis()
    if stats is None:
        raise NotImplementedError(f"the backend {jax.default_backend()} does not tell how much memory a program needs.")
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
