"""The fresh scalars of a record, as Python numbers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcb._rows import as_text
from jaxcb.writers._writer import by_member


def fresh_scalars_of(action: Any) -> dict[str, Any]:
    """Returns name -> scalar for what was reported; members of a population have a name each, `name/member`."""
    found = {}
    for member, own in by_member(action):
        suffix = "" if member is None else f"/{member}"
        found |= {name + suffix: value for name, value in own.values.items() if bool(own.fresh[name])}
    return found


def fresh_floats(action: Any) -> dict[str, float]:
    """Returns name -> float for what was reported."""
    return {name: float(value) for name, value in fresh_scalars_of(action).items()}


def json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers as JSON can hold them: the shortest that read back; texts for what is not finite."""
    return {name: _json_number(value) for name, value in values.items()}


def _json_number(value: Any) -> Any:
    if np.asarray(value).dtype.kind in "iub":
        return int(value)
    number = float(as_text(value))
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
