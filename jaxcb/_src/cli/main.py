"""`jaxcb`, the program: its commands, each imported when it is used, and how it ends.

Arguments are parsed by click: it has completion for bash, zsh and fish without a further package, needs nothing but
itself, and takes some 20 ms to import. argparse has no completion; typer and cyclopts import several times as much.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from jaxcb._src.utils.errors import did_you_mean

# exit codes, besides click's 2 for invalid arguments
FOUND = 1  # what was looked for: a difference, damage
UNUSABLE = 3  # a path that is not a run or a log, or cannot be read
INTERRUPTED = 130

# command -> its module, its function, and its line in the list of commands, for which the module is not imported
_COMMANDS = {
    "ls": ("look", "ls", "Runs below a folder: state, epoch, best, and what differs between them."),
    "show": ("look", "show", "What ran, where it stands, callbacks with their state, checkpoints, files."),
    "tail": ("tail", "tail", "The rows of a run, as they are written."),
    "explain": ("explain", "explain", "Every action that fired, by which numbers, and what came nearest to firing."),
    "replay": ("replay", "replay", "What other callbacks would have done on a run or another library's log."),
    "compare": ("compare", "compare", "Where runs part, in numbers and decisions, and what they were made with."),
    "plot": ("compare", "plot", "Curves, in the terminal or as a picture."),
    "report": ("report", "report", "Runs as one HTML file, without scripts or network."),
    "resume": ("care", "resume", "The command that continues a run; with --yes, runs it."),
    "clean": ("care", "clean", "Removes files of a run, and nothing else; shows them first."),
    "verify": ("care", "verify", "Checksums and arrays of checkpoints, and logs beside the record."),
}

_EPILOG = """
Exit codes: 0 for success, 1 where verify or compare found something, 2 for invalid arguments, 3 for a path that is not
a run or a log or cannot be read, 130 after Ctrl-C.

Completion: eval "$(_JAXCB_COMPLETE=bash_source jaxcb)", or zsh_source, or fish_source.
"""


class _Commands(click.Group):
    """Commands that are imported when they are used, with near names in errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, function, _ = _COMMANDS[cmd_name]
        return getattr(importlib.import_module(f"jaxcb._src.cli.{module}"), function)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}.{did_you_mean(name, _COMMANDS)} Commands: {', '.join(_COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxcb")
def jaxcb() -> None:
    """Looks at recorded runs: lists, explains, replays, compares and reports them.

    A run is the run_dir= of fit, Loop.run or sweep. No command changes a run unless it says so.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program, and ends the process with its exit code. A user's mistake is one line, and no traceback."""
    from jaxcb._src.cli.output import fail

    try:
        given = None if arguments is None else list(arguments)
        code = jaxcb.main(args=given, prog_name="jaxcb", standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else 0)  # click returns the code of its `Exit`
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # `jaxcb ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), UNUSABLE)
    except (ValueError, ImportError, RuntimeError) as error:  # the errors that jaxcb raises for what it was given
        if not _is_ours(error):
            raise
        fail(str(error), UNUSABLE)


def _is_ours(error: BaseException) -> bool:
    """Returns whether jaxcb raised an error itself; that of a mistake in its code keeps its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or trace.tb_frame.f_globals.get("__name__", "").startswith("jaxcb.")
