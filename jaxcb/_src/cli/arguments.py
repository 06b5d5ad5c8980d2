"""Arguments and options that several commands have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jaxcb._src.report.run_folder import RunFolder


class RunType(click.ParamType):
    """The directory of a run; completion offers directories."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Lets the shell complete directories."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Opens the run."""
        return value if isinstance(value, RunFolder) else RunFolder(value)


class LogType(click.ParamType):
    """A run, or a log of another library; completion offers files."""

    name = "run or log"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Lets the shell complete files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


RUN, LOG, FOLDER = RunType(), LogType(), click.Path(file_okay=False, path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
one_run: Decorator = click.argument("run", type=RUN)
yes: Decorator = click.option("--yes", is_flag=True, help="Do it; without this, it is only shown.")
member: Decorator = click.option("--member", type=click.IntRange(min=0), help="A member of a sweep, from 0.")
