"""The manifest of a checkpoint: written last, with size and checksum of every file.

JAX is imported where arrays are needed: the command line reads manifests without it.
"""

import dataclasses
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  # numpy then knows bfloat16 and its like
import numpy as np

from jaxcb._src.storage.ownership import file_checksum, is_inside, is_run_id, read_bytes, remove_files
from jaxcb._src.storage.schema import (
    LARGEST,
    Form,
    FormError,
    anything,
    entries,
    mapping,
    matching,
    maybe,
    parse,
    record,
    sequence,
    text,
    whole,
)
from jaxcb._src.utils.platforms import sync_directory

if TYPE_CHECKING:
    import jax

NAME = "manifest.json"
_FORMAT = 1
_DELETED = "manifest.json.deleted"  # name of the manifest while the checkpoint is being deleted
_WHOLE = re.compile(rb'\{"checksum": "([0-9a-f]{8})", "manifest": (.*)\}\n', re.DOTALL)


# implementations of PRNG keys in JAX -> the last axis of their data
_KEYS = {"threefry2x32": (2,), "rbg": (4,), "unsafe_rbg": (4,)}
_INSIDE = matching("a path in the checkpoint", is_inside)
_SHAPE = sequence(whole(), most=64)
_KEY = matching(
    "a key such as 'l0000'", lambda key: isinstance(key, str) and re.fullmatch(r"l\d{4,9}", key) is not None
)
_LEAF = entries(text, _KEY, _SHAPE, text, maybe(text), least=4)
_HEAD = record({"format": whole(least=1)})
_BODY = record(
    {
        "step": whole(),
        "facts": mapping(anything),
        "leaves": sequence(_LEAF),
        "files": mapping(entries(whole(), whole(2**32 - 1)), name=_INSIDE),
    }
)


_FACTS = record({"step": whole(), "facts": mapping(anything)})


class UnusableError(Exception):
    """A checkpoint that cannot be used, with the reason."""


class DamagedError(UnusableError):
    """A directory that is not a checkpoint, or that has changed since it was written."""


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """A stored array. Its key is generated, so that no name can produce an invalid file name.

    Args:
        name: any text.
        key: key in the Orbax checkpoint.
        shape: as stored; for a PRNG key that of its data.
        dtype: as stored.
        impl: implementation of a PRNG key; None for other arrays.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    impl: str | None = None

    @property
    def stored(self) -> "jax.ShapeDtypeStruct":
        """Shape and dtype as stored."""
        import jax

        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))

    @property
    def struct(self) -> "jax.ShapeDtypeStruct":
        """Shape and dtype of the saved array."""
        import jax

        if self.impl is None:
            return self.stored
        return jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=self.impl), self.stored)

    @property
    def nbytes(self) -> int:
        """Size of the stored array.

        Raises:
            TypeError: for a dtype that does not exist.
        """
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def empty(self) -> bool:
        """Whether it has no elements. Orbax does not store such arrays."""
        return math.prod(self.shape) == 0


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that was found complete.

    Args:
        path: its directory.
        step: updates done.
        facts: metadata as read from JSON, where tuples are lists and keys are strings.
        entries: the arrays in it.
    """

    path: Path
    step: int
    facts: dict[str, Any]
    entries: tuple[ArrayEntry, ...] = dataclasses.field(repr=False, default=())

    @property
    def run(self) -> str | None:
        """Id of its run; None if it was written before runs had ids."""
        run = self.facts.get("run")
        return run if is_run_id(run) else None

    @property
    def leaves(self) -> "dict[str, jax.ShapeDtypeStruct]":
        """Shape and dtype of each array, by name."""
        return {entry.name: entry.struct for entry in self.entries}


def write(directory: Path, *, step: int, facts: str, entries: Sequence[ArrayEntry]) -> None:
    """Syncs all files of a directory to disk, and then writes the manifest.

    Args:
        directory: complete except for the manifest.
        step: updates done.
        facts: JSON.
        entries: the arrays in it.
    """
    files = {}
    for path in _files(directory):
        files[path.relative_to(directory).as_posix()] = [path.stat().st_size, file_checksum(path, durable=True)]
    # format 1 requires the key "best", which is not used
    head = json.dumps({"format": _FORMAT, "step": step, "best": None})
    tail = json.dumps({"leaves": [dataclasses.astuple(entry) for entry in entries], "files": files})
    body = f'{head[:-1]}, "facts": {facts}, {tail[1:]}'.encode()
    partial = directory / f"{NAME}.half"
    with partial.open("wb") as file:
        file.write(b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / NAME)
    for path in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        sync_directory(path)


def read(directory: Path) -> tuple[Saved, dict[str, list[int]]]:
    """Returns the contents of the manifest, and its files with size and checksum. Does not check the files.

    Raises:
        DamagedError: if there is no manifest, or if it has changed.
        UnusableError: if it cannot be read, or was written by a newer jaxcb.
    """
    return _read(directory, NAME)


def read_facts(directory: Path) -> tuple[int, dict[str, Any]]:
    """Returns step and metadata of a checkpoint, without its arrays and files, for lists of a thousand runs.

    Raises:
        DamagedError: if there is no manifest, or if it has changed.
        UnusableError: if it cannot be read, or was written by a newer jaxcb.
    """
    manifest = _parsed(directory, NAME)
    try:
        _FACTS(manifest, "")
    except FormError as error:
        raise DamagedError(f"{NAME} has invalid contents: {error}") from None
    return manifest["step"], dict(manifest["facts"])


def _read(directory: Path, file_name: str) -> tuple[Saved, dict[str, list[int]]]:
    """Reads the manifest with this file name."""
    manifest = _parsed(directory, file_name)
    try:
        _BODY(manifest, "")
        entries = tuple(ArrayEntry(name, key, tuple(shape), *kind) for name, key, shape, *kind in manifest["leaves"])
        saved = Saved(directory, manifest["step"], dict(manifest["facts"]), entries)
        _check_arrays(entries)
    except FormError as error:
        raise DamagedError(f"{NAME} has invalid contents: {error}") from None
    return saved, manifest["files"]


def _parsed(directory: Path, file_name: str) -> dict[str, Any]:
    """Returns the contents of the manifest with this file name, of which only checksum and format are checked."""
    if directory.is_symlink():
        raise UnusableError("it is a link to another folder")
    try:
        whole = _WHOLE.fullmatch(read_bytes(directory / file_name))
    except FileNotFoundError:
        raise DamagedError(f"it has no {NAME}") from None
    except OSError as error:
        raise UnusableError(f"{NAME} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnusableError(f"{NAME} cannot be read: {error}") from None
    if whole is None or zlib.crc32(whole[2]) != int(whole[1], 16):
        raise DamagedError(f"{NAME} has changed since it was written")
    try:
        manifest = parse(whole[2], _HEAD)
        if manifest["format"] > _FORMAT:
            raise UnusableError("a newer jaxcb wrote it")
    except FormError as error:
        raise DamagedError(f"{NAME} has invalid contents: {error}") from None
    return manifest


def _check_arrays(entries: Sequence[ArrayEntry]) -> None:
    """Raises an error for arrays that cannot exist, or of which two have one name."""
    for what in ("name", "key"):
        if len({getattr(entry, what) for entry in entries}) < len(entries):
            raise FormError(f"two of its arrays have the same {what}")
    for entry in entries:
        try:
            known = entry.dtype == "uint32" and entry.shape[-1:] == _KEYS.get(entry.impl or "")
            if entry.impl is not None and not known:
                _ = entry.struct  # a key of a kind that JAX does not bring along, or none
            size = entry.nbytes
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise FormError(f"the array {entry.name!r} cannot exist ({error})") from None
        if size > LARGEST:
            raise FormError(f"the array {entry.name!r} has {size} bytes")


def is_being_deleted(directory: Path) -> bool:
    """Returns whether a checkpoint is being deleted, possibly by a process that was killed."""
    return (directory / _DELETED).exists()


def delete(directory: Path) -> None:
    """Deletes a checkpoint: the files that its manifest names, and folders that are empty then.

    The manifest is renamed first, so that a half-deleted checkpoint is not used, and deleted last, so that another
    process can finish the deletion.

    Raises:
        UnusableError: if the manifest cannot be read.
    """
    if not is_being_deleted(directory):
        _read(directory, NAME)
        (directory / NAME).rename(directory / _DELETED)
    _, files = _read(directory, _DELETED)
    remove_files(directory, {*files, _DELETED}, last=(_DELETED,))


def run_of(directory: Path) -> str | None:
    """Returns the id of a checkpoint's run; None if it was written before runs had ids.

    Raises:
        UnusableError: if the manifest cannot be read.
    """
    return _read(directory, _DELETED if is_being_deleted(directory) else NAME)[0].run


def verify(directory: Path, form: Form = anything) -> Saved:
    """Reads every byte of a checkpoint.

    Args:
        directory: the checkpoint.
        form: of its metadata.

    Raises:
        DamagedError: if anything is missing or has changed.
        UnusableError: if anything cannot be read, or was written by a newer jaxcb.
    """
    saved, files = read(directory)
    try:
        form(saved.facts, "facts")
    except FormError as error:
        raise DamagedError(f"{NAME} has invalid contents: {error}") from None
    if type(saved.facts.get("step", saved.step)) is int and saved.facts.get("step", saved.step) != saved.step:
        raise DamagedError(f"{NAME} names the step {saved.step}, and in its facts {saved.facts['step']}")
    inside = directory.resolve()
    for name, (size, checksum) in files.items():
        path = directory / name
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or not path.resolve().is_relative_to(inside):
                raise DamagedError(f"{name} is not a file in it")
            found = status.st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes instead of {size}")
            if file_checksum(path) != checksum:
                raise DamagedError(f"{name} has changed since it was written")
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        except OSError as error:
            raise UnusableError(f"{name} cannot be read: {error.strerror}") from error
    return saved


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
