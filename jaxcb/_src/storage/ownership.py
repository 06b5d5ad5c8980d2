"""Record of a run's files. Only recorded files are truncated, replaced or removed."""

import contextlib
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxcb._src.storage.failures import named

FOLDER = ".jaxcb"  # subdirectory of the run directory
RECORD = "run.jsonl"
_FORMAT = 1
_BLOCK = 1 << 20  # bytes that are read at a time
_MOST = 1 << 28  # bytes of a record
_ID = re.compile(r"[0-9a-f]{16}")


CURE = "Restore it from a backup, or delete it: the run then owns the files that its checkpoints name."


def read_bytes(path: Path, most: int = _MOST) -> bytes:
    """Reads a file that may have been written by a stranger.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, or too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
        raise ValueError(f"{path.name} is not a file")
    if status.st_size > most:
        raise ValueError(f"{path.name} has {status.st_size} bytes, more than any that jaxcb writes ({most})")
    return path.read_bytes()


def file_checksum(path: Path, *, durable: bool = False) -> int:
    """Returns the CRC-32 of a file, which detects disk errors.

    It is twice as fast as the next best checksum of the standard library.

    Args:
        path: the file.
        durable: whether to sync it to disk, too.
    """
    checksum = 0
    with path.open("r+b" if durable else "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
        if durable:
            os.fsync(file.fileno())
    return checksum


def write_durably(path: Path, data: bytes, half: Path) -> None:
    """Writes a file that is never there in part.

    Args:
        path: the file; an existing one is replaced.
        data: its content.
        half: its name until it is on the disk.
    """
    half.unlink(missing_ok=True)  # it might be a link
    with half.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def _line(line: dict[str, Any]) -> bytes:
    """Returns a line of the record, with a checksum."""
    text = json.dumps(line)
    return f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n'.encode()


def _checked(line: Any) -> Any:
    """Returns a line of the record without its checksum, which lines of earlier versions lack."""
    checksum = line.pop("crc", None)
    if checksum is not None and checksum != zlib.crc32(json.dumps(line).encode()):
        raise ValueError("it has changed since it was written")
    return line


def is_run_id(value: Any) -> bool:
    """Returns whether a value from a file is the id of a run."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_inside(name: Any) -> bool:
    """Returns whether a name from a file denotes a file inside of its directory."""
    if not isinstance(name, str) or not name or any(c in name for c in "\0\\"):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)


def remove_files(directory: Path, names: Collection[str], *, last: Sequence[str] = ()) -> bool:
    """Removes named files of a directory, and then its empty directories, including itself.

    The tree is walked and compared with the names. So neither a name nor a link can lead out of the directory.

    Args:
        directory: the directory.
        names: paths below it, with slashes.
        last: names to remove after all others, in this order.

    Returns:
        Whether the directory was removed. Other files and their directories are kept, and so is a link to a directory.
    """
    if directory.is_symlink():
        return False
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
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
    return not directory.exists()


class Prefix:
    """Size and checksum of the durable beginning of a file that grows.

    Attributes:
        size: in bytes.
        checksum: CRC-32.
    """

    def __init__(self, size: int = 0, checksum: int = 0) -> None:
        self.size, self.checksum = size, checksum

    def extend(self, path: Path, size: int) -> None:
        """Reads what a file has gained, up to a size."""
        if size < self.size:
            self.size = self.checksum = 0
        if size > self.size:
            with path.open("rb") as file:
                file.seek(self.size)
                while self.size < size and (block := file.read(min(_BLOCK, size - self.size))):
                    self.size, self.checksum = self.size + len(block), zlib.crc32(block, self.checksum)

    def difference(self, path: Path) -> str | None:
        """Says how a file differs from this beginning; None if it begins with it."""
        if not path.is_file():
            return "is not a file any more" if path.exists() else "is missing"
        there, found = path.stat().st_size, Prefix()
        if there < self.size:
            return f"has {there} bytes, but had {self.size}"
        found.extend(path, self.size)
        return None if found.checksum == self.checksum else f"has other content in its first {self.size} bytes"


class Written(NamedTuple):
    """A part of a shared file that a run has written."""

    start: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.start + self.size


class RunRecord:
    """The id of a run, and the files that it has made.

    It is stored in `.jaxcb/run.jsonl` in the run directory: a line of JSON for each file, written before the file is
    created, and one for each process, with what ran. A run without a directory has a record in memory.

    Args:
        directory: the run directory; None for a record in memory.
        run: id of the run; None for a new one.
    """

    def __init__(self, directory: Path | None = None, run: str | None = None) -> None:
        self.run = run or secrets.token_hex(8)
        self.made: dict[str, tuple[str, ...]] = {}  # key of a file or directory -> files in it, for a directory
        self.processes: list[dict[str, Any]] = []  # what ran, one for each process that has trained
        self._writes: dict[str, dict[int, Written]] = {}
        self._rewritten: dict[str, int] = {}
        self._prefix = Prefix()
        self._path = None if directory is None else directory / FOLDER / RECORD
        self._size: int | None = None  # size of the complete lines; None if there is no file

    @classmethod
    def read(cls, directory: Path) -> "RunRecord | None":
        """Returns the record in a run directory; None if there is none.

        Raises:
            ValueError: for a damaged record.
        """
        path = directory / FOLDER / RECORD
        try:
            data = read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, the record of the run's files, cannot be read: {error}. {CURE}") from None
        whole = data[: data.rfind(b"\n") + 1]  # a killed process may leave an incomplete line
        record = cls(directory)
        record._size = len(whole)
        number = 0
        try:
            lines = [_checked(json.loads(line)) for line in whole.splitlines()]
            if not lines or type(lines[0]["format"]) is not int or lines[0]["format"] > _FORMAT:
                raise ValueError("its first line is not that of a run of this format")
            if not is_run_id(lines[0]["run"]):
                raise ValueError("its first line has no id of a run")
            record.run = lines[0]["run"]
            for line in lines[1:]:
                number += 1
                record._take(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}, the record of the run's files, is damaged (line {number + 1}: {error!r}). {CURE}"
            ) from None
        return record

    @property
    def begun(self) -> bool:
        """Whether it is on disk."""
        return self._size is not None

    def begin(self) -> None:
        """Writes a new record in place of an old one. From now on files are recorded."""
        if self._path is None:
            return
        lines = [{"format": _FORMAT, "run": self.run}, *({"made": k, "files": v} for k, v in self.made.items())]
        data = b"".join(map(_line, lines))
        self._path.parent.mkdir(exist_ok=True)
        with named("the record of the run's files", self._path):
            write_durably(self._path, data, self._path.with_name(f"{RECORD}.{self.run}.half"))
        self._size = len(data)

    def make(self, key: str, files: Sequence[str] = ()) -> None:
        """Records a file, or a directory and its files, before it is created."""
        if self.made.get(key) != tuple(files):
            self._note({"made": key, "files": list(files)})

    def note_process(self, what_ran: dict[str, Any]) -> None:
        """Records what runs: the commit, command, versions and so on of the process that trains."""
        self._note({"ran": what_ran})

    def write(self, key: str, start: int, data: bytes) -> None:
        """Records a write to a shared file."""
        if self.begun:
            self._note({"wrote": key, "at": start, "bytes": len(data), "checksum": zlib.crc32(data)})

    def cut(self, key: str, start: int) -> None:
        """Records that the run's data in a shared file ends at an offset."""
        if self.writes(key):
            self._note({"cut": key, "at": start})

    def writes(self, key: str) -> list[Written]:
        """Returns the run's writes to a shared file, in order. The last ones may not have reached the file."""
        return [written for _, written in sorted(self._writes.get(key, {}).items())]

    def rewrite(self, key: str) -> None:
        """Records that a log is about to get further columns, so that its older checksums no longer hold."""
        self._note({"rewrote": key})

    def rewritten(self, key: str) -> int:
        """Returns how often a log got further columns."""
        return self._rewritten.get(key, 0)

    @property
    def path(self) -> Path | None:
        """Its file; None for a record in memory."""
        return self._path

    def position(self, *, read: bool = True) -> list[int]:
        """Returns size and checksum of the record, as JSON, for a checkpoint; those that are known, without reading."""
        if read and self._path is not None and self._size is not None:
            self._prefix.extend(self._path, self._size)
        return [self._prefix.size, self._prefix.checksum]

    def check(self, position: Any) -> None:
        """Compares the record with its size and checksum in a checkpoint.

        Raises:
            ValueError: for a record that was cut or has changed.
        """
        if self._path is not None and self.begun and position is not None:
            difference = Prefix(*position).difference(self._path)
            if difference is not None:
                shown = f"{self._path}, the record of the run's files, {difference}"
                raise ValueError(f"{shown} at the checkpoint. {CURE}")

    def sync(self) -> None:
        """Syncs the record to disk."""
        if self._path is not None and self.begun:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def _note(self, line: dict[str, Any]) -> None:
        if self._path is not None and self._size is not None:
            data = _line(line)
            with named("the record of the run's files", self._path), self._path.open("r+b") as file:
                # it fails if the record was removed; what is left of a write that failed is cut off by the next one
                file.truncate(self._size)
                file.seek(self._size)
                file.write(data)
            self._size += len(data)
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        """Applies a line of the record."""
        if "made" in line:
            key, files = line["made"], line["files"]
            if not isinstance(key, str) or not isinstance(files, list | tuple) or not all(map(is_inside, files)):
                raise ValueError("it names a file outside of its folder")
            self.made[key] = tuple(files)
        elif "wrote" in line:
            written = Written(*(line[name] for name in ("at", "bytes", "checksum")))
            if not isinstance(line["wrote"], str) or not all(type(x) is int and x >= 0 for x in written):
                raise ValueError("it is not a position in a file")
            self._writes.setdefault(line["wrote"], {})[written.start] = written
        elif "ran" in line:
            if not isinstance(line["ran"], dict):
                raise ValueError("it does not say what ran")
            self.processes.append(line["ran"])
        elif "rewrote" in line:
            self._rewritten[line["rewrote"]] = self.rewritten(line["rewrote"]) + 1
        elif "cut" in line:
            if not isinstance(line["cut"], str) or type(line["at"]) is not int:
                raise ValueError("it is not a position in a file")
            writes = self._writes.get(line["cut"], {})
            self._writes[line["cut"]] = {start: written for start, written in writes.items() if start < line["at"]}
        else:
            raise ValueError("its kind is unknown to this version")
