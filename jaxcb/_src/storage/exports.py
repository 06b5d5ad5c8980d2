"""Exported checkpoints: directories that callbacks save. Each contains a record of its run and its files."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from jaxcb._src.storage.failures import check_room
from jaxcb._src.storage.ownership import is_run_id, read_bytes, remove_files, write_durably

MARK = "orbax.checkpoint"  # a file in each checkpoint; `ocp.is_orbax_checkpoint` returns True for any directory
_MARKS = (MARK, "_CHECKPOINT_METADATA", "_METADATA")  # any reader looks for one of these in a checkpoint
_RECORD = "jaxcb.json"
_LONGEST = 255 - len(".0123456789abcdef.jaxcb-new.orbax-checkpoint-tmp")  # bytes of a name
# files that Orbax writes, for exports that were made before they had a record
_ORBAX = re.compile(
    r"_CHECKPOINT_METADATA|orbax\.checkpoint|commit_success\.txt|(?:\w+/)?(?:_METADATA|_sharding|"
    r"array_metadatas/process_\d+|(?:ocdbt\.process_\d+/)?(?:manifest\.ocdbt|d/[0-9a-f]+))"
)
# names beside an export while it is written, replaced or removed
_BESIDE = re.compile(r"(.+?)(?:\.([0-9a-f]{16}))?\.jaxcb-(new|old|gone)(\.orbax-checkpoint-tmp.*)?", re.DOTALL)


def contents(export: Path) -> tuple[str | None, set[str]]:
    """Returns the id of the run that made an export (None if unknown), and its files."""
    try:
        record = json.loads(read_bytes(export / _RECORD))
        run, files = record["run"], {*map(str, record["files"]), _RECORD}
        if is_run_id(run):
            return run, files
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None, {name for name in _files(export) if _ORBAX.fullmatch(name)}


def check_free(path: Path) -> None:
    """Checks that an export may be written to a path: nothing is there, or another export.

    Raises:
        FileExistsError: for anything else.
        ValueError: for a name that leaves no room for the names that the export has until it is complete.
    """
    size, most = len(os.fsencode(path.name)), _LONGEST
    if size > most:
        raise ValueError(
            f"{path.name!r} has {size} bytes, and the name of a checkpoint may have {most}: it is longer while it is "
            "written. Give a shorter name."
        )
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link, so it is not replaced. Remove it, or give the path that it leads to.")
    if path.exists() and not (path / MARK).is_file():
        raise FileExistsError(f"{path} is not an Orbax checkpoint, so it is not replaced. Give another path.")


def begin(path: Path, run: str) -> Path:
    """Prepares an export, and returns the directory to write it to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean(path.parent, run)
    check_room(path.parent)
    return _beside(path, run, "new")


def finish(path: Path, run: str) -> None:
    """Moves an export to its final path and adds its record. A complete export exists at any time.

    An existing export is replaced; other files in its directory are kept.
    """
    new, old = _beside(path, run, "new"), _beside(path, run, "old")
    text = json.dumps({"run": run, "files": sorted(_files(new))})
    write_durably(new / _RECORD, text.encode(), new / f"{_RECORD}.half")  # an export with a record is complete
    if path.exists():
        path.rename(old)
    new.rename(path)
    if old.exists():
        _replaced(old, path)


def discard(path: Path, run: str) -> None:
    """Removes what is left of an export that could not be completed. The one before is kept."""
    with contextlib.suppress(OSError):
        _clean(path.parent, run)


def remove(path: Path, run: str) -> None:
    """Removes an export such that no partial one is ever visible. Other files in its directory are kept.

    Args:
        path: its directory.
        run: id of the run that removes it.
    """
    if path.is_symlink():
        return
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
    """Returns the path of an export that a killed process has completed but not moved; None if there is none."""
    if not path.parent.is_dir():
        return None
    names = ((p, _BESIDE.fullmatch(p.name)) for p in path.parent.iterdir())
    new = [p for p, match in names if match and (match[1], match[3], match[4]) == (path.name, "new", None)]
    found = [p for p in new if (p / MARK).is_file()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def _beside(path: Path, run: str, kind: str) -> Path:
    return path.with_name(f"{path.name}.{run}.jaxcb-{kind}")


def _clean(directory: Path, run: str) -> None:
    """Completes the renames of killed processes of the run in a directory."""
    names = ((_BESIDE.fullmatch(p.name), p) for p in directory.iterdir())
    found = [(match[3], match, p) for match, p in names if match and match[2] == run]
    # sorted by name, so "new" comes before "old"
    for kind, match, rest in sorted(found, key=lambda x: x[0]):
        path = directory / match[1]
        if kind == "new":
            if match[4] is None and not path.exists() and (rest / _RECORD).is_file():
                rest.rename(path)  # complete; the process was killed before or between the two renames
            else:
                shutil.rmtree(rest)
        elif kind == "gone":
            remove_files(rest, contents(rest)[1], last=(_RECORD,))
        elif path.exists():
            _replaced(rest, path)
        else:
            rest.rename(path)


def _replaced(old: Path, path: Path) -> None:
    """Removes a replaced export. Other files in its directory are moved to the new one."""
    if remove_files(old, contents(old)[1], last=(_RECORD,)):
        return
    for name in _files(old):
        target = path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(target)
    for folder, _, _ in os.walk(old, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)


def _files(directory: Path) -> list[str]:
    """Returns all files below a directory, without following links."""
    found = [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return [path.relative_to(directory).as_posix() for path in found]
