"""`jaxcb compare` and `jaxcb plot`: where runs part, and their curves over one another."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import RUN, as_json, member
from jaxcb._src.cli.main import FOUND
from jaxcb._src.plotting.series import Curves
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.errors import MissingMetricError, did_you_mean

_MEMBERS = 12  # of a sweep that are drawn


@click.command()
@click.argument("runs", type=RUN, nargs=-1, required=True)
@click.option("-o", "--output", "picture", type=click.Path(path_type=Path), help="Write a picture of the curves, too.")
@member
@as_json
def compare(runs: Sequence[RunFolder], picture: Path | None, member: int | None, as_json: bool) -> None:
    """Compares RUNS with the first one: where numbers and decisions part, and what they were made with.

    The exit code is 1 if numbers or decisions differ.
    """
    from jaxcb._src.report.compare import compare as compared

    if len(runs) < 2:
        raise click.UsageError("compare needs two runs or more.")
    names = names_of(runs)
    found = compared(runs[0], runs[1:], member)
    if picture is not None:
        draw(runs, names, picture, (), member)
    if as_json:
        output.emit_json(
            [
                {"first": names[0], "second": name, "differs": one.differs}
                | {part: p._asdict() if (p := getattr(one, part)) else None for part in ("numbers", "decisions")}
                | {"settings": one.settings, "only": one.only}
                for name, one in zip(names[1:], found, strict=True)
            ]
        )
    else:
        for name, one in zip(names[1:], found, strict=True):
            rows: list[tuple[object, ...]] = []
            for part, p in (("numbers", one.numbers), ("decisions", one.decisions)):
                place = (None, None, "equal") if p is None else (p.epoch + 1, p.step, p.what)
                rows.append((part, *place, *(("", "") if p is None else (p.first, p.second))))
            rows += [("setting", None, None, key, *values) for key, values in one.settings.items()]
            rows += [("only in one", None, None, metric, "", "") for metric in one.only]
            output.table(("difference", "epoch", "step", "in", names[0], name), rows)
    if any(one.differs for one in found):
        raise click.exceptions.Exit(FOUND)


@click.command()
@click.argument("runs", type=RUN, nargs=-1, required=True)
@click.option("-o", "--output", "picture", type=click.Path(path_type=Path), help="Write a picture, such as curves.png.")
@click.option("--metric", "metrics", multiple=True, help="Only this metric; may be repeated.")
@click.option("--height", type=click.IntRange(2, 60), default=10, show_default=True, help="Lines of a curve.")
@member
@as_json
def plot(
    runs: Sequence[RunFolder],
    picture: Path | None,
    metrics: Sequence[str],
    height: int,
    member: int | None,
    as_json: bool,
) -> None:
    """Draws the curves of RUNS over one another: in the terminal, or with -o as a picture."""
    names = names_of(runs)
    if picture is not None:
        draw(runs, names, picture, metrics, member)
        return
    curves = chosen(runs, names, metrics, member)
    if as_json:
        output.emit_json(
            {one.name: {name: {"epochs": x, "values": y} for name, (x, y) in one.series.items()} for one in curves}
        )
        return
    from jaxcb._src.plotting.series import panels
    from jaxcb._src.plotting.terminal import drawn

    for inside in panels(curves).values():
        for metric in (m for m in inside if not metrics or m in metrics):
            lines = [one.series[metric] for one in curves if metric in one.series]
            width = min(output.console().width, 100)
            click.echo(drawn(lines, output.plain(metric), width=width, height=height))
            click.echo()


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """Returns a short name for each run: its path below the directory that they have in common."""
    # an address is like a path here: bucket and names
    paths = [run.path if run.address is None else Path(run.address.bucket, run.address.key) for run in runs]
    if len({run.address is None for run in runs}) > 1:
        return [run.shown for run in runs]
    if len({*paths}) == 1:
        return [path.name for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def chosen(runs: Sequence[RunFolder], names: Sequence[str], metrics: Sequence[str], member: int | None) -> list[Curves]:
    """Returns the curves of runs; of a sweep those of its first members.

    Raises:
        DataError: for a damaged history.
        MissingMetricError: for a metric that no run reports; lists those that there are.
    """
    from jaxcb._src.report.curves import curves_of

    found = []
    for run, name in zip(runs, names, strict=True):
        run.check_history()
        whose = [member] if member is not None else list(run.members)[:_MEMBERS]
        for one in whose:
            curves = curves_of(run, one, name if one is None else f"{name} member {one}")
            if curves is not None:
                found.append(curves)
    known = {metric for curves in found for metric in curves.series}
    for metric in metrics:
        if metric not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise MissingMetricError(f"no run reports {metric!r}; there are {listed}.{did_you_mean(metric, known)}")
    return found


def draw(
    runs: Sequence[RunFolder], names: Sequence[str], path: Path, metrics: Sequence[str], member: int | None
) -> None:
    """Writes a picture of the curves."""
    from jaxcb._src.plotting.overlay import overlay

    overlay(chosen(runs, names, metrics, member), path, metrics)
    output.say(f"{path} is written.")
