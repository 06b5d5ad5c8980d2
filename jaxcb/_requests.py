"""What is done with requests: they are checked, and answered."""

from typing import Any, TypeGuard

import jax

from jaxcb._actions import Action, RequestAction
from jaxcb._paths import leaf_name

_ALWAYS = ("params",)
_BETWEEN = ("grads", "updates", "activations")  # known between the two halves of a step


def is_request(action: Action) -> TypeGuard[RequestAction]:
    """Whether an action asks for what it is to carry."""
    return isinstance(action, RequestAction) and action.of is not None


def check_request(action: RequestAction, hook: str) -> None:
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


def answers(action: RequestAction, seen: Any) -> tuple[RequestAction, ...]:
    """Computes what an action asks for; pure.

    Args:
        action: a request.
        seen: a `Look`, or elsewhere than between the halves of a step the train state.

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
