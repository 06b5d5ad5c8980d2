"""`jaxcb report`: runs as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import RUN, as_json
from jaxcb._src.cli.compare import names_of
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage.buckets.progress import shown_bytes


@click.command()
@click.argument("runs", type=RUN, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="The file.",
)
@as_json
def report(runs: Sequence[RunFolder], path: Path, as_json: bool) -> None:
    """Writes a report of RUNS: curves with stops, best epochs and cuts marked, decisions, configuration, time.

    The file has no scripts and needs no network; it is readable on a phone and on paper. Of a sweep it has the table,
    parallel coordinates and the curves of its members; several runs are compared.
    """
    from jaxcb._src.report.report import write_report

    written = write_report(runs, names_of(runs), path)
    size = written.stat().st_size
    if as_json:
        output.emit_json({"path": str(written), "bytes": size})
    else:
        output.say(f"{written} is written ({shown_bytes(size)}).")
