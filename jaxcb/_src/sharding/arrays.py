"""Arrays of a run of several processes, as one process by itself can use them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


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


def local_copy(x: Any) -> Any:
    """Returns a copy on this process's own devices.

    Raises:
        RuntimeError: for an array of which it has a part only.
    """
    if x.is_fully_addressable:
        return jnp.copy(x)
    if not x.is_fully_replicated:
        raise RuntimeError(
            "the model is split over the processes, and this function runs on one of them, which has but a part of it. "
            "Evaluators are given it whole; elsewhere save it with jc.ModelCheckpoint and read it with jc.load."
        )
    return jnp.copy(x.addressable_data(0))


def all_gather(tree: Any) -> Any:
    """Returns arrays that are whole on each device; all processes come here together, with nothing under way."""
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
    if x.is_fully_addressable or x.is_fully_replicated:
        return x
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)
