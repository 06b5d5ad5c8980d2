"""Conversion of arrays to and from their stored form."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.checkpointing.manifest import ArrayEntry, Saved
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.utils.pytree import on_device

# Orbax creates arrays in its own threads, where the thread-local `jax.enable_x64` may be off; it would cast these.
_WIDE = ("float64", "int64", "uint64", "complex128")
_SHOWN = 10  # leaves that an error lists


def array_entries(leaves: Mapping[str, Any]) -> tuple[tuple[ArrayEntry, ...], dict[str, Any]]:
    """Returns the manifest entry of each array, and the arrays for Orbax by key.

    `jax.Array`s are returned as they are and not copied; everything else is copied.

    Raises:
        TypeError: for a leaf that is not an array of numbers.
    """
    entries: list[ArrayEntry] = []
    arrays: dict[str, Any] = {}
    for number, (name, value) in enumerate(leaves.items()):
        impl = None
        if not isinstance(value, jax.Array):
            value = _copied(name, value)
        elif jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            impl, value = str(jax.random.key_impl(value)), jax.random.key_data(value)
        entry = ArrayEntry(name, f"l{number:04d}", value.shape, value.dtype.name, impl)
        entries.append(entry)
        if not entry.empty:
            arrays[entry.key] = value
    return tuple(entries), arrays


def _copied(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "OSUMm" or array.dtype.fields is not None:
        raise TypeError(f"{name!r}: expected an array of numbers, got {value!r:.100} of dtype {array.dtype}.")
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def copied_on_devices(arrays: Mapping[str, Any]) -> dict[str, Any] | None:
    """Copies arrays on their devices, without waiting; None if the devices may lack the memory."""
    ours = {key: x for key, x in arrays.items() if isinstance(x, jax.Array)}
    if not _have_room(list(ours.values())):
        return None
    try:
        copies = jax.device_put(list(ours.values()), [x.sharding for x in ours.values()], may_alias=False)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None  # enough free memory, but fragmented
    return {**arrays, **dict(zip(ours, copies, strict=True))}


def _have_room(arrays: Sequence[jax.Array]) -> bool:
    """Returns whether copies fit in addition to the peak memory of the run, so that steps do not run out of memory."""
    needed: dict[Any, int] = defaultdict(int)
    for x in arrays:
        size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for device in x.sharding.addressable_devices:
            needed[device] += size
    for device, size in needed.items():
        stats = device.memory_stats() or {}  # none on CPU
        limit, used = stats.get("bytes_limit"), stats.get("peak_bytes_in_use")
        if limit is not None and used is not None and used + size > limit:
            return False
    return True


def check(saved: Saved, target: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Checks that each requested array is stored with its shape and dtype. Orbax would cast silently.

    Raises:
        ValueError: listing the arrays that differ.
    """
    leaves, wrong = saved.leaves, []
    for name, struct in target.items():
        stored = leaves.get(name)
        if stored is None:
            wrong.append(f"{name}: not stored, expected {_say(struct)}")
        elif (stored.shape, stored.dtype) != (tuple(struct.shape), struct.dtype):
            wrong.append(f"{name}: stored {_say(stored)}, expected {_say(struct)}")
    if wrong:
        shown = "".join(f"\n  {line}" for line in wrong[:_SHOWN])
        rest = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"The checkpoint {saved.path} does not match the arrays to load:{shown}{rest}\n"
            "Build the model and the optimizer as they were when it was saved, or start a new run."
        )


def _say(struct: jax.ShapeDtypeStruct) -> str:
    return f"{struct.dtype}[{','.join(map(str, struct.shape))}]"


def _is_held(entry: ArrayEntry) -> bool:
    """Returns whether JAX supports the dtype in its current configuration."""
    dtype = np.dtype(entry.dtype)
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def restore(directory: Path, wanted: Sequence[tuple[ArrayEntry, Any]]) -> dict[str, Any]:
    """Returns arrays by name.

    Args:
        directory: directory of the arrays.
        wanted: entries, each with a sharding; None for arrays that are not committed to a device. Arrays of a dtype
            that is disabled in JAX, such as float64, are returned as numpy arrays.
    """
    wanted = [(entry, sharding if _is_held(entry) else None) for entry, sharding in wanted]
    abstract = {}
    for entry, sharding in wanted:
        if not entry.empty:
            struct = entry.stored
            if sharding is None or entry.dtype in _WIDE:
                abstract[entry.key] = np.empty(struct.shape, struct.dtype)  # requests a numpy array from Orbax
            else:
                abstract[entry.key] = struct.update(sharding=sharding)
    loaded: dict[str, Any] = {}
    if abstract:
        # not all stored arrays have to be requested
        loaded = _orbax.load(str(directory), abstract, partial_load=True)
    found = {}
    for entry, sharding in wanted:
        value: Any = loaded[entry.key] if not entry.empty else np.zeros(entry.shape, entry.dtype)
        if sharding is not None:
            value = jax.device_put(value, sharding)
        elif _is_held(entry):
            value = on_device(value)  # a copy, since JAX cannot donate memory of numpy
        found[entry.name] = value if entry.impl is None else jax.random.wrap_key_data(value, impl=entry.impl)
    return found
