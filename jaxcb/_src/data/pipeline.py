"""Plans the training data of a run, and opens its feed once executor and placement are known."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.data import inputs as _data
from jaxcb._src.data.feed import Feed
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.progress import FeedStart
from jaxcb._src.data.resident import NO_DATA, Resident, ResidentPlan, fits_on_device, plan_without_data
from jaxcb._src.data.sources import BATCH_SIZE, CallableSource, FirstBatches, Source, batches_in, key_of, source_of
from jaxcb._src.data.stream.stream import Stream, StreamPlan, plan_stream
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.utils.errors import DataError

DataPlan = ResidentPlan | StreamPlan


def plan_data(
    train_data: Any,
    config: DataConfig,
    *,
    placement: Placement = ONE_DEVICE,
    controls: Mapping[str, Any] | None = None,
    start: FeedStart | None = None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> DataPlan:
    """Describes training data. Arrays are transferred if they stay on the devices; a stream is opened.

    Args:
        train_data: arrays, an iterable of batches, a data set, or a function of epoch and controls; NO_DATA for none.
        config: how the data becomes batches.
        placement: shardings of the batches; for a population, whose strategy is not known, one device.
        controls: the controls before the first step.
        start: position to resume at; None for a new run.
        say: prints a line.
        warn: reports a source that gives other batches than it should; None for no check.
        processes: of the run.

    Raises:
        DataError: for invalid training data.
        TypeError: for a function with other parameters.
    """
    first = config.overfit_batches
    if first is not None:
        _check_overfitting(train_data, config)
        config = replace(config, shuffle=False)
    if train_data is NO_DATA:
        return plan_without_data(config)
    if _data.are_arrays(train_data):
        arrays, rows = _data.as_arrays(train_data, "train_data")
        if first is not None:
            rows = min(rows, first * (config.batch_size or BATCH_SIZE))
            arrays = jax.tree.map(lambda x: x[:rows], arrays)
        length = _epoch_of(rows, config)
        # the device draws the orders of a population's members, so its rows must be resident
        if not isinstance(config.seed, int) or fits_on_device(
            arrays, "train_data", config.resident, placement=placement, processes=processes, say=say
        ):
            return ResidentPlan.of(
                arrays,
                batch_size=min(config.batch_size or BATCH_SIZE, rows),
                shuffle=config.shuffle,
                key=_keys(config.seed),
                epoch_len=length,
                train_remainder=not config.drop_remainder,
                placement=placement,
            )
        source, steps_per_epoch = source_of(arrays, "train_data", most=length, **_cut(config, placement)), None
    else:
        source, steps_per_epoch = _source(train_data, config, placement)
        source = source if first is None else FirstBatches(source, first)
    return plan_stream(
        source,
        config,
        steps_per_epoch=steps_per_epoch,
        processes=placement.processes,
        controls=controls,
        start=start,
        say=say,
        warn=warn,
    )


def open_feed(
    plan: DataPlan, placement: Placement = ONE_DEVICE, *, stacked: bool = True, processes: Processes = SINGLE_PROCESS
) -> Feed:
    """Returns the feed of planned data. A plan can be opened once, since the feed continues with its iterator.

    Args:
        plan: the data.
        placement: shardings of the batches.
        stacked: whether chunks are stacks of batches (looped executor) or lists (stepped).
        processes: of the run.
    """
    if isinstance(plan, ResidentPlan):
        return Resident(plan, placement)
    return Stream(plan, placement, stacked=stacked, alike=processes.is_multiprocess)


def _source(train_data: Any, config: DataConfig, placement: Placement) -> tuple[Source, int | None]:
    """Returns the source of data that is not arrays, and the steps of an epoch; None if the source ends each epoch."""
    if config.resident is True:
        raise DataError(
            f"Execution(resident=True) was given, but train_data is a {type(train_data).__name__}: only arrays can be "
            "kept on the devices. Leave resident out, or pass arrays."
        )
    steps_per_epoch, cut = config.steps_per_epoch, _cut(config, placement)
    if callable(train_data) and not isinstance(train_data, Iterable):
        return CallableSource(train_data, "train_data", steps_per_epoch=steps_per_epoch, **cut), None
    source = source_of(train_data, "train_data", **cut)
    if config.overfit_batches is None:
        _data.check_walkable(train_data, config)
    return source, steps_per_epoch


def _check_overfitting(train_data: Any, config: DataConfig) -> None:
    """Refuses what does not fit together with the first batches of an epoch."""
    given = f"Execution(overfit_batches={config.overfit_batches})"
    if train_data is NO_DATA:
        raise DataError(f"{given} was given without data. Leave it out, or pass train_data.")
    if config.steps_per_epoch is not None:
        raise DataError(
            f"{given} and steps_per_epoch={config.steps_per_epoch} both say how long an epoch is; leave one of them "
            "out."
        )


def _cut(config: DataConfig, placement: Placement) -> dict[str, Any]:
    """Returns how a source cuts rows into batches."""
    return {
        "batch_size": config.batch_size,
        "shuffle": config.shuffle,
        "seed": config.seed if isinstance(config.seed, int) else config.seed[0],
        "remainder": not config.drop_remainder,
        "placement": placement,
    }


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
