"""What is done with actions: laid flat, asked, filled."""

import string
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._actions._base import Action
from jaxcb._actions._control import Stop


def as_actions(actions: Any) -> tuple[Action, ...]:
    """Returns what a hook returned (None, one action, or nested tuples of them) as a flat tuple."""
    if actions is None:
        return ()
    if isinstance(actions, Action):
        return (actions,)
    if isinstance(actions, tuple | list):
        return tuple(a for part in actions for a in as_actions(part))
    raise TypeError(f"expected None, an action or a tuple of actions, got {type(actions).__name__}.")


def stop_requested(actions: Any) -> Array:
    """Whether any `Stop` among `actions` fires, bool (); false where there is none. Jittable."""
    requested = jnp.zeros((), bool)
    for action in as_actions(actions):
        if isinstance(action, Stop):
            requested = requested | action.when
    return requested


def fired(actions: Any) -> tuple[Action, ...]:
    """Returns the actions whose `when` holds, in order, with concrete values.

    Host only. Takes the stack that `lax.scan` makes of them as well (leading axis: time), and then
    gives them moment by moment.

    Example:
        >>> import jaxcb as jc
        >>> [a.reason for a in jc.fired((jc.Stop(True, "now"), jc.Stop(False, "later")))]
        ['now']
    """
    concrete = jax.device_get(as_actions(actions))
    whens = [np.asarray(a.when) for a in concrete]
    lengths = {w.shape for w in whens if w.ndim}
    if not lengths:
        return tuple(a for a, w in zip(concrete, whens, strict=True) if w)
    if len(lengths) > 1 or len(next(iter(lengths))) > 1:
        raise ValueError(f"expected actions of one moment or of one scan, got predicates of shapes {lengths}.")
    out: list[Action] = []
    for moment in range(next(iter(lengths))[0]):
        for action, when in zip(concrete, whens, strict=True):
            if when.ndim and when[moment]:
                out.append(jax.tree.map(lambda x, i=moment: x[i], action))
    return tuple(out)


def template_names(text: str) -> list[str]:
    """Returns the names that a template asks for: `"{val_loss:.2f} at {epoch}"` -> val_loss, epoch."""
    return [name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name]


PLACES = ("epoch", "batch", "step")  # what every template may ask for


def fill(
    action: Action, *, step: int = 0, epoch: int = 0, batch: int = 0, known: Iterable[tuple[str, Any]] = ()
) -> str:
    """Fills the text of `action` (host only) with its values, its place in the run, and what is `known` besides.

    Args:
        action: its template is filled.
        step: updates done.
        epoch: index of the epoch, from 0; `{epoch}` counts from 1.
        batch: batches done in the epoch, so that `{batch}` counts from 1 behind a batch.
        known: further names and values.
    """
    values: dict[str, Any] = {"step": int(step), "epoch": int(epoch) + 1, "batch": int(batch), **dict(known)}
    for name, value in getattr(action, "values", {}).items():
        array = np.asarray(value)
        values[name] = array.item() if array.ndim == 0 else array
    return getattr(action, action.template).format(**values)
