"""Arrays on their way to a checkpoint and back."""

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

# Orbax makes arrays in threads of its own, where `jax.enable_x64` may not hold; there it would cast these
_WIDE = ("float64", "int64", "uint64", "complex128")
_SHOWN = 10  # leaves that an error lists


def array_entries(leaves: Mapping[str, Any]) -> tuple[tuple[ArrayEntry, ...], dict[str, Any]]:
    """Returns what is to be known of each array, and what Orbax shall store, by key.

    The latter are the caller's own `jax.Array`s, not yet copied, and copies of all else.

    Raises:
        TypeError: for what is no array of numbers, naming it.
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
    """Returns copies made by the devices, which the host need not wait for; None where they might not have the room."""
    ours = {key: x for key, x in arrays.items() if isinstance(x, jax.Array)}
    if not _have_room(list(ours.values())):
        return None
    try:
        copies = jax.device_put(list(ours.values()), [x.sharding for x in ours.values()], may_alias=False)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None  # the room was there, but in pieces
    return {**arrays, **dict(zip(ours, copies, strict=True))}


def _have_room(arrays: Sequence[jax.Array]) -> bool:
    """Whether copies fit beside the most that the run ever held, so that they take nothing from its steps."""
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
    """Requires that each array asked for is there, as it is asked for. Orbax would cast without a word.

    Raises:
        ValueError: with each one that is not, what is stored and what was expected.
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
            f"The checkpoint {saved.path} does not fit what it is to be loaded into:{shown}{rest}\n"
            "Build the model and the optimizer as they were when it was saved, or begin a new run."
        )


def _say(struct: jax.ShapeDtypeStruct) -> str:
    return f"{struct.dtype}[{','.join(map(str, struct.shape))}]"


def _is_held(entry: ArrayEntry) -> bool:
    """Whether JAX has arrays of that dtype, as it is set at present."""
    dtype = np.dtype(entry.dtype)
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def restore(directory: Path, wanted: Sequence[tuple[ArrayEntry, Any]]) -> dict[str, Any]:
    """Returns arrays by name.

    Args:
        directory: where Orbax put them.
        wanted: entries, each with a sharding, or None for arrays that are tied to no device. Those of a dtype that JAX
            has switched off, such as float64, stay NumPy's.
    """
    wanted = [(entry, sharding if _is_held(entry) else None) for entry, sharding in wanted]
    abstract = {}
    for entry, sharding in wanted:
        if not entry.empty:
            struct = entry.stored
            if sharding is None or entry.dtype in _WIDE:
                abstract[entry.key] = np.empty(struct.shape, struct.dtype)  # for Orbax, the wish for a NumPy array
            else:
                abstract[entry.key] = struct.update(sharding=sharding)
    loaded: dict[str, Any] = {}
    if abstract:
        # not all that is there need be asked for
        loaded = _orbax.load(str(directory), abstract, partial_load=True)
    found = {}
    for entry, sharding in wanted:
        value: Any = loaded[entry.key] if not entry.empty else np.zeros(entry.shape, entry.dtype)
        if sharding is not None:
            value = jax.device_put(value, sharding)
        elif _is_held(entry):
            value = jnp.array(value)  # a copy: JAX could not donate NumPy's memory
        found[entry.name] = value if entry.impl is None else jax.random.wrap_key_data(value, impl=entry.impl)
    return found
