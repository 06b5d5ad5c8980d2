"""Log actions: what carries values to a file, to the terminal or to a service."""

import dataclasses
from typing import Any

from jaxcb._actions._base import LogAction
from jaxcb._struct import static


class Row(LogAction):
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


class Remember(LogAction):
    """One row of the run's own history (`result.history`, `history.csv`)."""

    values: dict[str, Any]
    fresh: dict[str, Any]


class Progress(LogAction):
    """The figures of a finished epoch for the progress display.

    Attributes:
        verbose: 1 for a live bar on a terminal, 2 for a line an epoch.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    verbose: int | str = static(default="auto")


class Print(LogAction):
    """A line on the terminal: `text` is a template filled as `Stop.reason` is."""

    text: str = static(default="")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"
