"""Log actions: what carries values to a file, to the terminal or to a service."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxcb._src.core.actions.base import LogAction
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class LogCSV(LogAction):
    """One row of a table in a file.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it was reported now, bool (); what was not is written as NA.
        path: the file; relative ones lie below `run_dir` where there is one.
        separator: what stands between columns.
        append: whether a file that is there goes on (same header) or is replaced.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    path: str = static()
    separator: str = static(default=",")
    append: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("path", path_text("Row", "path", self.path))


class LogHistory(LogAction):
    """One row of the run's own history (`result.history`, `history.csv`)."""

    values: dict[str, Any]
    fresh: dict[str, Any]


class LogProgress(LogAction):
    """The figures of a finished epoch for the progress display.

    Attributes:
        verbose: 1 for a live bar on a terminal, 2 for a line an epoch, None for the bar on a terminal and lines
            elsewhere.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    verbose: Literal[0, 1, 2] | None = static(default=None)


class Print(LogAction):
    """A line on the terminal: `text` is a template filled as `Stop.reason` is."""

    text: str = static(default="")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"


class ReportAction(LogAction):
    """A log action for a logger that takes scalars by step.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it was reported now, bool (); what was not is left out.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]


class LogToFunction(ReportAction):
    """Hands the fresh values to a function: `fn(step, {name: float})`."""

    fn: Callable[[int, dict[str, float]], Any] = static()


class JSONLine(ReportAction):
    """One line of a file of JSON objects: epoch, step and the fresh values.

    Attributes:
        path: the file; relative ones lie below `run_dir` where there is one.
        append: whether a file that is there goes on or is replaced.
    """

    path: str = static()
    append: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("path", path_text("JSONLine", "path", self.path))


class LogHTTP(ReportAction):
    """Sends epoch, step and the fresh values to a web service, by HTTP POST.

    Attributes:
        url: where to.
        field: the form's field that holds the JSON text; None sends that text as the body.
        headers: of the request, pairs of name and value.
        timeout: seconds until a request is given up, and that the run's end waits for what is under way.
        queue_size: records that may wait; the oldest gives way.
    """

    url: str = static()
    field: str | None = static(default="data")
    headers: tuple[tuple[str, str], ...] = static(default=())
    timeout: float = static(default=10.0)
    queue_size: int = static(default=1000)


class WandbLog(ReportAction):
    """The fresh values for a run in Weights & Biases.

    Attributes:
        options: arguments of `wandb.init`; None for the run that is open.
    """

    options: Any = static(default=None)


class MLflowLog(ReportAction):
    """The fresh values for a run in MLflow.

    Attributes:
        experiment: its name; None for the one that the environment names, or "Default".
        tracking_uri: of the server or the local store; None for the one that is set for the process.
        run_name: the run's name; None lets MLflow choose one.
        tags: of the run, pairs of name and value.
    """

    experiment: str | None = static(default=None)
    tracking_uri: str | None = static(default=None)
    run_name: str | None = static(default=None)
    tags: tuple[tuple[str, str], ...] = static(default=())
