"""Arguments and options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

from jaxcb._src.report.find import open_run
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.local_path import local_path_or_address


class RunType(click.ParamType):
    """The directory or the address of a run; completion offers directories."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Lets the shell complete directories."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Opens the run."""
        return value if isinstance(value, RunFolder) else open_run(value)


class LogType(click.ParamType):
    """A run, or a log of another library; completion offers files."""

    name = "run or log"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Lets the shell complete files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class FolderType(RunType):
    """A directory, or an address in a bucket; completion offers directories."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path or the address."""
        return local_path_or_address("jaxcb", "path", value) if isinstance(value, str) else value


RUN, LOG, FOLDER = RunType(), LogType(), FolderType()
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
one_run: Decorator = click.argument("run", type=RUN)
yes: Decorator = click.option("--yes", is_flag=True, help="Do it; without this, it is only shown.")
member: Decorator = click.option("--member", type=click.IntRange(min=0), help="A member of a sweep, from 0.")
