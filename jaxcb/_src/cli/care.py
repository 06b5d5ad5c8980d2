"""`jaxcb verify`: whether a run is whole; it can repair what a killed process has left."""

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import as_json, one_run, yes
from jaxcb._src.cli.main import FOUND
from jaxcb._src.report import verify as _verify
from jaxcb._src.report.run_folder import RunFolder


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
    findings = list(_verify.verify(run, arrays=arrays))
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
    if changes and run.standing.state == "running":
        raise click.UsageError(f"{run.path} is being trained. Wait for its end, or stop it first.")
