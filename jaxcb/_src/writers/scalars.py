"""Writers of scalars by step: functions, JSON Lines, Weights & Biases."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.core.metrics import as_text
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


def json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers for JSON: the shortest decimals that parse to the same value; strings for non-finite ones."""
    return {name: _json_number(value) for name, value in values.items()}


def _json_number(value: Any) -> Any:
    if np.ndim(value):
        return [_json_number(part) for part in np.asarray(value)]
    if np.asarray(value).dtype.kind in "iub":
        return int(value)
    number = float(as_text(value))
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
        path = self.context.path(action.path)
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


_FINISH_SECONDS = 60.0  # W&B's own default waits forever


class WandbWriter(Writer):
    """Logs by step. The wandb package sends from its own process."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._runs: dict[str, Any] = {}  # owner -> run, None if it failed
        self._ours: list[str] = []

    def prepare(self, action: Any) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ImportError(f"{action.owner} needs the package wandb: pip install jaxcb[wandb].")

    def write(self, record: Any) -> None:
        owner = record.action.owner
        if self.context.trial:
            return
        if owner not in self._runs:
            self._runs[owner] = self._open(record.action)
        values = fresh_floats(record.action)
        if values and self._runs[owner] is not None:
            try:
                self._runs[owner].log(values, step=record.step)
            except Exception as error:  # of any kind: training does not depend on the logger
                self._give_up(owner, "could not receive the metrics", error)

    def _open(self, action: Any) -> Any:
        """Returns the run to log to, or None if the service cannot be reached."""
        import wandb
        from wandb.errors import AuthenticationError, Error, UsageError

        if action.options is None and wandb.run is not None:
            return wandb.run
        # started before the first step, and separate from the user's active run
        settings = wandb.Settings(finish_timeout=_FINISH_SECONDS, silent=self.context.verbose == 0)
        given = {"settings": settings, "reinit": "create_new"} | dict(action.options or {})
        if self.context.run_dir is not None:
            given = {"dir": str(self.context.run_dir)} | given
        try:
            run = wandb.init(**given)
        except (UsageError, AuthenticationError):  # the user has to fix these
            raise
        except Error as error:
            self._give_up(action.owner, "could not be reached", error)
            return None
        self._ours.append(action.owner)
        return run

    def _give_up(self, owner: str, what: str, error: Exception) -> None:
        self._runs[owner] = None
        self.context.warn(
            f"Weights & Biases {what}: {error!r}. The run continues without {owner}; mode='offline' logs to the disk."
        )

    def close(self) -> None:
        for owner in self._ours:
            run, self._runs[owner] = self._runs[owner], None
            if run is not None:
                try:
                    run.finish(exit_code=0 if self.context.failure is None else 1)
                except Exception as error:
                    self.context.warn(f"Weights & Biases could not finish the run of {owner}: {error!r}.")
