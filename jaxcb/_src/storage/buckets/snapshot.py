"""`Snapshot`: which files a folder holds at one point of a run, kept until they are in the bucket.

The run continues while a snapshot is uploaded: it appends to its logs, and deletes older checkpoints. So files
are linked into a folder of their own, which costs no copy, and logs are read up to their size at the snapshot.
"""

import contextlib
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcb._src.storage.ownership import FOLDER, RECORD

OUTGOING = f"{FOLDER}/outgoing"
MARK = f"{FOLDER}/bucket.json"  # names the address that a local folder mirrors
PARTIAL = ".jaxcb-part"  # end of the name of a file that is being downloaded
_TAIL = 1 << 16  # bytes at the end of a file by which its growth is told from a change
_TRIES = 5  # walks through a folder that changes meanwhile
# what is incomplete, or is being removed: a run that resumes from its folder would remove it
_UNFINISHED = re.compile(
    rf"\.saving-.*|.*\.half|.*\.jaxcb-(new|gone).*|.*\.orbax-checkpoint-tmp.*|.*{re.escape(PARTIAL)}"
)


class Limit(NamedTuple):
    """The part of a file that belongs to a snapshot.

    Attributes:
        size: in bytes.
        checksum: its CRC-32.
    """

    size: int
    checksum: int


class Item(NamedTuple):
    """A file in a snapshot.

    Attributes:
        path: where it can be read.
        identity: number of the file in its file system; a file that replaces another one has a new one.
        changed: time of its last change, in nanoseconds.
        size: bytes that belong to the snapshot.
        checksum: CRC-32 of these; None if unknown.
    """

    path: Path
    identity: int
    changed: int
    size: int
    checksum: int | None = None


class Snapshot(NamedTuple):
    """A folder at one point of a run.

    Attributes:
        items: name -> file.
        links: the folder with links to them; None if there are none.
    """

    items: dict[str, Item]
    links: Path | None = None

    def drop(self) -> None:
        """Removes the links."""
        if self.links is not None:
            shutil.rmtree(self.links, ignore_errors=True)


def scan(folder: Path) -> dict[str, os.stat_result]:
    """Returns name -> status of all complete files in a folder. Links are not followed."""
    found: dict[str, os.stat_result] = {}
    for place, folders, names in os.walk(folder):
        below = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not _UNFINISHED.fullmatch(name)]
        if below.as_posix() == FOLDER:
            folders[:] = [name for name in folders if name != Path(OUTGOING).name]
        for name in names:
            key = (below / name).as_posix()
            if _UNFINISHED.fullmatch(name) or key == MARK:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(folder / key)
                if stat.S_ISREG(status.st_mode):
                    found[key] = status
    return found


def take(folder: Path, number: int, limits: Mapping[str, Limit], is_known: Callable[[str, Item], bool]) -> Snapshot:
    """Takes a snapshot of a folder.

    Args:
        folder: to look at.
        number: of the snapshot.
        limits: of files that grow, up to where they belong to the snapshot; others are taken whole.
        is_known: returns whether a file is in the bucket already, so that it needs no link.
    """
    links = folder / OUTGOING / f"{number:06d}"
    links.mkdir(parents=True)
    items: dict[str, Item] = {}
    for _ in range(_TRIES):
        items = {}
        found = scan(folder)
        for key, status in found.items():
            limit = limits.get(key)
            if limit is not None and limit.size > status.st_size:
                limit = None  # it was replaced; the run will say so when it resumes
            item = Item(
                folder / key,
                status.st_ino,
                status.st_mtime_ns,
                status.st_size if limit is None else limit.size,
                None if limit is None else limit.checksum,
            )
            if not is_known(key, item):
                with contextlib.suppress(FileNotFoundError):
                    item = item._replace(path=_link(folder / key, links / f"{status.st_ino}-{len(items)}"))
            items[key] = item
        again = scan(folder)
        if {k: s.st_ino for k, s in found.items()} == {k: s.st_ino for k, s in again.items()}:
            break
    # The record of a run says of each file that the run is about to write it. So it is read up to where it is after all
    # others were looked at: it then covers what is in them.
    for key, item in items.items():
        if f"/{key}".endswith(f"/{FOLDER}/{RECORD}"):
            status = os.lstat(folder / key)
            items[key] = item._replace(changed=status.st_mtime_ns, size=status.st_size)
    return Snapshot(items, links)


def _link(path: Path, link: Path) -> Path:
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(path, link)
    return link


def tail(path: Path, size: int) -> int:
    """Returns the CRC-32 of the end of the first `size` bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        return zlib.crc32(file.read(min(size, _TAIL)))
