"""Errors that jaxcb raises for invalid user code, data or processes, and checks of arguments that raise them."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np


class CallbackError(TypeError):
    """A callback that violates the form `(state, metrics) -> (state, actions)`."""


class MissingMetricError(LookupError):
    """A metric that does not exist; the message lists those that do."""


class DataError(ValueError):
    """Invalid training or validation data."""


class ProcessError(RuntimeError):
    """Another process of the run has failed, died or cannot be reached; the message names it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" if one of `known` is close to `name`, otherwise an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _concrete(value: Any) -> bool:
    """Returns whether a value is a Python or numpy number. Arrays, which a sweep batches, are not checked."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_int(owner: str, name: str, value: Any, *, least: int = 0) -> Any:
    """Checks for an integer of at least `least`, and returns it as an int."""
    if hasattr(value, "shape") and not isinstance(value, np.number):
        return value
    if not _concrete(value) or not math.isfinite(value) or int(value) != value or value < least:
        raise ValueError(f"{owner}: {name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def check_number(owner: str, name: str, value: Any, *, least: float = -math.inf) -> Any:
    """Checks for a finite number of at least `least`, and returns it as a float."""
    if hasattr(value, "shape") and not isinstance(value, np.number):
        return value
    if not _concrete(value) or not math.isfinite(value) or value < least:
        bound = f" of at least {least}" if least > -math.inf else ""
        raise ValueError(f"{owner}: {name} must be a finite number{bound}, got {value!r}.")
    return float(value)


def check_between(owner: str, name: str, value: Any, low: float, high: float) -> Any:
    """Checks for a number strictly between `low` and `high`, and returns it as a float."""
    if hasattr(value, "shape") and not isinstance(value, np.number):
        return value
    if not _concrete(value) or not low < value < high:
        raise ValueError(f"{owner}: {name} must lie strictly between {low} and {high}, got {value!r}.")
    return float(value)


def check_choice(owner: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Checks for one of the known values."""
    if value not in known:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_bool(owner: str, name: str, value: Any) -> bool:
    """Requires True or False, or a number equal to one of them, and returns it as a bool."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}.")
    return bool(value)
