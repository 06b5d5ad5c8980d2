"""The order of an epoch's rows: a function of the seed and the epoch, the same on the device and on the host."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_DATA = 0x64617461  # sets the key of the data's order apart from the one that steps draw from


def key_of(seed: int) -> Array:
    """The key of the orders."""
    return jax.random.key(seed ^ _DATA)


def draw(key: Array, epoch: Any, rows: int) -> Array:
    """Draws an epoch's order. Traced, or not."""
    # one sort by 64 random bits a row; `jax.random.permutation` sorts twice, which takes twice as long
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (2, rows), jnp.uint32)
    return jax.lax.sort((*bits, jnp.arange(rows, dtype=jnp.int32)), num_keys=2)[2]


def drawn(key: Array, epoch: int, rows: int) -> np.ndarray:
    """Draws an epoch's order for the host."""
    return np.asarray(_drawn(key, np.int32(epoch), rows))


_drawn = partial(jax.jit, static_argnums=2)(draw)
