"""Log actions: they send values to a file, to the terminal or to a service."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxcb._src.core.actions.base import LogAction
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class LogCSV(LogAction):
    """Appends one row to a table in a file.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it is reported in this hook call, bool (); other values are written as NA.
        path: the file; a relative path is below `run_dir` if there is one.
        separator: the text between columns.
        append: whether to append to an existing file (with the same header) instead of replacing it.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    path: str = static()
    separator: str = static(default=",")
    append: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("path", path_text("LogCSV", "path", self.path))


class LogHistory(LogAction):
    """Appends one row to the run's own history (`result.history`, `history.csv`)."""

    values: dict[str, Any]
    fresh: dict[str, Any]


class LogProgress(LogAction):
    """Shows the metrics of a finished epoch in the progress display.

    Attributes:
        verbose: 1 for a live bar on a terminal, 2 for one line per epoch, None for the bar on a terminal and lines
            elsewhere.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    verbose: Literal[0, 1, 2] | None = static(default=None)


class WriteReport(LogAction):
    """Has the report of the run written: one HTML file, which is renewed at each save and at the end of the run.

    Attributes:
        path: the file; a relative path is below `run_dir`, which the run needs.
    """

    path: str = static()

    def __post_init__(self) -> None:
        self._set("path", path_text("WriteReport", "path", self.path))


class Print(LogAction):
    """Prints a line to the terminal: `text` is a template filled as `Stop.reason` is."""

    text: str = static(default="")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"


class ReportAction(LogAction):
    """Base class of log actions for loggers that take scalars by step.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it is reported in this hook call, bool (); other values are left out.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]


class LogToFunction(ReportAction):
    """Passes the values reported in this hook call to a function: `fn(step, {name: float})`."""

    fn: Callable[[int, dict[str, float]], Any] = static()


class JSONLine(ReportAction):
    """Appends one line to a JSON Lines file: epoch, step and the values reported in this hook call.

    Attributes:
        path: the file; a relative path is below `run_dir` if there is one.
        append: whether to append to an existing file instead of replacing it.
    """

    path: str = static()
    append: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("path", path_text("JSONLine", "path", self.path))


class LogHTTP(ReportAction):
    """Sends epoch, step and the values reported in this hook call to a web service, by HTTP POST.

    Attributes:
        url: the address of the service.
        field: the form field that holds the JSON text; None sends that text as the body.
        headers: HTTP headers, pairs of name and value.
        timeout: seconds before a POST request fails; also how long the end of the run waits for pending ones.
        queue_size: number of records that may wait in memory, in a run without a directory; when the queue is full, the
            oldest is dropped.
    """

    url: str = static()
    field: str | None = static(default="data")
    headers: tuple[tuple[str, str], ...] = static(default=())
    timeout: float = static(default=10.0)
    queue_size: int = static(default=1000)


class WandbLog(ReportAction):
    """Logs the values reported in this hook call to a run in Weights & Biases.

    Attributes:
        options: arguments of `wandb.init`; None for the active run.
    """

    options: Any = static(default=None)


class MLflowLog(ReportAction):
    """Logs the values reported in this hook call to a run in MLflow.

    Attributes:
        experiment: its name; None for the one that the environment sets, or "Default".
        tracking_uri: URI of the server or the local store; None for the one set for the process.
        run_name: the run's name; None lets MLflow choose one.
        tags: tags of the run, pairs of name and value.
    """

    experiment: str | None = static(default=None)
    tracking_uri: str | None = static(default=None)
    run_name: str | None = static(default=None)
    tags: tuple[tuple[str, str], ...] = static(default=())


class TrackioLog(ReportAction):
    """Logs the values reported in this hook call to a run in Trackio.

    Attributes:
        project: the project.
        run_name: the run's name, to which the run's id is appended; None for a name that contains only that id.
        options: further arguments of `trackio.init`.
    """

    project: str = static()
    run_name: str | None = static(default=None)
    options: Any = static(default=())


class LogTracker(ReportAction):
    """Logs the values reported in this hook call with a `jc.writers.Tracker`.

    Attributes:
        tracker: the client of the service.
    """

    tracker: Any = static()
