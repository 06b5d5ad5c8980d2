"""Which feed serves what a user gave as training data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._processes import ALONE, Processes
from jaxcb.loop import _data
from jaxcb.loop._carry import FOREVER
from jaxcb.loop._feed import Feed, FeedStart, Resident
from jaxcb.loop._sources import BATCH_SIZE, Asked, source_of
from jaxcb.loop._stream import Stream

_DATA = 0x64617461  # sets the key of the data's order apart from the one that steps draw from


def make_feed(
    train_data: Any,
    *,
    epochs: int | None,
    steps: int | None,
    steps_per_epoch: int | None,
    batch_size: int | None,
    shuffle: bool,
    seed: int | Sequence[int],
    train_remainder: bool,
    steps_per_execution: int | None,
    controls: Mapping[str, Any] | None = None,
    start: FeedStart | None = None,
    say: Callable[[str], None] | None = None,
    processes: Processes = ALONE,
) -> Feed:
    """Makes the feed for what a user gave as data.

    Args:
        train_data: arrays, an iterable of batches, a data set, or a function of the epoch and the controls.
        epochs: how many the run has, at most.
        steps: how many it has, at most.
        steps_per_epoch: steps of an epoch; one pass where None.
        batch_size: rows of a batch, for arrays and rows.
        shuffle: whether these get a new order each pass.
        seed: of the orders; several for a population, whose members each have their own where these differ. All
            members share a stream, in the first one's order.
        train_remainder: whether a smaller last batch is trained on.
        steps_per_execution: batches of a chunk; None chooses by their size.
        controls: the run's, as they are before its first step.
        start: where the run stood that is to be resumed; None for a new one.
        say: takes a line for the user.
        processes: of the run, each of which feeds its own part of the rows.

    Raises:
        DataError: for data that cannot be trained on.
        TypeError: for a function of other arguments.
    """
    if _data.are_arrays(train_data):
        return Resident(
            train_data,
            batch_size=batch_size or BATCH_SIZE,
            shuffle=shuffle,
            key=_keys(seed),
            steps_per_epoch=steps_per_epoch,
            train_remainder=train_remainder,
        )
    first = seed if isinstance(seed, int) else seed[0]
    how: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "seed": first, "processes": processes}
    if callable(train_data) and not isinstance(train_data, Iterable):
        source = Asked(train_data, "train_data", steps_per_epoch=steps_per_epoch, **how)
    else:
        source = source_of(train_data, "train_data", **how)
        _data.check_walkable(train_data, epochs=epochs, steps=steps, steps_per_epoch=steps_per_epoch)
    return Stream(
        source,
        steps_per_epoch=None if source.follows else steps_per_epoch,
        end_epoch=FOREVER if epochs is None else epochs,
        end_step=FOREVER if steps is None else steps,
        steps_per_execution=steps_per_execution,
        train_remainder=train_remainder,
        controls=controls,
        start=start,
        say=say,
        processes=processes,
    )


def _keys(seed: int | Sequence[int]) -> jax.Array:
    """The key of the orders, one a member where they differ."""
    seeds = [seed] if isinstance(seed, int) else list(seed)
    keys = [jax.random.key(own ^ _DATA) for own in seeds]
    return keys[0] if len(set(seeds)) == 1 else jnp.stack(keys)
