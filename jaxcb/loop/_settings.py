"""What was set for a run, as numbers and texts that tables show."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxcb._chain import Chain


def settings_of(arguments: Mapping[str, Any], callbacks: Chain, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns name -> number, text or boolean.

    Args:
        arguments: of the run; what is None is left out.
        callbacks: theirs are the numbers that a sweep can change, as `EarlyStopping.patience`.
        more: what else was set.
    """
    found = dict(arguments)
    for name, callback in callbacks.members():
        for field in dataclasses.fields(callback):  # pyright: ignore[reportArgumentType]
            value = getattr(callback, field.name)
            if not field.metadata.get("static") and np.ndim(value) == 0 and not isinstance(value, str | None):
                found[f"{name}.{field.name}"] = np.asarray(value).item()
    found |= more
    return {name: value for name, value in found.items() if _is_shown(value)}


def _is_shown(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def name_of(value: Any) -> Any:
    """Returns a number as it is, and of a function its name; of one that another made, that one's."""
    if isinstance(value, Callable):
        name = getattr(value, "__qualname__", None) or getattr(getattr(value, "func", None), "__qualname__", None)
        return (name or type(value).__qualname__).split(".<locals>")[0]
    is_number = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    return float(value) if is_number else None
