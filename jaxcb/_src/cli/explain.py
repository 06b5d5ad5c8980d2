"""`jaxcb explain`: every action that fired, by which numbers, and what came nearest to firing."""

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import as_json, member, one_run
from jaxcb._src.report.run_folder import RunFolder


@click.command()
@one_run
@click.option("--epoch", type=click.IntRange(min=1), help="Only what fired in this epoch, counted from 1.")
@member
@as_json
def explain(run: RunFolder, epoch: int | None, member: int | None, as_json: bool) -> None:
    """Explains the decisions of RUN: who acted, when, by which numbers, and what nearly acted.

    The callbacks are made again from the description in the checkpoint and decide on the history, as in the run. Epochs
    are counted from 1 in tables, and from 0 in JSON, as in history.csv.
    """
    from jaxcb._src.report.explain import explain as explained

    found = explained(run, member)
    events = [e for e in found.events if epoch is None or e.epoch == epoch - 1]
    nearest = [n for n in found.nearest if epoch is None or n.epoch == epoch - 1]
    if as_json:
        output.emit_json(
            {
                "events": [event._asdict() for event in events],
                "nearest": [miss._asdict() for miss in nearest],
                "unexplained": found.unexplained,
                "problems": found.problems,
            }
        )
        return
    rows = [(e.epoch + 1 if e.epoch >= 0 else None, e.step, e.callback, e.action, e.text) for e in events]
    if rows:
        output.table(("epoch", "step", "callback", "action", "numbers"), rows, title="fired")
    else:
        output.say("No action fired.")
    if nearest:
        rows = [(n.epoch + 1, n.step, n.callback, n.text) for n in nearest]
        output.table(("epoch", "step", "callback", "what it lacked"), rows, title="nearly")
    for name, why in found.unexplained.items():
        output.say(f"{name} is not explained: {why}")
    for problem in found.problems:
        output.say(f"Note: {problem}.")
