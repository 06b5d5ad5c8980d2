"""Writers of scalars by step: functions and JSON Lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.core.metric_names import as_text
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.files import AppendFile


def fresh_scalars_of(action: Any) -> dict[str, Any]:
    """Returns name -> scalar for the reported values; for a population, each member has a name, `name/member`."""
    found = {}
    for member, scalars in by_member(action):
        suffix = "" if member is None else f"/{member}"
        found |= {name + suffix: value for name, value in scalars.values.items() if bool(scalars.fresh[name])}
    return found


def fresh_floats(action: Any) -> dict[str, float]:
    """Returns name -> float for the reported values."""
    return {name: float(value) for name, value in fresh_scalars_of(action).items()}


def python_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns Python numbers: the shortest decimals that parse to the same value of their dtype."""
    return {name: _python_number(value) for name, value in values.items()}


def _python_number(value: Any) -> float:
    return int(value) if np.asarray(value).dtype.kind in "iub" else float(as_text(value))


def json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers for JSON: the shortest decimals that parse to the same value; strings for non-finite ones."""
    return {name: _json_number(value) for name, value in values.items()}


def _json_number(value: Any) -> Any:
    if np.ndim(value):
        return [_json_number(part) for part in np.asarray(value)]
    number = _python_number(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


class HandOverWriter(Writer):
    """Calls the function; warns once if it raises an `OSError`."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._told: set[str] = set()

    def write(self, record: Any) -> None:
        action, values = record.action, fresh_floats(record.action)
        if not values or self.context.trial:
            return
        try:
            action.fn(record.step, values)
        except OSError as error:  # sockets, files and most clients raise it if something is down
            if action.owner not in self._told:
                self._told.add(action.owner)
                self.context.warn(
                    f"the function of {action.owner} failed at step {record.step}: {error!r}. The run continues. "
                    "Shown once."
                )


class JSONLinesWriter(Writer):
    """Writes one JSON object per record."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._files: dict[Path, AppendFile] = {}

    def prepare(self, action: Any) -> None:
        path = self.context.path(action.path, owner=action.owner)
        self.context.claim(path, action.owner)
        if path not in self._files:
            self._files[path] = self.context.append_file(path, "JSON lines", append=action.append)

    def write(self, record: Any) -> None:
        file = self._files[self.context.path(record.action.path)]
        place = {"epoch": record.epoch, "step": record.step}
        values = json_numbers(fresh_scalars_of(record.action))
        file.write(json.dumps(place | values | place, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
