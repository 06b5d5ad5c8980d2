"""Conversion between arrays of one process and global arrays, and on which devices given arrays lie."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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


def copied(x: jax.Array) -> jax.Array:
    """Returns a copy on the same devices. Compiles nothing, except for an array of several processes."""
    return jax.device_put(x, may_alias=False) if x.is_fully_addressable else jnp.copy(x)


def local_copy(x: Any) -> Any:
    """Returns a copy on the devices of this process.

    Raises:
        RuntimeError: for an array of which this process has only a part.
    """
    if x.is_fully_addressable:
        return copied(x)
    if not x.is_fully_replicated:
        raise RuntimeError(
            "the model is sharded over the processes, and this function runs on one of them, which has only a part. "
            "Evaluators receive the complete model; elsewhere save it with jc.ModelCheckpoint and read it with jc.load."
        )
    return copied(x.addressable_data(0))


def all_gather(tree: Any) -> Any:
    """Returns arrays that are replicated. All processes must call this together, with no pending dispatch."""
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
    if x.is_fully_addressable or x.is_fully_replicated:
        return x
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)


def automatic(mesh: Mesh) -> Mesh:
    """Returns the mesh with automatic axes; `jax.make_mesh` may create explicit ones."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, such as from jax.make_mesh, got a {type(mesh).__name__}.")
    return Mesh(np.asarray(mesh.devices), mesh.axis_names)


def with_automatic_axes(x: Any) -> Any:
    """Returns an array on a mesh with automatic axes, since programs with explicit ones are others.

    JAX then refuses, for example, to take rows of an array that is sharded by rows. What is no array is returned as it
    is.
    """
    if not isinstance(x, jax.Array) or not isinstance(x.sharding, NamedSharding):
        return x
    mesh = x.sharding.mesh
    if not isinstance(mesh, Mesh) or all(kind == AxisType.Auto for kind in mesh.axis_types):
        return x
    spec = PartitionSpec(*x.sharding.spec[: x.ndim])  # that of a key has an axis for its numbers
    return jax.device_put(x, NamedSharding(automatic(mesh), spec))


def common_device(owner: str, given: Mapping[str, Any], cure: str, *, one: bool = True) -> Any:
    """Returns the device that arrays are committed to; None if they are to none, or if it is not a single one.

    Args:
        owner: the function that was called, for errors.
        given: trees of arrays, by name.
        cure: how to pass a mesh.
        one: whether all must lie on one device, as there is no mesh.

    Raises:
        ValueError: for arrays on other devices than the rest. It says what to pass.
    """
    cure = f"{cure}, or move them with jax.device_put."
    seen: dict[Any, str] = {}
    for part, tree in given.items():
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(array, jax.Array):
                continue
            name, devices = f"{part}{jax.tree_util.keystr(path)}", array.sharding.device_set
            if one and len(devices) > 1:
                raise ValueError(f"{owner}: {name} lies on {len(devices)} devices, and the run has no mesh. {cure}")
            if array.committed:
                seen.setdefault(frozenset(devices), name)
    if len(seen) > 1:
        (devices, first), (others, second), *_ = seen.items()
        raise ValueError(f"{owner}: {first} lies on {_words(devices)}, and {second} on {_words(others)}. {cure}")
    (devices,) = seen or (frozenset(),)
    return next(iter(devices)) if len(devices) == 1 else None


def _words(devices: frozenset[Any]) -> str:
    return str(next(iter(devices))) if len(devices) == 1 else f"{len(devices)} devices"
