"""Errors that jaxcb raises for invalid user code, data or processes, and checks of arguments that raise them.

JAX is imported where it is used: the command line reads runs without it, and starts several times faster so.
"""

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


class CallbackError(TypeError):
    """A callback that violates the form `(state, metrics) -> (state, actions)`."""


class MissingMetricError(LookupError, ValueError):
    """A metric that does not exist; the message lists those that do."""


class DataError(ValueError):
    """Invalid training or validation data."""


class ProcessError(RuntimeError):
    """Another process of the run has failed, died or cannot be reached; the message names it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" if one of `known` is close to `name`, otherwise an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_tracer(value: Any) -> bool:
    """Returns whether a value is traced by JAX; without JAX, none is."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _is_key(value: Any) -> bool:
    """Returns whether a value is an array of PRNG keys."""
    jax, dtype = sys.modules.get("jax"), getattr(value, "dtype", None)
    return jax is not None and dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.extended)


def _number(owner: str, name: str, value: Any, expected: str, *, concrete: bool = False) -> Any:
    """Returns a number that was given as a single array as a Python number, anything else unchanged.

    Raises:
        ValueError: for an array of another shape, and for a key.
    """
    if not hasattr(value, "shape") or isinstance(value, np.number) or is_tracer(value):
        return value
    if _is_key(value):
        raise ValueError(f"{owner}: {name} must be {expected}, got a PRNG key. Pass a number.")
    if concrete and not isinstance(value, np.generic):
        raise ValueError(
            f"{owner}: {name} must be {expected}, got an array of shape {tuple(value.shape)}. "
            f"Pass a Python number, such as {'float' if 'finite' in expected else 'int'}(x)."
        )
    if value.shape != ():
        raise ValueError(
            f"{owner}: {name} must be {expected}, got an array of shape {tuple(value.shape)}. Pass one number."
        )
    return np.asarray(value)[()]


def _is_number(value: Any) -> bool:
    """Returns whether a value is a Python or numpy number."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.complexfloating)


def _is_traced(value: Any, concrete: bool) -> bool:
    """Returns whether a value is known only when a program runs, and so cannot be checked: that of a swept field."""
    return is_tracer(value) and not concrete


def check_int(owner: str, name: str, value: Any, *, least: int = 0, concrete: bool = False) -> Any:
    """Checks for an integer of at least `least`, and returns it as an int.

    Args:
        owner: whose argument it is.
        name: the name of the argument.
        value: the value.
        least: the smallest valid value.
        concrete: whether a traced value is refused, too; a field of a callback may be one.
    """
    if _is_traced(value, concrete):
        return value
    expected = f"a whole number of at least {least}"
    number = _number(owner, name, value, expected, concrete=concrete)
    if not _is_number(number) or not math.isfinite(number) or int(number) != number or number < least:
        raise ValueError(f"{owner}: {name} must be {expected}, got {shown(value)}.")
    return int(number)


def check_seed(owner: str, seed: Any) -> int:
    """Checks a seed, and returns it as an int; a key is refused, because the run makes its own."""
    if _is_key(seed):
        raise TypeError(
            f"{owner}: seed must be a whole number of at least 0, got a PRNG key. Pass the number that the key was "
            "made of; the run makes its own keys from it."
        )
    number = check_int(owner, "seed", seed, concrete=True)
    if number >= 2**63:
        raise ValueError(f"{owner}: seed must be a whole number of at most {2**63 - 1}, got {number}.")
    return number


def check_number(owner: str, name: str, value: Any, *, least: float = -math.inf, concrete: bool = False) -> Any:
    """Checks for a finite number of at least `least`, and returns it as a float; arguments as for `check_int`."""
    if _is_traced(value, concrete):
        return value
    expected = f"a finite number{f' of at least {least}' if least > -math.inf else ''}"
    number = _number(owner, name, value, expected, concrete=concrete)
    if not _is_number(number) or not math.isfinite(number) or number < least:
        raise ValueError(f"{owner}: {name} must be {expected}, got {shown(value)}.")
    return float(number)


def check_between(owner: str, name: str, value: Any, low: float, high: float) -> Any:
    """Checks for a number strictly between `low` and `high`, and returns it as a float."""
    if _is_traced(value, concrete=False):
        return value
    number = _number(owner, name, value, f"a number strictly between {low} and {high}")
    if not _is_number(number) or not low < number < high:
        raise ValueError(f"{owner}: {name} must lie strictly between {low} and {high}, got {shown(value)}.")
    return float(number)


def shown(value: Any) -> str:
    """Returns a value in one short line, for messages."""
    if is_tracer(value):
        return "a value that is traced, known only when a compiled program runs"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_rate_name(owner: str, of: Any) -> None:
    """Checks the name of one of several learning rates.

    Raises:
        TypeError: if it is no text.
    """
    if of is not None and not (isinstance(of, str) and of):
        raise TypeError(
            f"{owner}: of must be the name of a learning rate, such as 'head' for the group 'head/**' of optimizer, or "
            f"None for all, got {shown(of)}."
        )


def check_choice(owner: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Checks for one of the known values."""
    # of anything else a comparison may have no single answer, as of an array
    if not isinstance(value, str | int | np.integer | np.bool_ | None) or value not in known:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, known))}, got {shown(value)}.")


def check_bool(owner: str, name: str, value: Any) -> bool:
    """Requires True or False, or a number equal to one of them, and returns it as a bool."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise TypeError(f"{owner}: {name} must be True or False, got {shown(value)}.")
    return bool(value)


def check_text(owner: str, name: str, value: Any) -> str:
    """Requires a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{owner}: {name} must be a string that is not empty, got {shown(value)}.")
    return value


def check_texts(owner: str, name: str, value: Any) -> tuple[str, ...]:
    """Requires a string, or a sequence of strings, and returns them as a tuple."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, tuple | list) or not given or not all(isinstance(text, str) and text for text in given):
        raise TypeError(f"{owner}: {name} must be a string that is not empty, or a tuple of these, got {shown(value)}.")
    return tuple(given)


def takes(function: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Returns whether a function can be called with these arguments; some builtins do not say, and count as one."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:
        pass
    return True


def check_interval(owner: str, name: str, value: Any) -> Any:
    """Requires "epoch" or a number of steps."""
    if isinstance(value, str):
        if value != "epoch":
            raise ValueError(f"{owner}: {name} must be 'epoch' or a number of steps, got {value!r}.")
        return value
    return check_int(owner, name, value, least=1)


def check_verbose(owner: str, value: Any) -> None:
    """Requires a verbosity of Keras: 0, or 1 or 2 for a printed line."""
    check_choice(owner, "verbose", value, (0, 1, 2))
