"""`jaxcb replay`: what other configurations of callbacks would have done on a recorded run."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import LOG, as_json, member

_MOST_POINTS = 1_000_000
_SORTS = ("value_lost", "epochs_saved", "stopped_epoch", "given")


@click.command()
@click.argument("source", type=LOG)
@click.option("--set", "settings", multiple=True, metavar="NAME.FIELD=VALUES", help="2..20, 0.1,0.5 or 0..1..0.1.")
@click.option("--callback", "texts", multiple=True, metavar="TEXT", help="Such as EarlyStopping(patience=3).")
@click.option("--monitor", help="The metric by which configurations are judged. [default: that of the callbacks]")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Whether lower or higher is better.")
@click.option("--learning-rate", type=float, help="The base rate. [default: as recorded, or 1]")
@click.option("--sort", type=click.Choice(_SORTS), default="value_lost", show_default=True, help="Order of the table.")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="Rows of the table.")
@click.option("--csv", "csv_file", type=click.Path(allow_dash=True), help="Write all rows as CSV; - for the output.")
@click.option("-o", "--output", "picture", type=click.Path(path_type=Path), help="Write a picture, such as what.png.")
@member
@as_json
def replay(
    source: str,
    settings: Sequence[str],
    texts: Sequence[str],
    monitor: str | None,
    mode: str | None,
    learning_rate: float | None,
    sort: str,
    rows: int,
    csv_file: str | None,
    picture: Path | None,
    member: int | None,
    as_json: bool,
) -> None:
    """Replays callbacks on SOURCE: a run, or a log of Keras, Lightning, TensorBoard, W&B or JSON lines.

    The callbacks are those of the run, or those of --callback. --set gives numbers of them several values; all
    combinations are replayed. A row holds until the first control action that differs from the run's own, and claims
    nothing beyond it. Epochs are counted from 1 in tables, and from 0 in CSV and JSON.
    """
    from jaxcb._src.report.replay_source import open_source, replay_source

    opened = open_source(source, member, texts)
    found = replay_source(opened, parsed(settings), (monitor, mode), learning_rate)
    columns = found.columns()
    if picture is not None:
        from jaxcb._src.plotting.what_if import picture as draw

        draw(columns, found.monitor[0], picture)
    if csv_file is not None:
        _write_csv(columns, csv_file)
    if as_json:
        output.emit_json(
            {
                "source": str(source),
                "monitor": found.monitor[0],
                "mode": found.monitor[1],
                "unexplained": opened.unexplained,
                "configurations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
            }
        )
    elif csv_file != "-":
        _print(columns, found.monitor[0], sort, rows)
        for name, why in opened.unexplained.items():
            output.say(f"{name} is not replayed: {why}")


def parsed(settings: Sequence[str]) -> dict[str, list[float | int]]:
    """Parses the values of `--set`.

    Raises:
        click.BadParameter: for another form.
    """
    from jaxcb._src.report.what_if import values_of

    found: dict[str, list[float | int]] = {}
    count = 1
    for text in settings:
        name, sign, values = text.partition("=")
        if not sign or "." not in name:
            form = "NAME.FIELD=VALUES, such as EarlyStopping.patience=2..20"
            raise click.BadParameter(f"{text!r} has not the form {form}.")
        try:
            found[name.strip()] = values_of(values)
        except ValueError as error:
            raise click.BadParameter(f"{text}: {error}") from None
        count *= len(found[name.strip()])
        if count > _MOST_POINTS:
            raise click.BadParameter(f"these are {count} configurations, more than {_MOST_POINTS}.")
    return found


def _print(columns: dict[str, list[Any]], monitor: str, sort: str, rows: int) -> None:
    order = list(range(len(columns["outcome"])))
    if sort != "given":
        descending = sort == "epochs_saved"
        key = [(-x if descending else x) if x is not None and x == x else float("inf") for x in columns[sort]]
        order.sort(key=key.__getitem__)
    shown = {name: column for name, column in columns.items() if name != "holds_until_step"}
    shown["stopped_epoch"] = [None if e is None else e + 1 for e in columns["stopped_epoch"]]
    shown["holds_until_epoch"] = [e + 1 for e in columns["holds_until_epoch"]]
    names = {"stopped_epoch": "stop", "epochs_saved": "saved", "value_lost": "lost", "lr_scale": "rate x"}
    names["holds_until_epoch"] = "holds to epoch"
    names |= {name: f"rate x {name.partition('/')[2]}" for name in shown if name.startswith("lr_scale/")}
    titles = [names.get(name, name.replace("_", " ")) for name in shown]
    output.table(titles, [[column[i] for column in shown.values()] for i in order[:rows]])
    if len(order) > rows:
        output.say(f"{len(order) - rows} more configurations: --rows, or --csv FILE for all.")


def _write_csv(columns: dict[str, list[Any]], path: str) -> None:
    with click.open_file(path, "w", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([["NA" if x is None else x for x in row] for row in zip(*columns.values(), strict=True)])
        sys.stdout.flush()
