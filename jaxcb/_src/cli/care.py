"""`jaxcb verify`, `clean` and `resume`: the only commands that change a run, and only when told so."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import as_json, one_run, yes
from jaxcb._src.cli.main import FOUND
from jaxcb._src.report import verify as _verify
from jaxcb._src.report.clean import KINDS, Item, plan
from jaxcb._src.report.fetched import to_change, whole
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage.buckets.progress import shown_bytes
from jaxcb._src.utils.errors import DataError

MASK = "***"  # in a recorded command, in place of a secret


@click.command()
@one_run
@click.option("--arrays/--no-arrays", default=True, help="Whether to read each array of each checkpoint, too.")
@click.option("--repair", is_flag=True, help="Say what can be repaired; with --yes, repair it.")
@yes
@as_json
def verify(run: RunFolder, arrays: bool, repair: bool, yes: bool, as_json: bool) -> None:
    """Checks RUN: checksums and arrays of its checkpoints, and its logs beside its record.

    Nothing of the run is executed. The exit code is 1 if anything is wrong.
    """
    refuse_running(run, repair and yes)
    with to_change(run) if repair and yes else contextlib.nullcontext(whole(run)) as there:
        findings = list(_verify.verify(there, arrays=arrays))
        repaired = []
        for finding in findings:
            if repair and yes and finding.apply is not None:
                finding.apply()
                repaired.append(finding.what)
    wrong = [f for f in findings if f.problem and f.what not in repaired]
    if as_json:
        shown = [{"what": f.what, "problem": f.problem, "repair": f.repair} for f in findings]
        output.emit_json({"ok": not wrong, "findings": shown, "repaired": repaired})
    else:
        rows = [(f.what, "damaged" if f.problem else "ok", f.problem, _repair(f, repaired)) for f in findings]
        output.table(("part", "state", "problem", "repair"), rows if repair else [(*row[:3], "") for row in rows])
        if repair and not yes and any(f.apply is not None for f in findings):
            output.say("Nothing was changed. Pass --yes to repair.")
    if wrong:
        raise click.exceptions.Exit(FOUND)


def _repair(finding: _verify.Finding, repaired: list[str]) -> str:
    return "done" if finding.what in repaired else finding.repair


def refuse_running(run: RunFolder, changes: bool) -> None:
    """Refuses to change a run while it is training.

    Raises:
        click.UsageError: if it is.
    """
    if changes and run.is_running:
        raise click.UsageError(f"{run.shown} is being trained. Wait for its end, or stop it first.")


@click.command()
@one_run
@click.option("--keep", "kept", multiple=True, required=True, type=click.Choice(KINDS), help="What stays; repeatable.")
@yes
@as_json
def clean(run: RunFolder, kept: Sequence[str], yes: bool, as_json: bool) -> None:
    """Removes the files of RUN except those of the kinds to --keep; shows them first, and asks for --yes.

    Only what the run itself has made is removed: what its records name, under its id. "latest" is the checkpoint from
    which it resumes; "nothing" removes all, its record included. Other files stay.
    """
    refuse_running(run, yes)
    with to_change(run) if yes else contextlib.nullcontext(run) as there:
        items = plan(there, kept)
        _show(items, yes, as_json)
        for item in items if yes else ():
            item.remove()
    if as_json:
        shown = [{"name": item.name, "kind": item.kind, "bytes": item.bytes} for item in items]
        output.emit_json({"removed" if yes else "would_remove": shown})


def _show(items: Sequence[Item], yes: bool, as_json: bool) -> None:
    """Prints what is removed, before it is."""
    if not as_json:
        output.table(("remove", "kind", "size"), [(item.name, item.kind, shown_bytes(item.bytes)) for item in items])
        total = shown_bytes(sum(item.bytes for item in items))
        done = "are removed" if yes else "would be removed; pass --yes to remove them"
        output.say(f"{len(items)} of the run's parts, {total}, {done}.")


@click.command()
@one_run
@yes
@as_json
def resume(run: RunFolder, yes: bool, as_json: bool) -> None:
    """Prints the command that continues RUN, and with --yes runs it.

    It is the command that the record of the run has. The program has to pass resume=True to fit.
    """
    command = command_of(run)
    if as_json:
        output.emit_json({"command": command, "state": run.standing.state, "runs": yes})
    else:
        output.say(shlex.join(command))
    if yes:
        refuse_running(run, True)
        if any(MASK in part for part in command):
            raise click.UsageError("the record of the command has masked secrets (***). Run it yourself, with them.")
        sys.stdout.flush()
        raise click.exceptions.Exit(subprocess.run(command, check=False).returncode)


def command_of(run: RunFolder) -> list[str]:
    """Returns the command of the process that has last trained a run.

    Raises:
        DataError: if the record has none.
    """
    command = next((p["command"] for p in reversed(run.processes) if isinstance(p.get("command"), list)), None)
    if not command or not all(isinstance(part, str) for part in command):
        raise DataError(
            f"the record of {run.shown} does not say which command ran. Run its program again with "
            f"fit(..., run_dir={run.shown!r}, resume=True)."
        )
    return [sys.executable, *command] if command[0].endswith(".py") else list(command)
