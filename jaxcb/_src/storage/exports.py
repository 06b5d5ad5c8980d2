"""Exports: folders in which callbacks save. Each says which run made it, and of which files."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from jaxcb._src.storage.ownership import is_run_id, remove_files

MARK = "orbax.checkpoint"  # a file in each checkpoint; `ocp.is_orbax_checkpoint` says yes to any directory
_MARKS = (MARK, "_CHECKPOINT_METADATA", "_METADATA")  # one of them is in what anyone takes for a checkpoint
_RECORD = "jaxcb.json"
# what Orbax writes, for exports of the time before they had a record
_ORBAX = re.compile(
    r"_CHECKPOINT_METADATA|orbax\.checkpoint|commit_success\.txt|(?:\w+/)?(?:_METADATA|_sharding|"
    r"array_metadatas/process_\d+|(?:ocdbt\.process_\d+/)?(?:manifest\.ocdbt|d/[0-9a-f]+))"
)


def contents(export: Path) -> tuple[str | None, set[str]]:
    """Returns the id of the run that made an export, None where that is not known, and the files that belong to it."""
    try:
        record = json.loads((export / _RECORD).read_bytes())
        run, files = record["run"], {*map(str, record["files"]), _RECORD}
        if is_run_id(run):
            return run, files
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None, {name for name in _files(export) if _ORBAX.fullmatch(name)}


def begin(path: Path, run: str) -> Path:
    """Makes way for an export of a run, and returns where it is to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean(path.parent, run)
    return _beside(path, run, "new")


def finish(path: Path, run: str) -> None:
    """Brings what was made at `begin` to its place, with its record, so that at any time a complete export is there.

    One that is there is replaced; files in it that do not belong to it stay.
    """
    new, old = _beside(path, run, "new"), _beside(path, run, "old")
    with (new / _RECORD).open("w", encoding="utf-8") as file:
        json.dump({"run": run, "files": sorted(_files(new))}, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.rename(old)
    new.rename(path)
    if old.exists():
        _replaced(old, path)


def remove(path: Path, run: str) -> None:
    """Removes an export so that no half of one is ever seen; files in it that do not belong to it stay.

    Args:
        path: its folder.
        run: the id of the run that removes it.
    """
    _, files = contents(path)
    if set(_files(path)) <= files:
        gone = _beside(path, run, "gone")
        path.rename(gone)
        remove_files(gone, files, last=(_RECORD,))
        return
    for mark in _MARKS:
        if mark in files:
            (path / mark).unlink(missing_ok=True)
    remove_files(path, files, last=(_RECORD,))


def complete(path: Path) -> Path | None:
    """Where the export lies that a killed process had made and not yet brought to its place; None where none is."""
    if not path.parent.is_dir():
        return None
    name = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{16}})?\.jaxcb-new")
    found = [p for p in path.parent.iterdir() if name.fullmatch(p.name) and (p / MARK).is_file()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def _beside(path: Path, run: str, kind: str) -> Path:
    return path.with_name(f"{path.name}.{run}.jaxcb-{kind}")


def _clean(directory: Path, run: str) -> None:
    """Finishes what a killed process of the run has left in a directory; what others have left stays."""
    name = re.compile(rf"(.+)\.{run}\.jaxcb-(new|old|gone)(\.orbax-checkpoint-tmp.*)?", re.DOTALL)
    found = [(match[2], match, p) for p in directory.iterdir() if (match := name.fullmatch(p.name))]
    # in the order of the alphabet, so new ones before old ones
    for kind, match, rest in sorted(found, key=lambda x: x[0]):
        path = directory / match[1]
        if kind == "new":
            if match[3] is None and not path.exists() and (rest / _RECORD).is_file():
                rest.rename(path)  # it was complete, and killed before or between its renames
            else:
                shutil.rmtree(rest)
        elif kind == "gone":
            remove_files(rest, contents(rest)[1], last=(_RECORD,))
        elif path.exists():
            _replaced(rest, path)
        else:
            rest.rename(path)


def _replaced(old: Path, path: Path) -> None:
    """Removes an export that was replaced; files in it that do not belong to it go to the new one."""
    if remove_files(old, contents(old)[1], last=(_RECORD,)):
        return
    for name in _files(old):
        target = path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(target)
    for folder, _, _ in os.walk(old, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)


def _files(directory: Path) -> list[str]:
    """All files below a folder; links are not followed."""
    found = [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return [path.relative_to(directory).as_posix() for path in found]
