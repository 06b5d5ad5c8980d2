"""What is done with requests: they are checked, and answered."""

import string
from collections.abc import Iterable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.actions.base import Action, LazyLogAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.utils.leaf_names import leaf_name


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
        >>> [a.reason for a in jc.fired((jc.actions.Stop(True, "now"), jc.actions.Stop(False, "later")))]
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


_ALWAYS = ("params",)
_BETWEEN = ("grads", "updates", "activations")  # known between the two halves of a step


def is_lazy(action: Action) -> TypeGuard[LazyLogAction]:
    """Whether an action asks for what it is to carry."""
    return isinstance(action, LazyLogAction) and action.of is not None


def check_lazy(action: LazyLogAction, hook: str) -> None:
    """Requires that what an action asks for is known in a hook.

    Raises:
        ValueError: says what is, and where.
    """
    of, what = action.of, f"{action.owner}: {type(action).__name__}(of={action.of!r})"
    if isinstance(of, str) and of not in (*_ALWAYS, *_BETWEEN):
        known = ", ".join(repr(name) for name in (*_ALWAYS, *_BETWEEN))
        raise ValueError(f"{what} asks for what does not exist. Known: {known}, or a function.")
    if isinstance(of, str) and of not in _ALWAYS and hook != "on_before_update":
        raise ValueError(
            f"{what} in {hook}: that is known in on_before_update alone; 'params', and functions of the train state, "
            "everywhere."
        )


def materialize(action: LazyLogAction, seen: Any) -> tuple[LazyLogAction, ...]:
    """Computes what an action asks for; pure.

    Args:
        action: a request.
        seen: a `StepView`, or elsewhere than between the halves of a step the train state.

    Returns:
        Actions that carry it, of the same `when` and owner.
    """
    try:
        tree = action.of(seen) if callable(action.of) else getattr(seen, str(action.of))
        arrays = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        return tuple(own.replace(when=action.when, owner=action.owner) for own in action.answer(arrays))
    except Exception as error:
        error.add_note(f"This happened in what {type(action).__name__} of {action.owner} asks for.")
        raise
