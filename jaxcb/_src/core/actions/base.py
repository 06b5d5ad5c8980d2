"""Base classes of actions. A `LazyLogAction` with `of` set is computed by the run when it fires."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from jaxcb._src.utils.names import check_pattern, matches
from jaxcb._src.utils.pytree import Struct, static


class Action(Struct):
    """Base class of actions: an effect that takes place where `when` is true.

    Attributes:
        when: whether the action fires, bool (). Only the arrays of an action may change between hook calls, never its
            structure.
        owner: name of the callback that returned it; set by `chain`.
    """

    when: Any = dataclasses.field(default=True, kw_only=True)
    owner: str = static(default="", kw_only=True)

    template = ""  # the name of the field that holds a text template, in subclasses that have one


class ControlAction(Action):
    """Base class of actions that change the run on the device."""


class LogAction(Action):
    """Base class of actions that send values to the host."""


class HostAction(Action):
    """Base class of actions that need the live run on the host."""


class LazyLogAction(LogAction):
    """Base class of log actions whose payload the run can compute on the device, only when the action fires.

    A subclass defines `answer`.

    Attributes:
        of: the arrays to log: "params", "grads", "updates", "activations" (the outputs of a Flax model's modules), or
            a function that returns a pytree of arrays. The function receives a `StepView` in `on_before_update` and
            the train state in all other hooks. "params" is available in every hook, the other names only in
            `on_before_update`. None if the action holds its own values.
        where: pattern of the paths to log.
    """

    of: str | Callable[[Any], Any] | None = static(default=None, kw_only=True)
    where: str = static(default="**", kw_only=True)

    def answer(self, arrays: dict[str, Any]) -> tuple[Self, ...]:
        """Returns the actions with their payload: a fixed number of actions of fixed structure. Pure.

        Args:
            arrays: path -> array, of the pytree that `of` selects.
        """
        raise NotImplementedError

    def chosen(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Returns the arrays whose path matches `where`.

        Raises:
            ValueError: if no path matches.
        """
        check_pattern(self.where, arrays, self.owner or type(self).__name__)
        return {path: x for path, x in arrays.items() if matches(self.where, path)}
