"""Finds and opens runs: directories of this machine, and addresses of buckets."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jaxcb._src.checkpointing.layout import CHECKPOINTS, RESULT, checkpoints_in
from jaxcb._src.report.run_folder import STORES, RunFolder
from jaxcb._src.storage.ownership import FOLDER, RECORD
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import did_you_mean
from jaxcb._src.utils.local_path import local_path_or_address

_NEVER_RUNS = {".git", ".jaxcb", "__pycache__", "node_modules", ".venv", *STORES}
_NAMED = 5  # runs in an error


class NotARunError(ValueError):
    """A path that is not the directory of a run; the message says what was looked for."""


def open_run(text: str | Path | Address) -> RunFolder:
    """Opens a run that a user names: a directory, or an address, of which records, manifests and logs are fetched.

    Raises:
        NotARunError: if it is none; the message names what was looked for, and runs below it.
        OSError: for requests to a bucket that fail.
        ImportError: for an address without obstore.
    """
    place = text if isinstance(text, Address) else local_path_or_address("jaxcb", "path", text)
    if isinstance(place, Address):
        from jaxcb._src.report.fetched import fetch, is_written

        run = RunFolder(fetch(place), address=place, is_running=lambda: is_written(place))
    else:
        run = RunFolder(place)
    if not run.path.is_dir():
        near = [p.name for p in run.path.parent.iterdir() if p.is_dir()] if run.path.parent.is_dir() else []
        what, more = "does not exist", did_you_mean(run.path.name, near)
        if run.path.exists():
            what, more = "is a file", " The log of another library is read by `jaxcb replay`."
        raise NotARunError(f"{text} {what}, expected the directory of a run, the run_dir= of fit.{more}")
    if not is_run(run.path):
        below = [str(found.path.relative_to(run.path)) for found in find_runs(run.path, depth=2)][:_NAMED]
        more = f" Runs below it: {', '.join(below)}." if below else ""
        raise NotARunError(
            f"{text} is not the directory of a run: it has neither {FOLDER}/{RECORD} nor a checkpoint in "
            f"{CHECKPOINTS}/ or {RESULT}/.{more}"
        )
    return run


def is_run(directory: Path) -> bool:
    """Returns whether a directory contains a run: its record, or a checkpoint of it."""
    return (directory / FOLDER / RECORD).is_file() or any(checkpoints_in(directory / name) for name in STORES)


Running = Mapping[Path, Callable[[], bool]]


def find_runs(directory: Path, depth: int = 8, running: Running | None = None) -> Iterator[RunFolder]:
    """Yields the runs in a directory and below it, in the order of their names. Links are not followed.

    Args:
        directory: where to look.
        depth: levels of directories below it to look into.
        running: directory -> a function that finds out whether its run is being trained, for those that were fetched;
            None to look at the locks.
    """
    if is_run(directory):
        run = RunFolder(directory, is_running=None if running is None else running.get(directory, lambda: False))
        parts = [part for part in _directories(directory) if is_run(part)]
        # a sweep whose members needed several programs has a part for each, and is none itself
        if not parts or checkpoints_in(directory / CHECKPOINTS):
            yield run
        for part in parts:
            yield from find_runs(part, depth, running)
        return  # what else a run has made is not looked into
    for found in _directories(directory) if depth else ():
        yield from find_runs(found, depth - 1, running)


def _directories(directory: Path) -> list[Path]:
    """Returns the directories in a directory, sorted, without those that never are runs."""
    try:
        entries = [entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [directory / name for name in sorted(entries) if name not in _NEVER_RUNS]
