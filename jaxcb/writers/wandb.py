"""Runs in Weights & Biases."""

import importlib.util
from typing import Any

from jaxcb.writers._scalars import fresh_floats
from jaxcb.writers._writer import Writer

_FINISH_SECONDS = 60.0  # W&B's own default waits for ever


class WandbWriter(Writer):
    """Logs by step. The package sends from a process of its own."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._runs: dict[str, Any] = {}  # owner -> run, None where it has failed
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
            except Exception as error:  # whatever its client raises, the training does not depend on it
                self._give_up(owner, "could not be given the metrics", error)

    def _open(self, action: Any) -> Any:
        """Returns the run to log to, or None where the service cannot be reached."""
        import wandb
        from wandb.errors import AuthenticationError, Error, UsageError

        if action.options is None and wandb.run is not None:
            return wandb.run
        # made before the first step and kept apart from a run that the user has open
        settings = wandb.Settings(finish_timeout=_FINISH_SECONDS, silent=self.context.verbose == 0)
        given = {"settings": settings, "reinit": "create_new"} | dict(action.options or {})
        if self.context.run_dir is not None:
            given = {"dir": str(self.context.run_dir)} | given
        try:
            run = wandb.init(**given)
        except (UsageError, AuthenticationError):  # the user's to mend
            raise
        except Error as error:
            self._give_up(action.owner, "could not be reached", error)
            return None
        self._ours.append(action.owner)
        return run

    def _give_up(self, owner: str, what: str, error: Exception) -> None:
        self._runs[owner] = None
        self.context.warn(
            f"Weights & Biases {what}: {error!r}. The run goes on without {owner}; mode='offline' logs to the disk."
        )

    def close(self) -> None:
        for owner in self._ours:
            run, self._runs[owner] = self._runs[owner], None
            if run is not None:
                try:
                    run.finish(exit_code=0 if self.context.failure is None else 1)
                except Exception as error:
                    self.context.warn(f"Weights & Biases could not finish the run of {owner}: {error!r}.")
