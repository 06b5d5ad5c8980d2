"""Hashes of arrays, by which a run recognizes data and frozen parameters that its files do not contain."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcb._src.utils.names import leaf_name

_BYTES = 1 << 20  # of an array that are hashed; larger ones are sampled by rows
_ROWS = 256  # rows of a sample
_LEAVES = 64  # arrays of a list of batches that are hashed


def fingerprint(tree: Any) -> str | None:
    """Returns a hash of a pytree of arrays; None if it cannot be read here.

    Of large arrays some rows are hashed, and of many arrays the first ones.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)[:_LEAVES]
    return _hash((leaf_name(path), leaf) for path, leaf in leaves)


def batch_fingerprint(leaves: Sequence[Any]) -> str | None:
    """Returns a hash of a batch, wherever its arrays are: in memory as given, or on the devices.

    Args:
        leaves: the arrays. Of one that is distributed over processes the part of this process is hashed.

    Example:
        >>> batch_fingerprint([np.float64([1.0, 2.0])]) == batch_fingerprint([jax.numpy.array([1.0, 2.0])])
        True
    """
    return fingerprint([_on_host(leaf) for leaf in leaves])


def frozen_facts(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what checkpoints say of the frozen parameters, which they do not contain.

    Args:
        frozen: path -> array.

    Returns:
        The number of `arrays` and of `parameters`, and a `hash` of all arrays, of large ones of some rows; None if they
        cannot be read here.
    """
    return {
        "arrays": len(frozen),
        "parameters": sum(int(np.size(x)) for x in frozen.values()),
        "hash": _hash(sorted(frozen.items())),
    }


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _hash(leaves: Iterable[tuple[str, Any]]) -> str | None:
    found = hashlib.blake2b(digest_size=8)
    for name, leaf in leaves:
        if isinstance(leaf, jax.Array):
            if not leaf.is_fully_addressable:
                return None
            if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
        sample = _sample(leaf)
        if sample.dtype.hasobject:
            return None
        found.update(f"{name} {sample.dtype} {np.shape(leaf)};".encode())
        found.update(np.ascontiguousarray(sample).tobytes())
    return found.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    """Returns the part of an array that this process has given, with the dtype that it has on the devices."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        leaf = np.concatenate([parts[start] for start in sorted(parts)])
    return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _sample(leaf: Any) -> np.ndarray:
    """Returns the array, or some of its rows."""
    if getattr(leaf, "nbytes", 0) <= _BYTES or not np.ndim(leaf):
        return np.asarray(leaf)
    rows = np.shape(leaf)[0]
    count = max(1, min(_ROWS, rows, _BYTES * rows // leaf.nbytes))
    some = np.asarray(leaf[np.linspace(0, rows - 1, count).astype(np.int64)]).reshape(-1)
    return some[:: max(1, some.nbytes // _BYTES)]
