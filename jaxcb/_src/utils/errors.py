"""Errors that jaxcb raises for invalid user code, data or processes."""

import difflib
from collections.abc import Iterable


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
