"""What the callbacks share that compare the members of a population."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import Metrics


def scores(owner: str, monitor: str, mode: str, metrics: Metrics) -> Array:
    """The monitored value of each member so that lower is better, float32 (members,).

    NaN is the worst a member can be, and who trains no more is worse than all.

    Raises:
        TypeError: for a value that is not one number a member.
    """
    value = metrics[monitor]
    if value.shape != metrics.alive.shape:
        raise TypeError(f"{owner}: {monitor!r} has shape {value.shape}, expected one number a member.")
    score = value.astype(jnp.float32) * (1.0 if mode == "min" else -1.0)
    score = jnp.where(jnp.isnan(score), jnp.finfo(jnp.float32).max, score)
    return jnp.where(metrics.alive, score, jnp.inf)


def ranks(score: Array, member: Array) -> Array:
    """The place of each score, 0 the best, int32 (members,); of equal ones the member of the lower number is before."""
    before = (score[None, :] < score[:, None]) | (
        (score[None, :] == score[:, None]) & (member[None, :] < member[:, None])
    )
    return before.sum(axis=1).astype(jnp.int32)


def is_due(metrics: Metrics, every: int) -> Any:
    """Whether this epoch is the last of `every`, bool ()."""
    return (metrics.epoch + 1) % every == 0
