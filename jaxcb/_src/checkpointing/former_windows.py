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
    return {new: leaf if new == old else _joined(leaf) for old, new, leaf in _renamed(stored)}


def load(store: Store, saved: Saved, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns arrays by their names of today.

    Args:
        store: contains the checkpoint.
        saved: the checkpoint.
        wanted: name -> shape, dtype and sharding.
    """
    former = {new: old for old, new, _ in _renamed(saved.leaves) if new != old}
    target = {name: leaf for name, leaf in wanted.items() if name not in former}
    for name, total in former.items():
        if name in wanted:
            *lead, _, width = wanted[name].shape
            half = jax.ShapeDtypeStruct((*lead, width), wanted[name].dtype, sharding=wanted[name].sharding)
            target |= dict.fromkeys((total, _error(total)), half)
    found = store.load(saved, target)
    for name, total in former.items():
        if name in wanted:
            found[name] = jnp.stack([found.pop(total), found.pop(_error(total))], axis=-2)
    return found


def _renamed(stored: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Returns stored name, name of today, and leaf. Errors are left out: they join their sums."""
    totals = {name: match for name in stored if (match := _TOTAL.fullmatch(name)) and _error(name) in stored}
    errors = set(map(_error, totals))
    return [
        (name, f"{totals[name][1]}.sums{totals[name][2]}" if name in totals else name, leaf)
        for name, leaf in stored.items()
        if name not in errors
    ]


def _error(total: str) -> str:
    return _TOTAL.sub(r"\1.error\2", total)


def _joined(total: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array of sums and errors."""
    *lead, width = total.shape
    return jax.ShapeDtypeStruct((*lead, 2, width), total.dtype)
