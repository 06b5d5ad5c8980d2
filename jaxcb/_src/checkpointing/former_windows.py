"""Accumulators of checkpoints that were written before 30 November 2026: sums and errors were two arrays.

A checkpoint in the middle of an epoch contains the sums of its first part. Runs of that time must resume with the same
means.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.checkpointing.manifest import Saved
from jaxcb._src.checkpointing.store import Store

_TOTAL = re.compile(r"(\.windows\[(?:'.*?'|\".*?\")\])\.total(\[.*\])")


def shapes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes of stored arrays under the names of today.

    Args:
        stored: name -> shape and dtype, as the checkpoint has them.
    """
    pairs = _pairs(stored)
    former = {name for pair in pairs.values() for name in pair}
    joined = {name: _joined(stored[total]) for name, (total, _) in pairs.items()}
    return {name: leaf for name, leaf in stored.items() if name not in former} | joined


def load(store: Store, saved: Saved, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns arrays by their names of today.

    Args:
        store: contains the checkpoint.
        saved: the checkpoint.
        wanted: name -> shape, dtype and sharding.
    """
    pairs = {name: pair for name, pair in _pairs(saved.leaves).items() if name in wanted}
    target = {name: leaf for name, leaf in wanted.items() if name not in pairs}
    for name, pair in pairs.items():
        *lead, _, width = wanted[name].shape
        half = jax.ShapeDtypeStruct((*lead, width), wanted[name].dtype, sharding=wanted[name].sharding)
        target |= dict.fromkeys(pair, half)
    found = store.load(saved, target)
    for name, pair in pairs.items():
        found[name] = jnp.stack([found.pop(part) for part in pair], axis=-2)
    return found


def _pairs(stored: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the name of today -> the names of the sums and of their errors."""
    matches = {name: match for name in stored if (match := _TOTAL.fullmatch(name))}
    return {
        f"{match[1]}.sums{match[2]}": (total, error)
        for total, match in matches.items()
        if (error := f"{match[1]}.error{match[2]}") in stored
    }


def _joined(total: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array of sums and errors."""
    *lead, width = total.shape
    return jax.ShapeDtypeStruct((*lead, 2, width), total.dtype)
