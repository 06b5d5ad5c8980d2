"""Shared functions of callbacks that compare the members of a population."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import Metrics


def scores(owner: str, monitor: str, mode: str, metrics: Metrics) -> Array:
    """Returns the monitored value of each member, with the sign for which lower is better, float32 (members,).

    NaN is worse than any number, and a member that no longer trains is worse than NaN.

    Raises:
        TypeError: if the value is not one number per member.
    """
    value = metrics[monitor]
    if value.shape != metrics.alive.shape:
        raise TypeError(f"{owner}: {monitor!r} has shape {value.shape}, expected one number per member.")
    score = value.astype(jnp.float32) * (1.0 if mode == "min" else -1.0)
    score = jnp.where(jnp.isnan(score), jnp.finfo(jnp.float32).max, score)
    return jnp.where(metrics.alive, score, jnp.inf)


def ranks(score: Array, member: Array) -> Array:
    """Returns the rank of each score, 0 the best, int32 (members,); of equal scores, the lower member is first."""
    before = (score[None, :] < score[:, None]) | (
        (score[None, :] == score[:, None]) & (member[None, :] < member[:, None])
    )
    return before.sum(axis=1).astype(jnp.int32)


def is_due(metrics: Metrics, every: int) -> Any:
    """Returns whether this epoch is the last of a period of `every` epochs, bool ()."""
    return (metrics.epoch + 1) % every == 0
