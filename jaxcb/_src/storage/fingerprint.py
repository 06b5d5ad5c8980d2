"""Hashes of arrays, by which a run recognizes data and frozen parameters that its files do not contain."""

import hashlib
from collections.abc import Iterable, Mapping
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


def _sample(leaf: Any) -> np.ndarray:
    """Returns the array, or some of its rows."""
    if getattr(leaf, "nbytes", 0) <= _BYTES or not np.ndim(leaf):
        return np.asarray(leaf)
    rows = np.shape(leaf)[0]
    count = max(1, min(_ROWS, rows, _BYTES * rows // leaf.nbytes))
    some = np.asarray(leaf[np.linspace(0, rows - 1, count).astype(np.int64)]).reshape(-1)
    return some[:: max(1, some.nbytes // _BYTES)]
