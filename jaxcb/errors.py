"""The errors that jaxcb raises for what a user wrote."""

from jaxcb._src.utils.errors import CallbackError, DataError, MissingMetricError, ProcessError

__all__ = [
    "CallbackError",
    "DataError",
    "MissingMetricError",
    "ProcessError",
]
