"""Conversion between arrays of one process and global arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns a global array from one that every process has completely."""
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    array = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    # each process provides its own shards; `device_put` would first compare the complete array across processes
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_part(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns a global array from the part that this process has."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)))


def local_copy(x: Any) -> Any:
    """Returns a copy on the devices of this process.

    Raises:
        RuntimeError: for an array of which this process has only a part.
    """
    if x.is_fully_addressable:
        return jnp.copy(x)
    if not x.is_fully_replicated:
        raise RuntimeError(
            "the model is sharded over the processes, and this function runs on one of them, which has only a part. "
            "Evaluators receive the complete model; elsewhere save it with jc.ModelCheckpoint and read it with jc.load."
        )
    return jnp.copy(x.addressable_data(0))


def all_gather(tree: Any) -> Any:
    """Returns arrays that are replicated. All processes must call this together, with no pending dispatch."""
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
    if x.is_fully_addressable or x.is_fully_replicated:
        return x
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)
