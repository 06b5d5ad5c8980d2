"""The order of an epoch's rows: a function of the seed and the epoch, the same on the device and on the host."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_SPARE_BITS = 10  # beyond those that keep two of the rows from being alike: it happens once in a thousand epochs
_DATA = 0x64617461  # sets the key of the data's order apart from the one that steps draw from


def key_of(seed: int) -> Array:
    """The key of the orders."""
    return jax.random.key(seed ^ _DATA)


def draw(key: Array, epoch: Any, rows: int) -> Array:
    """Draws an epoch's order: rows sorted by random bits, so many that hardly any two are alike. Traced, or not."""
    # XLA sorts an array that takes no other along several times faster. So each number holds random bits and, below
    # them, the place that it came from; several such sorts one after another are a radix sort by all their bits
    place = max((rows - 1).bit_length(), 1)  # bits of a place
    sorts = -(-(2 * place + _SPARE_BITS) // (32 - place))
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (sorts, rows), jnp.uint32)
    places = jnp.arange(rows, dtype=jnp.uint32)
    order = jnp.arange(rows, dtype=jnp.int32)
    for own in bits:
        came_from = jax.lax.sort((own << place) | places) & ((1 << place) - 1)
        order = order.at[came_from].get(mode="promise_in_bounds")
    return order


def drawn(key: Array, epoch: int, rows: int) -> np.ndarray:
    """Draws an epoch's order for the host."""
    return np.asarray(_drawn(key, np.int32(epoch), rows))


_drawn = partial(jax.jit, static_argnums=2)(draw)
