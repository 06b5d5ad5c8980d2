"""The errors that jaxcb raises for mistakes in user code."""

from jaxcb._src.utils.errors import CallbackError, DataError, MissingMetricError, ProcessError

__all__ = [
    "CallbackError",
    "DataError",
    "MissingMetricError",
    "ProcessError",
]
