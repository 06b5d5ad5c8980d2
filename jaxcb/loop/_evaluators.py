"""Evaluators: functions of the model that the host runs at a validation."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxcb.loop._run import Run


class Evaluators:
    """Functions of the model whose results join the metrics of a validation.

    Args:
        functions: name -> `fn(model)` that returns a number; or several names in a tuple -> `fn(model)` that returns
            as many, or a dict of them.
    """

    def __init__(self, functions: Mapping[Any, Callable[[Any], Any]] | None) -> None:
        self._functions: dict[tuple[str, ...], Callable[[Any], Any]] = {}
        for name, function in (functions or {}).items():
            names = (name,) if isinstance(name, str) else tuple(name)
            if not callable(function):
                raise TypeError(f"evaluators: {name!r} must be a function of the model, got {function!r}.")
            self._functions[names] = function
        self.names = tuple(name for names in self._functions for name in names)
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"evaluators: a name must be a string that is not empty, got {name!r}.")
            if self.names.count(name) > 1:
                raise ValueError(f"evaluators: {name!r} is the name of more than one result.")

    def __call__(self, run: Run, step: int) -> dict[str, np.ndarray]:
        """Runs them on the model of this moment; what fails names itself and the step.

        Returns:
            name -> float32 ().
        """
        out: dict[str, np.ndarray] = {}
        for names, function in self._functions.items():
            try:
                out |= _named(names, function(run.model))
            except Exception as error:
                error.add_note(f"This happened in the evaluator {', '.join(names)}, at step {step}.")
                raise
        return out


def _named(names: tuple[str, ...], result: Any) -> dict[str, np.ndarray]:
    if isinstance(result, Mapping):
        values: dict[Any, Any] = dict(result)
    else:
        listed = (result,) if len(names) == 1 else tuple(result)
        values = dict(zip(names, listed, strict=True)) if len(listed) == len(names) else dict(enumerate(listed))
    if set(values) != set(names):
        raise ValueError(f"it returned {sorted(map(str, values))}, expected values for {', '.join(names)}.")
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    for name, array in arrays.items():
        if array.ndim:
            raise ValueError(f"{name} is an array of shape {array.shape}, expected a number.")
    return arrays
