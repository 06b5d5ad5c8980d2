"""Who stopped a run, and why: the `Stop` actions that came back from the device."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._actions import fill
from jaxcb.loop._rings import Record


class StopRecord(NamedTuple):
    """A `Stop` that fired: who asked, why, where, and for which member of a population."""

    owner: str
    reason: str
    step: int
    epoch: int
    member: int | None = None


def stops_of(record: Record) -> Iterable[StopRecord]:
    """Returns the stops of a record, one a member for which it fires."""
    when = np.asarray(record.action.when)
    for member in np.flatnonzero(when) if when.ndim else (None,):
        own = record.action if member is None else jax.tree.map(lambda x, m=member: x[m], record.action)
        reason = fill(own, step=record.step, epoch=record.epoch, batch=record.batch)
        yield StopRecord(own.owner, reason, record.step, record.epoch, None if member is None else int(member))


def check_text(action: Any, members: int | None) -> None:
    """Fills an action's text with zeros, so that one that cannot be filled is found before the first step."""
    if not action.template:
        return
    axes = 0 if members is None else 1
    zeros = jax.tree.map(lambda s: np.zeros(s.shape[axes:], s.dtype), action)
    try:
        fill(zeros)
    except Exception as error:
        text = getattr(action, action.template)
        raise ValueError(
            f"{action.owner}: the text of its {type(action).__name__}, {text!r}, cannot be filled: {error}"
        ) from None
