"""`clean`: removes files of a run, and nothing else. What is its own is in its records, under its id."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.layout import CHECKPOINTS, RESULT, TABLE
from jaxcb._src.history.reader import HISTORY, JOURNAL
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage import exports as _exports
from jaxcb._src.storage.ownership import FOLDER, RECORD, is_inside, remove_files
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.local_path import link_out_of

KINDS = ("checkpoints", "latest", "result", "exports", "logs", "history", "nothing")
_HISTORY = (HISTORY, JOURNAL, TABLE)
_EXPORT_RECORD = "jaxcb.json"
_DEPTH = 4  # levels of directories in which exports are looked for


class Item(NamedTuple):
    """A part of a run that is to be removed.

    Attributes:
        name: its path in the run.
        kind: one of `KINDS`.
        bytes: its size.
        remove: removes it.
    """

    name: str
    kind: str
    bytes: int
    remove: Callable[[], Any]


def plan(run: RunFolder, keep: Collection[str]) -> list[Item]:
    """Returns what is removed if some kinds are kept.

    Args:
        run: the run.
        keep: kinds to keep; "latest" keeps the newest usable checkpoint, from which the run resumes.

    Raises:
        DataError: for a run without an id, of which nothing says what it has made.
    """
    owner = run.facts.get("run") if run.record is None else run.record.run
    if owner is None:
        raise DataError(
            f"{run.shown} is a run of an earlier version, whose records do not say what it has made. Remove its files "
            "yourself."
        )
    items = [*_checkpoints(run, owner, keep), *_exports_of(run, owner), *_files(run)]
    items = [item for item in items if item.kind not in keep]
    if not set(keep) - {"nothing"} and run.record is not None:
        path = run.path / FOLDER / RECORD
        items.append(Item(f"{FOLDER}/{RECORD}", "record", path.stat().st_size, lambda: _remove_record(path)))
    return [item for item in items if link_out_of(run.path, run.path / item.name) is None]


def _checkpoints(run: RunFolder, owner: str, keep: Collection[str]) -> Iterator[Item]:
    newest = None if run.saved is None else run.saved.path
    for checkpoint in run.checkpoints:
        saved = checkpoint.saved
        if saved is None or saved.run not in (None, owner) or ("latest" in keep and checkpoint.path == newest):
            continue  # without a manifest, no one knows which files are its own
        name = os.path.relpath(checkpoint.path, run.path)
        yield Item(name, checkpoint.kind, checkpoint.bytes, lambda path=checkpoint.path: _manifest.delete(path))


def _exports_of(run: RunFolder, owner: str) -> Iterator[Item]:
    """Yields the exports of `ModelCheckpoint` that are this run's by their own record."""
    for folder, folders, files in os.walk(run.path):
        path = Path(folder)
        if len(path.relative_to(run.path).parts) >= _DEPTH:
            folders.clear()
        if path == run.path:
            folders[:] = [name for name in folders if name not in (CHECKPOINTS, RESULT, FOLDER)]
        if _EXPORT_RECORD in files:
            folders.clear()
            made_by, names = _exports.contents(path)
            if made_by == owner and path != run.path:
                size = sum((path / n).stat().st_size for n in names if is_inside(n) and (path / n).is_file())
                name = os.path.relpath(path, run.path)
                yield Item(name, "exports", size, lambda path=path: _exports.remove(path, owner))


def _files(run: RunFolder) -> Iterator[Item]:
    """Yields the logs and the history. A file that other runs may write to, too, is left alone."""
    record, made = run.record, dict.fromkeys(run.facts.get("files", {}), ())
    if record is not None:
        made = dict(record.made)
    made |= dict.fromkeys(run.written, ())
    for name, files in sorted(made.items()):
        path = run.path / name
        if not is_inside(name) or path.is_symlink() or (record is not None and record.writes(name)):
            continue
        kind = "history" if name in _HISTORY else "logs"
        if path.is_file():
            yield Item(name, kind, path.stat().st_size, lambda path=path: _remove_file(path, run.path))
        elif path.is_dir() and files:
            size = sum((path / n).stat().st_size for n in files if (path / n).is_file())
            yield Item(name, kind, size, lambda path=path, files=files: remove_files(path, files))


def _remove_file(path: Path, run: Path) -> None:
    """Removes a file, and directories in the run that are empty then."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == run or any(folder.iterdir()):
            return
        folder.rmdir()


def _remove_record(path: Path) -> None:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
