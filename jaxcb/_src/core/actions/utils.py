"""Functions of actions: flatten them, test whether they fire, fill their templates, compute lazy ones."""

import string
from collections.abc import Iterable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.actions.base import Action, LazyLogAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.metric_names import as_text
from jaxcb._src.utils.names import leaf_name


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
    """Returns whether any `Stop` among `actions` fires, bool (); false if there is none. Jittable."""
    requested = jnp.zeros((), bool)
    for action in as_actions(actions):
        if isinstance(action, Stop):
            requested = requested | action.when
    return requested


def template_names(text: str) -> list[str]:
    """Returns the names that a template uses: `"{val_loss:.2f} at {epoch}"` -> val_loss, epoch."""
    return [name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name]


PLACES = ("epoch", "batch", "step")  # available in every template


def fill(
    action: Action, *, step: int = 0, epoch: int = 0, batch: int = 0, known: Iterable[tuple[str, Any]] = ()
) -> str:
    """Fills the template of `action` (host only) with its values, its position in the run, and `known`.

    Args:
        action: the action whose template is filled.
        step: updates done.
        epoch: index of the epoch, from 0; `{epoch}` counts from 1.
        batch: batches done in the epoch, so `{batch}` counts from 1 after a batch.
        known: further names and values.

    Returns:
        The text.
    """
    values: dict[str, Any] = {"step": int(step), "epoch": int(epoch) + 1, "batch": int(batch), **dict(known)}
    for name, value in getattr(action, "values", {}).items():
        array = np.asarray(value)
        values[name] = _short(array) if array.ndim == 0 else array
    text = getattr(action, action.template)
    if not callable(text):
        return text.format(**values)
    made = text(values)
    if not isinstance(made, str):
        raise TypeError(
            f"{action.owner}: the function of its {type(action).__name__} returned a {type(made).__name__}, expected a "
            "text."
        )
    return made


class _Short(float):
    """A number that is written, without a format, as the shortest decimal that is the same number of its dtype."""

    text: str

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if spec else self.text

    def __str__(self) -> str:
        return self.text


def _short(array: np.ndarray) -> Any:
    """Returns a scalar array as a Python number, for a template."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return array.item()
    number = _Short(array.item())
    number.text = as_text(array)
    return number


_ALWAYS = ("params",)
_BETWEEN = ("grads", "updates", "activations")  # available only between computing and applying an update


def is_lazy(action: Action) -> TypeGuard[LazyLogAction]:
    """Returns whether the run has to compute the payload of an action."""
    return isinstance(action, LazyLogAction) and action.of is not None


def check_lazy(action: LazyLogAction, hook: str) -> None:
    """Checks that the arrays an action logs are available in a hook.

    Raises:
        ValueError: if not; the message lists the available ones.
    """
    of, what = action.of, f"{action.owner}: {type(action).__name__}(of={action.of!r})"
    if isinstance(of, str) and of not in (*_ALWAYS, *_BETWEEN):
        known = ", ".join(repr(name) for name in (*_ALWAYS, *_BETWEEN))
        raise ValueError(f"{what} is not available. Available: {known}, or a function.")
    if isinstance(of, str) and of not in _ALWAYS and hook != "on_before_update":
        raise ValueError(
            f"{what} in {hook}: it is available in on_before_update only; 'params', and functions of the train state, "
            "in every hook."
        )


def materialize(action: LazyLogAction, seen: Any) -> tuple[LazyLogAction, ...]:
    """Computes the payload of a lazy action; pure.

    Args:
        action: a log action with `of` set.
        seen: a `StepView` in `on_before_update`, else the train state.

    Returns:
        Actions with the payload, and with the `when` and owner of `action`.
    """
    try:
        tree = action.of(seen) if callable(action.of) else getattr(seen, str(action.of))
        arrays = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        return tuple(found.replace(when=action.when, owner=action.owner) for found in action.answer(arrays))
    except Exception as error:
        error.add_note(f"This happened while computing of= of {type(action).__name__} for {action.owner}.")
        raise
