"""The errors that jaxcb raises for what a user wrote."""

import difflib
from collections.abc import Iterable


class CallbackError(TypeError):
    """A callback that breaks the form `(state, metrics) -> (state, actions)`."""


class MissingMetricError(LookupError):
    """A metric that is not there, with the names that are."""


class DataError(ValueError):
    """Data that cannot be trained on."""


class ProcessError(RuntimeError):
    """Another process of the run has failed, died or cannot be reached; it is named."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" where one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
