"""`ReportWriter`: renews the report of a run while it trains."""

import time
from pathlib import Path
from typing import Any

from jaxcb._src.report.report import write_report
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.writers.base import Writer

_SHARE = 20  # a report that took a second is not renewed in the next 19


class ReportWriter(Writer):
    """Writes the report at saves, and when the run ends."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._run_dir: Path | None = context.run_dir
        self._paths: list[Path] = []
        self._due = 0.0  # when the next save renews it
        self._has_warned = self._is_closed = False

    def prepare(self, action: Any) -> None:
        context = self.context
        if self._run_dir is None:
            raise ValueError(
                f"{action.owner}: the report is made from what the run saves, and this run saves nothing. Pass "
                "run_dir=, or write it at the end with result.report(path)."
            )
        if context.trial:
            return
        path = context.path(action.path)
        context.claim(path, action.owner)
        if not self._paths:
            context.saved.listen(action.owner, self._note)
        if path not in self._paths:
            self._paths.append(path)

    @property
    def _name(self) -> str:
        """The last name of the run's directory, or of its address."""
        bucket = self.context.bucket
        if bucket is not None:
            return bucket.key.rpartition("/")[2] or bucket.bucket
        return "" if self._run_dir is None else self._run_dir.name

    def write(self, record: Any) -> None:
        """Does nothing: saves renew the report."""

    def _note(self, run: Any, checkpoint: Any) -> None:
        """Renews the report after a save from which the run resumes."""
        del run
        if checkpoint.kind == "run" and not self._is_closed and time.monotonic() >= self._due:
            self._renew(is_running=True)

    def close(self) -> None:
        if not self.context.complete:  # of a completed run nothing is written
            self._renew(is_running=False)
        self._is_closed = True  # callbacks are told of the last checkpoint only then

    def _renew(self, *, is_running: bool) -> None:
        started, context, run_dir = time.monotonic(), self.context, self._run_dir
        if run_dir is None:
            return
        try:
            for path in self._paths:
                run = RunFolder(run_dir, is_running=is_running)
                if context.key(path) not in context.record.made:
                    context.record.make(context.key(path))
                write_report([run], [self._name], path)
        except Exception as error:  # of any kind: the training does not depend on its report
            if not self._has_warned:
                self._has_warned = True
                context.warn(f"the report could not be written: {error} The run continues; later saves try again.")
        self._due = time.monotonic() + (_SHARE - 1) * (time.monotonic() - started)
