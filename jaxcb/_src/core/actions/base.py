"""Requests: log actions that the run fills with what is inside it, when they fire."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from jaxcb._src.utils.leaf_names import check_pattern, matches
from jaxcb._src.utils.pytree import Struct, static


class Action(Struct):
    """One thing that should happen where `when` holds.

    Attributes:
        when: whether it happens now, bool (). The structure of an action never changes, only its arrays.
        owner: name of the callback that asked for it; `chain` fills it in.
    """

    when: Any = dataclasses.field(default=True, kw_only=True)
    owner: str = static(default="", kw_only=True)

    template = ""  # a subclass that carries a text says here which field holds it


class ControlAction(Action):
    """An action that changes the run on the device."""


class LogAction(Action):
    """An action that carries values to the host."""


class HostAction(Action):
    """An action that needs the live run on the host."""


class LazyLogAction(LogAction):
    """A log action that may be a request: the run computes what it carries on the device, only when it fires.

    A subclass defines `answer`.

    Attributes:
        of: what it is about: "params", "grads", "updates", "activations" (the outputs of a Flax model's modules), or
            a function that returns a tree of arrays: of a `StepView` in `on_before_update`, of the train state
                elsewhere.
            None where the action carries values of its own. Of the words "params" alone is known everywhere, the
            others in `on_before_update`.
        where: pattern of the paths that it is about.
    """

    of: str | Callable[[Any], Any] | None = static(default=None, kw_only=True)
    where: str = static(default="**", kw_only=True)

    def answer(self, arrays: dict[str, Any]) -> tuple[Self, ...]:
        """Returns the actions that a request stands for: always as many, and of the same form. Pure.

        Args:
            arrays: what it asked for, by path.
        """
        raise NotImplementedError

    def chosen(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Returns the arrays whose path fits.

        Raises:
            ValueError: where none does.
        """
        check_pattern(self.where, arrays, self.owner or type(self).__name__)
        return {path: x for path, x in arrays.items() if matches(self.where, path)}
