"""By which metric a run is judged, and its best report."""

from typing import Any

import numpy as np

from jaxcb._src.core.metric_names import infer_mode_or_none
from jaxcb._src.history.reader import RATES, Records


def monitor_of(names: Any) -> tuple[str, str] | None:
    """Returns the metric by which a log is judged, and its direction; None if no name implies one."""
    last = {"val_loss": 0, "loss": 2}
    order = sorted(names, key=lambda name: (last.get(name, 1 if name.startswith("val_") else 3), name))
    return next(((n, mode) for n in order if n not in RATES and (mode := infer_mode_or_none(n))), None)


def best_of(records: Records, name: str, mode: str) -> tuple[float, int] | None:
    """Returns the best report of a metric and its epoch, from 0; None if no report is a number."""
    values = reports_of(records, name).astype(np.float64)
    if np.all(np.isnan(values)):
        return None
    row = int(np.nanargmin(values) if mode == "min" else np.nanargmax(values))
    return float(records.values[row, records.names.index(name)]), int(records.epoch[row])


def reports_of(records: Records, name: str) -> np.ndarray:
    """Returns the values of a metric, NaN at records at which it was not reported, float32 (records,)."""
    at = records.names.index(name)
    return np.where(records.fresh[:, at], records.values[:, at], np.float32(np.nan))
