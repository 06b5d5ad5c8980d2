"""`Mirror`: keeps a copy of a folder in a bucket, in a background thread.

A snapshot is uploaded as segments, then a delta of the index, then the manifest. What was uploaded counts once the
manifest names it. The manifest is put on the condition that it is still the one that this writer has put before, so
that of two writers one fails, whatever became of the lease. Segments that no manifest names any more are deleted after
that.
"""

import contextlib
import errno
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jaxcb._src.storage.buckets.bucket import Bucket, ConflictError
from jaxcb._src.storage.buckets.index import (
    MANIFEST,
    SEGMENTS,
    DamagedBucketError,
    FileEntry,
    Index,
    IndexPart,
    Manifest,
    Piece,
    apply,
    dump_delta,
    merged_names,
    read_index,
    read_manifest,
)
from jaxcb._src.storage.buckets.lease import Lease, LeaseLostError
from jaxcb._src.storage.buckets.progress import Progress
from jaxcb._src.storage.buckets.snapshot import MARK, Item, Limit, Snapshot, tail, take

SEGMENT_BYTES = 1 << 24  # of a segment, at most
UPLOADS = 4  # segments that are sent at once; memory is bounded by one more of them
_LEAVE_SECONDS = 1.0  # how long the end of a run waits that was interrupted while it waited for an upload
_FINAL = 1 << 20  # bytes of a piece of a file that grows, from which on it is not merged with later ones


class Known(NamedTuple):
    """What is known of the local file whose content is in the bucket."""

    identity: int
    changed: int
    tail: int


class Mirror:
    """Uploads snapshots of a folder, the newest one first; one that was not begun is dropped for a newer one.

    Args:
        bucket: where to.
        lease: of this writer, acquired.
        folder: the local folder.
        say: prints a line.
        segment_bytes: size of a segment, at most.
    """

    def __init__(
        self,
        bucket: Bucket,
        lease: Lease,
        folder: Path,
        *,
        say: Callable[[str], None] = print,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._bucket, self._lease, self._folder, self._say = bucket, lease, folder, say
        self._segment_bytes = segment_bytes
        self.index = Index()
        self._known: dict[str, Known] = {}
        self._segments: dict[str, int] = {}  # those that exist, as far as known, with their sizes
        self._named = self._snapshots = 0
        self._grown: set[str] = set()  # files that were uploaded in parts, without a checksum of the whole
        self._pending: Snapshot | None = None
        self._busy = self._closing = False
        self._error: Exception | None = None
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self.progress = Progress(str(bucket.address), "uploaded", say, clock=bucket.clock)

    # Opening

    def open(self) -> None:
        """Reads the index, and begins to write: from now on the writer before cannot complete anything more.

        Raises:
            LeaseLostError: if another process has taken the lease meanwhile.
            DamagedBucketError: if the objects are not those that a run has written.
            OSError: for requests that fail.
        """
        while True:
            self.index = read_index(self._bucket)
            before = self.index.manifest
            if before is not None and before.lease >= self._lease.number:  # this process was paused in the meantime
                raise self._lease.take_over(f"writer {before.writer}, lease {before.lease}")
            self._lease.ensure()
            try:
                self._put_manifest(self.index.files, () if before is None else before.parts)
                break
            except _OlderLeaseError:  # the writer before was faster once more
                continue
        # Those of earlier leases only: by now a later writer may have begun, and its segments are not ours to delete.
        oldest = self._name(0)
        self._segments = {n: s for n, s in self._bucket.list(SEGMENTS).items() if f"{SEGMENTS}/" < n < oldest}
        self._collect()

    def know(self, known: Mapping[str, Known]) -> None:
        """Notes which local files were downloaded, so that they are not uploaded again."""
        self._known = dict(known)

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._work, name="jaxcb-mirror", daemon=True)
        self._thread.start()

    # For the run

    def save(self, limits: Mapping[str, Limit]) -> None:
        """Takes a snapshot of the folder, which is uploaded in the background.

        Args:
            limits: name of a file that grows -> the part of it that belongs to the snapshot.

        Raises:
            OSError: for a folder that was removed or moved: what is not in it would be deleted in the bucket.
        """
        self._snapshots += 1
        self._check_folder()
        snapshot = take(self._folder, self._snapshots, limits, self._is_known)
        try:
            self._check_folder()
        except OSError:
            snapshot.drop()
            raise
        with self._change:
            before, self._pending = self._pending, snapshot
            self._change.notify_all()
        if before is not None:
            before.drop()

    def _check_folder(self) -> None:
        if not (self._folder / MARK).is_file():
            reason = "the local folder of the run was removed or moved, so nothing more is uploaded"
            raise FileNotFoundError(errno.ENOENT, reason, str(self._folder))

    def check(self) -> None:
        """Raises the error of the last upload once; that of a lost lease each time."""
        if self._lease.lost is not None:
            raise self._lease.lost
        with self._change:
            error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def failed(self) -> bool:
        """Whether `check` would raise an error."""
        return self._error is not None or self._lease.lost is not None

    def wait(self) -> None:
        """Waits until all snapshots are uploaded, or one has failed. Prints the progress where this takes long."""
        with self._change:
            while (self._busy or self._pending is not None) and not self.failed and self._is_alive:
                self._change.wait(0.1)
                self.progress.tell()

    def stop(self) -> None:
        """Ends the thread, after the upload in progress; an upload that the run did not wait for is left."""
        with self._change:
            self._closing, busy = True, self._busy
            if self._pending is not None:
                self._pending.drop()
                self._pending = None
            self._change.notify_all()
        if self._thread is not None:
            # it is a daemon, and may be cut off at any request
            self._thread.join(_LEAVE_SECONDS if busy else None)

    def changed_in_place(self) -> bool:
        """Returns whether a file that was uploaded in parts is not what was uploaded; it is uploaded whole then.

        Files of others in the folder may be changed anywhere, and each save looks at their ends only.
        """
        found = False
        for name in sorted(self._grown & self.index.files.keys()):
            entry, checksum = self.index.files[name], 0
            for block in _blocks(self._folder / name, 0, entry.size, self._segment_bytes):
                checksum = zlib.crc32(block, checksum)
            if checksum != entry.checksum:
                self._known.pop(name, None)
                found = True
        self._grown.clear()
        return found

    @property
    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # In the thread

    def _work(self) -> None:
        while True:
            with self._change:
                while self._pending is None and not self._closing:
                    self._change.wait()
                if self._pending is None:
                    return
                snapshot, self._pending, self._busy = self._pending, None, True
            error: Exception | None = None
            try:
                self._publish(snapshot)
            except Exception as raised:  # it is raised in the thread of the run
                error = raised
            finally:
                snapshot.drop()
            with self._change:
                self._busy, self._error = False, error
                self._change.notify_all()
            if isinstance(error, LeaseLostError):
                return

    def _is_known(self, name: str, item: Item) -> bool:
        """Returns whether the bucket has a file as it is."""
        entry, known = self.index.files.get(name), self._known.get(name)
        if entry is None or known is None or entry.size != item.size:
            return False
        return (known.identity, known.changed) == (item.identity, item.changed) or entry.checksum == item.checksum

    def _publish(self, snapshot: Snapshot) -> None:
        """Uploads what a snapshot has and the bucket has not."""
        self._lease.ensure()
        changes: dict[str, FileEntry | None] = dict.fromkeys(self.index.files.keys() - snapshot.items.keys())
        new = {name: item for name, item in snapshot.items.items() if not self._is_known(name, item)}
        if not changes and not new:
            return
        self.progress.begin(sum(item.size for item in new.values()))
        known = {}
        # segments of an upload that fails are in it, too, and are deleted after the next one
        sizes = self._segments
        with _Upload(self._bucket, self._lease, self._next_name, self._segment_bytes, sizes, self.progress) as upload:
            for name, item in new.items():
                changes[name] = self._add(upload, name, item)
                known[name] = Known(item.identity, item.changed, tail(item.path, item.size))
            files = apply(self.index.files, changes)
            sparse = self._sparse(files)
            for name, entry in files.items():
                if any(piece.segment in sparse for piece in entry.pieces):
                    changes[name] = files[name] = self._moved(upload, name, entry, sparse)
            parts = self._add_delta(upload, files, changes, sparse)
            upload.finish()
            self._lease.ensure()
            self._put_manifest(files, parts)
        self._known = {name: k for name, k in (self._known | known).items() if name in files}
        self._collect()

    def _add(self, upload: "_Upload", name: str, item: Item) -> FileEntry:
        """Uploads a file, or what it has gained."""
        entry, known = self.index.files.get(name), self._known.get(name)
        pieces: list[Piece] = []
        start, after, checksum = 0, 0, 0
        if entry is not None and known is not None and _has_grown(entry, known, item):
            start = after = entry.size
            pieces, checksum = list(entry.pieces), entry.checksum
            # merging pieces of similar size keeps their number small, and what is sent again bounded
            while pieces and pieces[-1].size <= min(item.size - start, _FINAL - 1):
                start -= pieces.pop().size
        added = []
        for block in _blocks(item.path, start, item.size, self._segment_bytes):
            added += upload.add(name, block)
            skipped = max(0, min(len(block), after - start))
            checksum = zlib.crc32(memoryview(block)[skipped:], checksum)
            start += len(block)
        if after and item.checksum is None:
            self._grown.add(name)
        elif after and item.checksum != checksum:  # it was changed before its end, too
            self._known.pop(name, None)
            return self._add(upload, name, item)
        return FileEntry(item.size, checksum, (*pieces, *added))

    def _sparse(self, files: Mapping[str, FileEntry]) -> set[str]:
        """Returns the segments of which less than half is in use."""
        used: Counter[str] = Counter()
        for entry in files.values():
            for piece in entry.pieces:
                used[piece.segment] += piece.size
        for part in () if self.index.manifest is None else self.index.manifest.parts:
            used[part.piece.segment] += part.piece.size
        return {name for name, size in used.items() if 2 * size < self._segments.get(name, 0)}

    def _moved(self, upload: "_Upload", name: str, entry: FileEntry, sparse: set[str]) -> FileEntry:
        """Uploads the pieces of a file that are in sparse segments again, so that these can be deleted."""
        pieces = []
        for piece in entry.pieces:
            pieces += upload.add(name, self._bucket.get_range(*piece)) if piece.segment in sparse else [piece]
        return entry._replace(pieces=tuple(pieces))

    def _add_delta(
        self,
        upload: "_Upload",
        files: Mapping[str, FileEntry],
        changes: Mapping[str, FileEntry | None],
        sparse: set[str],
    ) -> tuple[IndexPart, ...]:
        """Uploads the changes of the index, and returns its parts."""
        parts = () if self.index.manifest is None else self.index.manifest.parts
        kept, names = merged_names(parts, changes, len(dump_delta(changes)))
        first = next((i for i, part in enumerate(parts) if part.piece.segment in sparse), len(parts))
        if first < kept:
            names, kept = names.union(*(part.names for part in parts[first:kept])), first
        delta = {name: files.get(name) for name in sorted(names) if kept or name in files}
        data = dump_delta(delta)
        (piece,) = upload.add("", data, whole=True)
        return (*parts[:kept], IndexPart(piece, zlib.crc32(data), frozenset(delta)))

    def _put_manifest(self, files: Mapping[str, FileEntry], parts: tuple[IndexPart, ...]) -> None:
        """Puts the manifest that follows the one that this writer knows.

        Raises:
            LeaseLostError: if it is another writer's by now.
            _OlderLeaseError: if it is one of a lease before.
        """
        before, version = self.index.manifest, self.index.version
        number, size = 0 if before is None else before.sequence, sum(entry.size for entry in files.values())
        while True:
            number += 1
            manifest = Manifest(self._lease.writer, self._lease.number, number, len(files), size, parts)
            try:
                version = self._bucket.put_if(MANIFEST, manifest.dump(), version)
                break
            except ConflictError:
                now = read_manifest(self._bucket)
            # a put whose acknowledgement never came may have been performed: then this writer's own is there
            if now is None or now[0].writer != self._lease.writer or now[1] == version:
                if now is not None and now[0].lease < self._lease.number:
                    raise _OlderLeaseError(
                        f"{self._bucket.address / MANIFEST} was replaced by that of an earlier process: was the bucket "
                        "restored from a copy? Nothing is uploaded over it. Start the run again, with resume=True."
                    )
                by = "its manifest was deleted" if now is None else f"writer {now[0].writer}, lease {now[0].lease}"
                raise self._lease.take_over(by)
            number, version = now[0].sequence, now[1]
        self.index = Index(manifest, version, files)

    def _collect(self) -> None:
        """Deletes the segments that the manifest does not name. Where this fails, a later call does it."""
        unused = self._segments.keys() - self.index.segments
        with contextlib.suppress(OSError):
            self._bucket.delete(sorted(unused))
            for name in unused:
                del self._segments[name]

    def _next_name(self) -> str:
        self._named += 1
        return self._name(self._named)

    def _name(self, number: int) -> str:
        return f"{SEGMENTS}/{self._lease.number:08d}-{self._lease.writer}-{number:06d}"


class _OlderLeaseError(DamagedBucketError):
    """A writer with an older lease has put a manifest."""


class _Upload:
    """Packs data into segments, and sends a few of them at once.

    Files that are deleted together share segments: a segment can be deleted when nothing in it is in use.
    """

    def __init__(
        self,
        bucket: Bucket,
        lease: Lease,
        next_name: Callable[[], str],
        most: int,
        sizes: dict[str, int],
        progress: Progress,
    ) -> None:
        self._bucket, self._lease, self._next_name, self._most = bucket, lease, next_name, most
        self._sizes, self._progress = sizes, progress
        self._group = ""  # the folder of the last file that is deleted with others
        # name and content of a segment for that folder (True), and of one for all other files (False)
        self._open: dict[bool, tuple[str, bytearray]] = {}
        self._sent: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="jaxcb-upload")

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._sent:
            future.cancel()
        self._pool.shutdown()

    def add(self, name: str, data: bytes, *, whole: bool = False) -> list[Piece]:
        """Adds data of a file, and returns where it will be; `whole`: in one piece."""
        group, pieces = _group(name), []
        grouped = bool(group)
        view = memoryview(data)
        if grouped and view and group != self._group:
            self._close(grouped)
            self._group = group
        while view:
            if grouped not in self._open:
                self._open[grouped] = (self._next_name(), bytearray())
            segment, content = self._open[grouped]
            room = len(view) if whole else min(len(view), self._most - len(content))
            pieces.append(Piece(segment, len(content), room))
            content += view[:room]
            view = view[room:]
            if len(content) >= self._most:
                self._close(grouped)
        return pieces

    def finish(self) -> None:
        """Waits until all is sent.

        Raises:
            LeaseLostError: if another writer has the lease.
            OSError: for a request that failed.
        """
        for grouped in (True, False):
            self._close(grouped)
        for future in self._sent:
            future.result()

    def _close(self, grouped: bool) -> None:
        if grouped in self._open:
            self._send(*self._open.pop(grouped))

    def _send(self, name: str, content: bytearray) -> None:
        self._sizes[name] = len(content)
        waiting = [future for future in self._sent if not future.done()]
        if len(waiting) >= UPLOADS:
            waiting[0].result()
        self._sent.append(self._pool.submit(self._put, name, bytes(content)))

    def _put(self, name: str, data: bytes) -> None:
        self._lease.ensure()
        self._bucket.put(name, data)
        self._progress.add(len(data))


def _group(name: str) -> str:
    """Returns the folder of files that are deleted together, such as a checkpoint; empty for other files."""
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else ""


def _has_grown(entry: FileEntry, known: Known, item: Item) -> bool:
    """Returns whether a file begins with what the bucket has of it."""
    if known.identity != item.identity or item.size <= entry.size:
        return False
    return tail(item.path, entry.size) == known.tail


def _blocks(path: Path, start: int, end: int, most: int) -> Iterator[bytes]:
    """Yields a part of a file.

    Raises:
        OSError: if the file is shorter.
    """
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            block = file.read(min(end - start, most))
            if not block:
                raise OSError(f"{path} was cut while it was uploaded.")
            yield block
            start += len(block)
