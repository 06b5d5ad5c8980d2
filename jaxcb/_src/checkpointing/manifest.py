"""What makes a directory a checkpoint: a manifest, written last, that vouches for every byte beside it."""

import dataclasses
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcb._src.storage.ownership import is_inside, is_run_id, remove_files

NAME = "manifest.json"
_FORMAT = 1
_GONE = "manifest.json.deleted"  # what a checkpoint's manifest is called once the checkpoint is being deleted
_WHOLE = re.compile(rb'\{"checksum": "([0-9a-f]{8})", "manifest": (.*)\}\n', re.DOTALL)


class UnusableError(Exception):
    """A checkpoint that cannot be used here and now, with the reason in a few words."""


class DamagedError(UnusableError):
    """A directory that is no checkpoint, or not the one that it was."""


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """An array as it is stored, under a made-up key: no name that a user gives can hurt a file.

    Args:
        name: any text.
        key: what Orbax knows it by.
        shape: as stored; of PRNG keys, that of their data.
        dtype: as stored.
        impl: of PRNG keys the kind, else None.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    impl: str | None = None

    @property
    def stored(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype on the disk."""
        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the array that was saved."""
        if self.impl is None:
            return self.stored
        return jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=self.impl), self.stored)

    @property
    def empty(self) -> bool:
        """Whether it has no elements; Orbax stores no such arrays, so this entry is all there is of it."""
        return math.prod(self.shape) == 0


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that was found to be whole.

    Args:
        path: its directory.
        step: the number of updates done.
        facts: what was saved with the arrays, as JSON gives it back: lists for tuples, texts for keys.
        entries: the arrays in it.
        best: the value it is ranked by; None where it has none.
    """

    path: Path
    step: int
    facts: dict[str, Any]
    entries: tuple[ArrayEntry, ...] = dataclasses.field(repr=False, default=())
    best: float | None = None

    @property
    def run(self) -> str | None:
        """The id of the run that it is of; None for one that was written before runs had ids."""
        run = self.facts.get("run")
        return run if is_run_id(run) else None

    @property
    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each array in it, by name."""
        return {entry.name: entry.struct for entry in self.entries}


def write(directory: Path, *, step: int, facts: str, entries: Sequence[ArrayEntry], best: float | None) -> None:
    """Makes all files of a directory durable, and then its manifest.

    Args:
        directory: complete but for the manifest.
        step: the number of updates done.
        facts: JSON.
        entries: the arrays in it.
        best: the value it is ranked by.
    """
    files = {}
    for path in _files(directory):
        files[path.relative_to(directory).as_posix()] = [path.stat().st_size, _checksum(path, durable=True)]
    head = json.dumps({"format": _FORMAT, "step": step, "best": best})
    tail = json.dumps({"leaves": [dataclasses.astuple(entry) for entry in entries], "files": files})
    body = f'{head[:-1]}, "facts": {facts}, {tail[1:]}'.encode()
    half = directory / f"{NAME}.half"
    with half.open("wb") as file:
        file.write(b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body))
        file.flush()
        os.fsync(file.fileno())
    half.rename(directory / NAME)
    for path in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        sync_directory(path)


def read(directory: Path) -> tuple[Saved, dict[str, list[int]]]:
    """Returns what the manifest says, and its files with size and checksum, none of them looked at.

    Raises:
        DamagedError: where there is no manifest, or not as it was written.
        UnusableError: where it cannot be read, or a newer jaxcb wrote it.
    """
    return _read(directory, NAME)


def _read(directory: Path, called: str) -> tuple[Saved, dict[str, list[int]]]:
    """Reads a manifest that is called so."""
    try:
        whole = _WHOLE.fullmatch((directory / called).read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"it has no {NAME}") from None
    except OSError as error:
        raise UnusableError(f"{NAME} cannot be read: {error.strerror}") from error
    if whole is None or zlib.crc32(whole[2]) != int(whole[1], 16):
        raise DamagedError(f"{NAME} is not as it was written")
    try:
        manifest = json.loads(whole[2])
        if manifest["format"] > _FORMAT:
            raise UnusableError("a newer jaxcb wrote it")
        entries = tuple(ArrayEntry(name, key, tuple(shape), *kind) for name, key, shape, *kind in manifest["leaves"])
        saved = Saved(directory, manifest["step"], dict(manifest["facts"]), entries, manifest["best"])
        files = {name: [size, checksum] for name, (size, checksum) in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{NAME} says what no jaxcb has written ({error!r})") from None
    for name in files:
        if not is_inside(name):
            raise DamagedError(f"{NAME} names the file {name!r}, which is not in the checkpoint")
    return saved, files


def is_going(directory: Path) -> bool:
    """Whether a checkpoint is being deleted, by this process or by one that was killed."""
    return (directory / _GONE).exists()


def delete(directory: Path) -> None:
    """Deletes a checkpoint: the files that its manifest names, and the folders that are empty then.

    It is none any more as soon as that begins; the manifest is the last to go, so that the rest can be done later.

    Raises:
        UnusableError: where the manifest does not tell.
    """
    if not is_going(directory):
        _read(directory, NAME)
        (directory / NAME).rename(directory / _GONE)
    _, files = _read(directory, _GONE)
    remove_files(directory, {*files, _GONE}, last=(_GONE,))


def run_of(directory: Path) -> str | None:
    """The id of the run that a checkpoint is of; None for one that was written before runs had ids.

    Raises:
        UnusableError: where its manifest does not tell.
    """
    return _read(directory, _GONE if is_going(directory) else NAME)[0].run


def verify(directory: Path) -> Saved:
    """Reads every byte of a checkpoint.

    Raises:
        DamagedError: where anything is missing or not as it was written.
        UnusableError: where anything cannot be read, or a newer jaxcb wrote it.
    """
    saved, files = read(directory)
    for name, (size, checksum) in files.items():
        path = directory / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes, {size} were written")
            if _checksum(path) != checksum:
                raise DamagedError(f"{name} is not as it was written")
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        except OSError as error:
            raise UnusableError(f"{name} cannot be read: {error.strerror}") from error
    return saved


def sync_directory(path: Path) -> None:
    """Makes durable which files a directory has."""
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _checksum(path: Path, *, durable: bool = False) -> int:
    """CRC-32: finds what disks do to files, at twice the speed of the next best in the standard library."""
    checksum = 0
    with path.open("r+b" if durable else "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
        if durable:
            os.fsync(file.fileno())
    return checksum
