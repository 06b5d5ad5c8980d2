"""`jaxcb tail`: the rows of a run, as they are written."""

import collections
import csv
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from jaxcb._src.cli import output
from jaxcb._src.cli.arguments import as_json, one_run
from jaxcb._src.core.metric_names import MISSING
from jaxcb._src.history.reader import HISTORY
from jaxcb._src.report.find import open_run
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.platforms import is_locked

_BUCKET_SECONDS = 5.0  # between two requests
_BYTES = 1 << 24  # of new text that are read at a time


@click.command()
@one_run
@click.option("-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to begin with.")
@click.option("--follow/--no-follow", default=True, help="Whether to wait for rows while the run is training.")
@click.option("--interval", type=click.FloatRange(min=0.01), default=0.5, show_default=True, help="Seconds of waiting.")
@as_json
def tail(run: RunFolder, lines: int, follow: bool, interval: float, as_json: bool) -> None:
    """Prints the last rows of RUN, and follows it until it ends. With --json, one row a line."""
    refresh, is_running = _sources(run)
    file = _Rows(run.path / HISTORY, refresh)
    for row in collections.deque(file.new(), lines):
        _print(row, as_json)
    while follow and is_running():
        time.sleep(interval if run.address is None else max(interval, _BUCKET_SECONDS))
        for row in file.new():
            _print(row, as_json)
    for row in file.new():  # what was written between the last look and the end
        _print(row, as_json)
    if not as_json:
        at = open_run(run.address or run.path).standing
        output.say(f"{at.state}{f': {at.reason}' if at.reason else ''}")


def _sources(run: RunFolder) -> tuple[Callable[[], None], Callable[[], bool]]:
    """Returns what brings the history of a run up to date, and what finds out whether the run is being trained."""
    if run.address is None:
        return lambda: None, lambda: is_locked(run.path)
    from jaxcb._src.report.fetched import fetch_history, is_written

    address = run.address
    return lambda: fetch_history(run), lambda: is_written(address)


class _Rows:
    """A table that grows. A resumed run may cut it; then its rows are read again from the first that is new."""

    def __init__(self, path: Path, refresh: Callable[[], None]) -> None:
        self._path, self._refresh, self._at, self._names = path, refresh, 0, []
        self._file: int | None = None  # its inode, which is another one if the file was replaced

    def new(self) -> Iterator[dict[str, str]]:
        """Yields the complete rows since the last call, however many they are."""
        self._refresh()
        while text := self._read():
            for cells in csv.reader(text.splitlines()):
                if not self._names:
                    self._names = cells
                elif len(cells) == len(self._names):
                    yield dict(zip(self._names, cells, strict=True))

    def _read(self) -> str:
        """Returns the complete lines of the next part of the file; empty if there is none."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._at:
                    self._file, self._at, self._names = status.st_ino, 0, []
                file.seek(self._at)
                data = file.read(_BYTES)
        except FileNotFoundError:
            return ""
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.decode("utf-8", "replace")


def _print(row: dict[str, str], as_json: bool) -> None:
    if as_json:
        output.emit_json({name: None if cell == MISSING else _number(cell) for name, cell in row.items()})
        return
    shown = (f"{name} {cell}" for name, cell in row.items() if cell != MISSING and name != "base_learning_rate")
    output.say("  ".join(shown))


def _number(cell: str) -> float | int | str:
    try:
        return int(cell)
    except ValueError:
        try:
            return float(cell)
        except ValueError:
            return cell
