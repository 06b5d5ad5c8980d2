"""Metrics that merge: objects with `merge` and `compute`, such as those of clu and metrax."""

from typing import Any


def is_mergeable(value: Any) -> bool:
    """Whether `value` is reduced by its own `merge` and `compute`."""
    return callable(getattr(value, "merge", None)) and callable(getattr(value, "compute", None))
