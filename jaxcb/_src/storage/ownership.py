"""What a run has made. Nothing else is cut, replaced or removed when it resumes, is overwritten or cleans up."""

import contextlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

FOLDER = ".jaxcb"  # in a run's directory
_NAME = "run.jsonl"
_FORMAT = 1
_ID = re.compile(r"[0-9a-f]{16}")


def is_run_id(value: Any) -> bool:
    """Whether a value that was read from a file is a run's id."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_inside(name: Any) -> bool:
    """Whether a name that was read from a file is of a file in the folder that it is relative to."""
    if not isinstance(name, str) or not name or any(c in name for c in "\0\\"):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)


def remove_files(directory: Path, names: Collection[str], *, last: Sequence[str] = ()) -> bool:
    """Removes the named files of a folder, and then the folders that held them and are empty, itself included.

    The tree is walked and names are compared, so that a name never leads out of the folder, and neither does a link.

    Args:
        directory: the folder.
        names: paths below it, with slashes.
        last: those of them that are removed after all others, in this order.

    Returns:
        Whether the folder is gone. Other files in it stay, and with them their folders.
    """
    found, folders = [], []
    for folder, _, files in os.walk(directory, topdown=False):
        folders.append(Path(folder))
        found += [Path(folder, name) for name in files]
    named = {path.relative_to(directory).as_posix(): path for path in found}
    for name in (*(n for n in named if n in names and n not in last), *(n for n in last if n in named)):
        named[name].unlink(missing_ok=True)
    held = {parent for name in names for parent in PurePosixPath(name).parents}
    for folder in folders:
        if folder == directory or PurePosixPath(folder.relative_to(directory).as_posix()) in held:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
    return not directory.exists()


class Written(NamedTuple):
    """A part of a shared file that a run has written."""

    start: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        """The place behind it."""
        return self.start + self.size


class RunRecord:
    """A run's id, and what it has made.

    It is kept in the run's directory, in `.jaxcb/run.jsonl`: a line of JSON for each thing, written before the thing is
    made. A run without a directory has one in memory.

    Args:
        directory: the run's; None for one in memory.
        run: the run's id; None for a new one.
    """

    def __init__(self, directory: Path | None = None, run: str | None = None) -> None:
        self.run = run or secrets.token_hex(8)
        self.made: dict[str, tuple[str, ...]] = {}  # key of a file or a folder -> of a folder, the files in it
        self._writes: dict[str, dict[int, Written]] = {}
        self._path = None if directory is None else directory / FOLDER / _NAME
        self._size: int | None = None  # of the file, as far as it was written whole; None while there is none

    @classmethod
    def read(cls, directory: Path) -> "RunRecord | None":
        """Returns the record in a run's directory, None where there is none.

        Raises:
            ValueError: for one that is not as it was written.
        """
        path = directory / FOLDER / _NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        whole = data[: data.rfind(b"\n") + 1]  # a process that is killed leaves half a line
        record = cls(directory)
        record._size = len(whole)
        number = 0
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if not lines or lines[0]["format"] > _FORMAT or not is_run_id(lines[0]["run"]):
                raise ValueError("its first line names no run of this format")
            record.run = lines[0]["run"]
            for line in lines[1:]:
                number += 1
                record._take(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}, the record of what the run made, is not as it was written (line {number + 1}: {error!r}). "
                "Put it back from a copy, or delete it: the run then owns what its checkpoints name."
            ) from None
        return record

    @property
    def begun(self) -> bool:
        """Whether it is on the disk."""
        return self._size is not None

    def begin(self) -> None:
        """Writes it for a run that begins, in place of the one that was there; files are noted from now on."""
        if self._path is None:
            return
        lines = [{"format": _FORMAT, "run": self.run}, *({"made": k, "files": v} for k, v in self.made.items())]
        data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        self._path.parent.mkdir(exist_ok=True)
        half = self._path.with_name(f"{_NAME}.{self.run}.half")
        with half.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(self._path)
        self._size = len(data)

    def make(self, key: str, files: Sequence[str] = ()) -> None:
        """Notes a file that the run makes, or a folder and which files in it."""
        if self.made.get(key) != tuple(files):
            self._note({"made": key, "files": list(files)})

    def write(self, key: str, start: int, data: bytes) -> None:
        """Notes what is to be written to a shared file."""
        if self.begun:
            self._note({"wrote": key, "at": start, "bytes": len(data), "checksum": zlib.crc32(data)})

    def cut(self, key: str, start: int) -> None:
        """Notes that nothing of the run stands in a shared file from a place on."""
        if self.writes(key):
            self._note({"cut": key, "at": start})

    def writes(self, key: str) -> list[Written]:
        """What the run has written to a shared file, in order. Some of it may not have come to the file."""
        return [own for _, own in sorted(self._writes.get(key, {}).items())]

    def sync(self) -> None:
        """Makes it durable."""
        if self._path is not None and self.begun:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def _note(self, line: dict[str, Any]) -> None:
        self._take(line)
        if self._path is None or self._size is None:
            return
        data = f"{json.dumps(line)}\n".encode()
        with self._path.open("r+b") as file:  # a record that is gone is not made again in silence
            file.truncate(self._size)
            file.seek(self._size)
            file.write(data)
        self._size += len(data)

    def _take(self, line: dict[str, Any]) -> None:
        """Takes a line of the file in."""
        if "made" in line:
            key, files = line["made"], line["files"]
            if not isinstance(key, str) or not isinstance(files, list | tuple) or not all(map(is_inside, files)):
                raise ValueError("it names a file outside of its folder")
            self.made[key] = tuple(files)
        elif "wrote" in line:
            own = Written(*(line[name] for name in ("at", "bytes", "checksum")))
            if not isinstance(line["wrote"], str) or not all(type(x) is int and x >= 0 for x in own):
                raise ValueError("it is no place in a file")
            self._writes.setdefault(line["wrote"], {})[own.start] = own
        elif "cut" in line:
            writes = self._writes.get(line["cut"], {})
            self._writes[line["cut"]] = {start: own for start, own in writes.items() if start < line["at"]}
        else:
            raise ValueError("it says nothing that this version knows")
