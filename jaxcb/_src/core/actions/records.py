"""`Records`: the actions of a compiled run as stacked arrays, and the functions that read stacks on the host."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.utils import as_actions, fill
from jaxcb._src.utils.pytree import Struct


class RecordPosition(Struct):
    """Position of a record in the run."""

    seq: Any  # hook calls so far that recorded anything
    step: Any  # int32 (), updates done
    epoch: Any  # int32 (), from 0
    batch: Any  # int32 (), steps done in this epoch


class Records(Struct):
    """The log actions and the stops of a run inside a compiled program; `scan` returns them.

    All arrays have one entry per call of their hook as leading axis; under `vmap` the axes of the rows come before it.
    An entry counts where the `when` of its action is true. `jc.fired` and `jc.stop_reasons` read it, and
    `Recorder.perform` performs it.

    Attributes:
        stacks: hook -> the positions of its calls, and its actions.
    """

    stacks: dict[str, tuple[RecordPosition, tuple[Action, ...]]]

    def of(self, kind: type[Action]) -> tuple[Action, ...]:
        """Returns the stacked actions of a class, such as `jc.actions.LogHistory`."""
        return tuple(a for _, actions in self.stacks.values() for a in actions if isinstance(a, kind))

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading axes of a program that runs several rows, by `vmap`; empty for a single run."""
        shapes = {np.shape(at.seq)[:-1] for at, _ in self.stacks.values()}
        return shapes.pop() if shapes else ()


class FiredRecord(NamedTuple):
    """One action that fired, with concrete values."""

    hook: str
    at: RecordPosition
    action: Action


def records_of_rows(records: Records) -> Iterator[tuple[tuple[int, ...], list[FiredRecord]]]:
    """Yields for each row its index, and the actions that fired, in order. Runs on the host."""
    concrete: Records = jax.device_get(records)
    for row in np.ndindex(*concrete.rows):
        found = []
        for hook, (at, actions) in concrete.stacks.items():
            for index, action in enumerate(actions):
                for entry in np.flatnonzero(action.when[row]).tolist():
                    where, own = jax.tree.map(lambda x, i=(*row, entry): x[i], (at, action))
                    found.append((int(where.seq), index, FiredRecord(hook, where, own)))
        found.sort(key=lambda entry: entry[:2])
        yield row, [record for *_, record in found]


def fired(actions: Any) -> tuple[Action, ...]:
    """Returns the actions whose `when` is true, in order, with concrete values.

    Host only.

    Args:
        actions: what a hook returned; or its stack with any leading axes, such as those of `lax.scan` and `vmap`; or
            the `records` of `scan`. The actions of a stack come in the order of its axes, so those of one row in order
            of time.

    Returns:
        The actions, without the axes of the stack.

    Raises:
        ValueError: for actions of stacks that have different axes.

    Example:
        >>> import jaxcb as jc
        >>> [a.reason for a in jc.fired((jc.actions.Stop(True, "now"), jc.actions.Stop(False, "later")))]
        ['now']
    """
    if isinstance(actions, Records):
        return tuple(record.action for _, row in records_of_rows(actions) for record in row)
    return tuple(action for _, entry in _entries(actions) for action in entry)


def stop_reasons(actions: Any) -> Any:
    """Returns who has stopped a run, and why; None for a run that has not been stopped.

    Host only.

    Args:
        actions: the `records` of `scan`; or what a hook returned, or its stack with any leading axes.

    Returns:
        A text or None. For the records of several rows, and for each entry of a stack, lists of them, nested as the
        leading axes are.

    Raises:
        ValueError: for actions of stacks that have different axes.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.stop_reasons(jc.actions.Stop(jnp.array([True, False]), "loss is low"))
        ['loss is low', None]
    """
    if isinstance(actions, Records):
        axes = actions.rows
        found = {row: [_reason(r.action, r.at) for r in own] for row, own in records_of_rows(actions)}
    else:
        given = [a for a in as_actions(actions) if isinstance(a, Stop)]
        axes = next((np.shape(a.when) for a in given if np.ndim(a.when)), ())
        found = {index: [_reason(action) for action in entry] for index, entry in _entries(given)}
    reasons = np.empty(axes, object)
    for index in np.ndindex(*axes):
        reasons[index] = "; ".join(reason for reason in found.get(index, ()) if reason) or None
    return reasons.tolist()


def _reason(action: Action, at: RecordPosition | None = None) -> str:
    if not isinstance(action, Stop):
        return ""
    step, epoch, batch = (0, 0, 0) if at is None else (int(at.step), int(at.epoch), int(at.batch))
    text = fill(action, step=step, epoch=epoch, batch=batch)
    return f"{action.owner}: {text}" if action.owner else text


def _entries(actions: Any) -> Iterator[tuple[tuple[int, ...], list[Action]]]:
    """Yields for each entry of a stack its index, and the actions that fire. One that is no stack comes last."""
    concrete = jax.device_get(as_actions(actions))
    whens = [np.asarray(action.when) for action in concrete]
    shapes = {when.shape for when in whens if when.ndim}
    if len(shapes) > 1:
        raise ValueError(
            f"expected the actions of one hook call, or their stack, got predicates of shapes {sorted(shapes)}. Read "
            "the stacks one by one."
        )
    for shape in shapes:
        for index in np.ndindex(*shape):
            pairs = zip(concrete, whens, strict=True)
            yield index, [jax.tree.map(lambda x, i=index: x[i], a) for a, w in pairs if w.ndim and w[index]]
    yield (), [a for a, when in zip(concrete, whens, strict=True) if not when.ndim and when]
