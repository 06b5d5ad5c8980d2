"""Global arrays from what this process holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Makes a global array of one that every process holds whole."""
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    own = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    # each process hands out its own parts; `device_put` would first compare the whole over all of them
    return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])


def put_part(x: Any, sharding: NamedSharding) -> jax.Array:
    """Makes a global array of the part that this process holds."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)))
