"""Rows: the scalars of a moment and which of them are new, and how they are written as text."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcb._metrics import Metrics

MISSING = "NA"


def fresh_scalars(metrics: Metrics) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the scalar metrics, and for each whether it was reported now, bool ()."""
    names = [name for name in metrics if jnp.ndim(metrics[name]) == 0]
    return {n: metrics[n] for n in names}, {n: metrics.fresh(n) for n in names}


def as_text(value: Any) -> str:
    """Writes a number as the shortest decimal that reads back as the same number of its own dtype."""
    value = np.asarray(value)
    if value.dtype.kind in "iub":
        return str(int(value))
    return str(value.astype(np.float32) if value.dtype.itemsize < 4 else value[()])


def row_text(values: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, str]:
    """Writes a row's values; what was not reported is `NA`."""
    return {name: as_text(value) if bool(fresh[name]) else MISSING for name, value in values.items()}
