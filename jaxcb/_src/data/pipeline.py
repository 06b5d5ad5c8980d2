"""Selects the feed for the user's training data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.data import inputs as _data
from jaxcb._src.data.feed import UNBOUNDED, Feed, FeedStart, Resident, fits_on_device
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.prefetch import Stream
from jaxcb._src.data.sources import BATCH_SIZE, CallableSource, batches_in, key_of, source_of
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.errors import DataError


def make_feed(
    train_data: Any,
    config: DataConfig,
    *,
    placement: Placement = ONE_DEVICE,
    controls: Mapping[str, Any] | None = None,
    start: FeedStart | None = None,
    say: Callable[[str], None] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Feed:
    """Returns the feed for training data.

    Args:
        train_data: arrays, an iterable of batches, a data set, or a function of epoch and controls.
        config: how the data becomes batches.
        placement: shardings of the batches.
        controls: the controls before the first step.
        start: position to resume at; None for a new run.
        say: prints a line.
        processes: of the run.

    Raises:
        DataError: for invalid training data.
        TypeError: for a function with other parameters.
    """
    seed, batch_size, steps_per_epoch = config.seed, config.batch_size, config.steps_per_epoch
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "shuffle": config.shuffle,
        "seed": seed if isinstance(seed, int) else seed[0],
        "remainder": not config.drop_remainder,
        "placement": placement,
    }
    if _data.are_arrays(train_data):
        arrays, rows = _data.as_arrays(train_data, "train_data")
        size = min(batch_size or BATCH_SIZE, rows)
        length = _epoch_of(rows, config)
        # the device draws the orders of a population's members, so its rows must be resident
        alone = isinstance(seed, int)
        if not alone or fits_on_device(
            arrays, "train_data", config.resident, placement=placement, processes=processes, say=say
        ):
            return Resident(
                arrays,
                batch_size=size,
                shuffle=config.shuffle,
                key=_keys(seed),
                epoch_len=length,
                train_remainder=not config.drop_remainder,
            )
        source, steps_per_epoch = source_of(arrays, "train_data", most=length, **how), None
    elif config.resident is True:
        raise DataError(
            f"Execution(resident=True) was given, but train_data is a {type(train_data).__name__}: only arrays can be "
            "kept on the devices. Leave resident out, or pass arrays."
        )
    elif callable(train_data) and not isinstance(train_data, Iterable):
        source, steps_per_epoch = CallableSource(train_data, "train_data", steps_per_epoch=steps_per_epoch, **how), None
    else:
        source = source_of(train_data, "train_data", **how)
        _data.check_walkable(train_data, config)
    return Stream(
        source,
        steps_per_epoch=steps_per_epoch,
        end_epoch=UNBOUNDED if config.epochs is None else config.epochs,
        end_step=UNBOUNDED if config.steps is None else config.steps,
        steps_per_execution=config.steps_per_execution,
        train_remainder=not config.drop_remainder,
        controls=controls,
        start=start,
        say=say,
        processes=processes,
    )


def _epoch_of(rows: int, config: DataConfig) -> int:
    """Returns the batches in an epoch of arrays."""
    batch_size, steps_per_epoch = config.batch_size or BATCH_SIZE, config.steps_per_epoch
    batches = batches_in(rows, batch_size, "train_data", remainder=not config.drop_remainder)
    if steps_per_epoch is None:
        return batches
    if steps_per_epoch > batches:
        raise DataError(
            f"steps_per_epoch={steps_per_epoch}, but one pass over {rows} rows has {batches} batches of "
            f"{min(batch_size, rows)}. Leave it out, or lower it."
        )
    if not config.shuffle and steps_per_epoch < batches:
        raise DataError(
            f"steps_per_epoch={steps_per_epoch} with shuffle=False would train on the first rows only, epoch after "
            f"epoch: one pass has {batches} batches. Shuffle, or leave steps_per_epoch out."
        )
    return steps_per_epoch


def _keys(seed: int | Sequence[int]) -> jax.Array:
    """Returns the PRNG key of the data order, or one per member if their seeds differ."""
    seeds = [seed] if isinstance(seed, int) else list(seed)
    keys = [key_of(part) for part in seeds]
    return keys[0] if len(set(seeds)) == 1 else jnp.stack(keys)
