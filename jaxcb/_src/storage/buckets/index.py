"""The form of a mirrored folder in a bucket.

Below its address there are

- `segments/LEASE-WRITER-NUMBER`: immutable objects, each of which holds pieces of one or more files;
- `manifest.json`: names the pieces of the index in order. It is the only object that changes, and it is written last.

The index says of each file its size, its CRC-32, and in which pieces its content is. Each save appends a *delta* to it:
the files that have changed since. Deltas of similar size are merged, so that their number grows with the logarithm of
the number of saves, and a save costs what has changed, whatever the length of the run.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxcb._src.storage.buckets.bucket import Bucket, Version
from jaxcb._src.storage.ownership import is_inside
from jaxcb._src.storage.schema import FormError, entries, mapping, matching, maybe, parse, record, sequence, text, whole

MANIFEST = "manifest.json"
SEGMENTS = "segments"
_FORMAT = 1
_TRIES = 5  # reads of an index that is replaced meanwhile
_CHECKSUM = whole(2**32 - 1)
_NAME = matching("a path in the folder", is_inside)
_PIECE = entries(whole(), whole(), whole())
_SEGMENT = matching("the name of a segment", lambda name: is_inside(name) and name.startswith(f"{SEGMENTS}/"))
_DELTA = record(
    {
        "segments": sequence(_SEGMENT),
        "files": mapping(maybe(entries(whole(), _CHECKSUM, sequence(_PIECE))), name=_NAME),
    }
)
_OUTER = record({"checksum": _CHECKSUM, "manifest": text})
_MANIFEST = record(
    {
        "format": whole(least=1),
        "writer": text,
        "lease": whole(least=1),
        "sequence": whole(least=1),
        "files": whole(),
        "bytes": whole(),
        "index": sequence(entries(_SEGMENT, whole(), whole(), _CHECKSUM)),
    }
)


class DamagedBucketError(ValueError):
    """Objects in a bucket that are not those that a run has written."""


class Piece(NamedTuple):
    """A part of a segment."""

    segment: str
    start: int
    size: int


class FileEntry(NamedTuple):
    """A file in the index."""

    size: int
    checksum: int
    pieces: tuple[Piece, ...] = ()


class IndexPart(NamedTuple):
    """Where a delta is stored.

    Attributes:
        piece: where it is.
        checksum: of it.
        names: the files of which it says something.
    """

    piece: Piece
    checksum: int
    names: frozenset[str] = frozenset()


class Manifest(NamedTuple):
    """What a manifest says.

    Attributes:
        writer: the writer's random name.
        lease: number of its lease.
        sequence: number of the manifest; each one is one higher than the one that it replaces.
        files: number of files.
        size: of all files, in bytes.
        parts: the deltas of the index, oldest first.
    """

    writer: str
    lease: int
    sequence: int
    files: int = 0
    size: int = 0
    parts: tuple[IndexPart, ...] = ()

    def dump(self) -> bytes:
        """Returns the object."""
        inner = json.dumps(
            {
                "format": _FORMAT,
                "writer": self.writer,
                "lease": self.lease,
                "sequence": self.sequence,
                "files": self.files,
                "bytes": self.size,
                "index": [[*part.piece, part.checksum] for part in self.parts],
            }
        )
        return json.dumps({"checksum": zlib.crc32(inner.encode()), "manifest": inner}).encode()


class Index(NamedTuple):
    """A complete index, and the manifest that names it.

    Attributes:
        manifest: None if there is none yet.
        version: of the manifest, as a condition; None if there is none yet.
        files: name -> file.
    """

    manifest: Manifest | None = None
    version: Version | None = None
    files: Mapping[str, FileEntry] = {}

    @property
    def segments(self) -> set[str]:
        """The names of all segments in use."""
        parts = () if self.manifest is None else self.manifest.parts
        used = {piece.segment for entry in self.files.values() for piece in entry.pieces}
        return used | {part.piece.segment for part in parts}


def dump_delta(files: Mapping[str, FileEntry | None]) -> bytes:
    """Returns a delta: name -> file, or None for one that was removed."""
    segments: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for name, entry in files.items():
        shown[name] = entry and [
            entry.size,
            entry.checksum,
            [[segments.setdefault(piece.segment, len(segments)), piece.start, piece.size] for piece in entry.pieces],
        ]
    return json.dumps({"segments": list(segments), "files": shown}, separators=(",", ":")).encode()


def parse_delta(data: bytes) -> dict[str, FileEntry | None]:
    """Reads a delta.

    Raises:
        FormError: for anything else.
    """
    delta = parse(data, _DELTA)
    segments, files = delta["segments"], {}
    for name, value in delta["files"].items():
        if value is None:
            files[name] = None
            continue
        size, checksum, pieces = value
        if any(number >= len(segments) for number, _, _ in pieces) or sum(p[2] for p in pieces) != size:
            raise FormError(f"the pieces of {name!r} are not those of a file of {size} bytes")
        files[name] = FileEntry(size, checksum, tuple(Piece(segments[n], start, length) for n, start, length in pieces))
    return files


def apply(files: Mapping[str, FileEntry], delta: Mapping[str, FileEntry | None]) -> dict[str, FileEntry]:
    """Returns the files after a delta."""
    return {name: entry for name, entry in {**files, **delta}.items() if entry is not None}


def merged_names(parts: tuple[IndexPart, ...], names: Iterable[str], size: int) -> tuple[int, frozenset[str]]:
    """Decides which of the last deltas a new one replaces: those that are not larger than all that come after.

    Args:
        parts: the deltas, oldest first.
        names: the files that have changed.
        size: of a delta of these files, in bytes.

    Returns:
        How many of the parts stay, and the files of the new delta.
    """
    kept, found = len(parts), frozenset(names)
    while kept and parts[kept - 1].piece.size <= size:
        kept -= 1
        size, found = size + parts[kept].piece.size, found | parts[kept].names
    return kept, found


def read_index(bucket: Bucket) -> Index:
    """Reads the newest index below an address.

    Raises:
        DamagedBucketError: if the objects are not those that a run has written.
        OSError: for requests that fail.
    """
    for _ in range(_TRIES):
        found = read_manifest(bucket)
        if found is None:
            return Index()
        manifest, version = found
        files: dict[str, FileEntry] = {}
        parts = []
        try:
            for part in manifest.parts:
                data = bucket.get_range(*part.piece)
                if zlib.crc32(data) != part.checksum or len(data) != part.piece.size:
                    raise FormError("it has changed since it was written")
                delta = parse_delta(data)
                files = apply(files, delta)
                parts.append(part._replace(names=frozenset(delta)))
        except FileNotFoundError:
            continue  # a writer has replaced the manifest meanwhile, and removed what no manifest names any more
        except FormError as error:
            raise DamagedBucketError(
                f"the index of {bucket.address}, in {manifest.parts[len(parts)].piece.segment}, is damaged: {error}. "
                "Restore the objects from a backup or an older version, or pass another address."
            ) from None
        return Index(manifest._replace(parts=tuple(parts)), version, files)
    raise DamagedBucketError(
        f"{bucket.address / MANIFEST} names segments that do not exist. Restore them from a backup or an older "
        "version, or pass another address."
    )


def read_manifest(bucket: Bucket) -> tuple[Manifest, Version] | None:
    """Reads the manifest below an address, and returns it with its version; None if there is none.

    Raises:
        DamagedBucketError: if the object is not a manifest.
        OSError: for a request that fails.
    """
    found = bucket.get(MANIFEST)
    if found is None:
        return None
    try:
        outer = parse(found.data, _OUTER)
        if zlib.crc32(outer["manifest"].encode()) != outer["checksum"]:
            raise FormError("it has changed since it was written")
        inner = parse(outer["manifest"], _MANIFEST)
        if inner["format"] > _FORMAT:
            raise FormError("a newer jaxcb wrote it")
    except FormError as error:
        raise DamagedBucketError(
            f"{bucket.address / MANIFEST} is not the manifest of a run: {error}. Pass another address, or restore it."
        ) from None
    parts = tuple(IndexPart(Piece(*piece), checksum) for *piece, checksum in inner["index"])
    writer, lease, sequence = inner["writer"], inner["lease"], inner["sequence"]
    return Manifest(writer, lease, sequence, inner["files"], inner["bytes"], parts), found.version
