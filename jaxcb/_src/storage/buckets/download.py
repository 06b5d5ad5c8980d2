"""Downloads of mirrored folders, and of parts of them."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.index import MANIFEST, FileEntry, Index, read_index
from jaxcb._src.storage.buckets.mirror import SEGMENT_BYTES, UPLOADS, Known
from jaxcb._src.storage.buckets.progress import Progress
from jaxcb._src.storage.buckets.snapshot import MARK, PARTIAL, tail
from jaxcb._src.storage.ownership import file_checksum, is_inside
from jaxcb._src.utils.address import Address

_POLL_SECONDS = 1.0  # between two looks at the progress
_TRIES = 5  # downloads of a folder whose run continues meanwhile
Choose = Callable[[list[str]], Iterable[str]]


class _Target(NamedTuple):
    """A part of a file to write."""

    name: str
    at: int
    start: int  # in the segment
    size: int


class _Span(NamedTuple):
    """A part of a segment to read at once, and where it belongs."""

    segment: str
    start: int
    end: int
    targets: tuple[_Target, ...]


def download(bucket: Bucket, files: Mapping[str, FileEntry], folder: Path, *, say: Callable[[str], None]) -> list[str]:
    """Downloads files of an index into a folder; those that are there already are not read again.

    Args:
        bucket: of the index.
        files: name -> file.
        folder: an existing folder.
        say: prints a line about a transfer that takes long.

    Returns:
        The names of files that are missing in the bucket, at least in part, or have changed there. What is there of
        them is in the folder.

    Raises:
        OSError: for requests that fail.
    """
    needed = {name: entry for name, entry in files.items() if not _is_there(folder / name, entry)}
    for name, entry in needed.items():
        partial = _partial(folder / name)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.truncate(entry.size)
    progress = Progress(str(bucket.address), "downloaded", say, clock=bucket.clock)
    progress.begin(sum(entry.size for entry in needed.values()))
    missing: set[str] = set()

    def read(span: _Span) -> None:
        try:
            data = bucket.get_range(span.segment, span.start, span.end - span.start)
        except FileNotFoundError:
            missing.update(target.name for target in span.targets)
            return
        for target in span.targets:
            with _partial(folder / target.name).open("r+b") as file:
                file.seek(target.at)
                file.write(data[target.start - span.start :][: target.size])
        progress.add(len(data))

    with ThreadPoolExecutor(UPLOADS, thread_name_prefix="jaxcb-download") as pool:
        _all_of([pool.submit(read, span) for span in _spans(needed)], progress)
    for name, entry in needed.items():
        partial = _partial(folder / name)
        if name not in missing and file_checksum(partial) != entry.checksum:
            missing.add(name)
        partial.replace(folder / name)
    return sorted(missing)


def restore(bucket: Bucket, index: Index, folder: Path, *, say: Callable[[str], None]) -> dict[str, Known]:
    """Makes a local folder equal to the mirrored one. Its other files are removed.

    Args:
        bucket: of the index.
        index: the newest one.
        folder: the folder, which belongs to the address.
        say: prints a line.

    Returns:
        What is known of the files, for `Mirror.know`.

    Raises:
        OSError: for requests that fail, or a folder that cannot be written.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            key = (Path(place) / name).relative_to(folder).as_posix()
            if key not in index.files and key != MARK:
                (folder / key).unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place) != folder:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(place)
    damaged = download(bucket, index.files, folder, say=say)
    for name in damaged:
        say(f"jaxcb: {bucket.address}: {name} is damaged or missing there.")
    known = {}
    for name, entry in index.files.items():
        if name not in damaged:
            status = (folder / name).stat()
            known[name] = Known(status.st_ino, status.st_mtime_ns, tail(folder / name, entry.size))
    return known


@contextlib.contextmanager
def downloaded(address: Address, *, choose: Choose = list, sizes: bool = False) -> Iterator[Path]:
    """Downloads a file or folder, and removes it afterwards.

    Args:
        address: below a run's address, or of plain objects.
        choose: returns which files of a folder are needed, of all their names below the address.
        sizes: whether the other files are there, too, with their size and without their content.

    Yields:
        The path of the file or folder.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: for requests that fail.
    """
    with tempfile.TemporaryDirectory(prefix="jaxcb-") as folder:
        for _ in range(_TRIES):
            path = _download_below(address, Path(folder), choose, sizes)
            if path is not None:
                yield path
                return
        raise FileNotFoundError(f"objects of {address} are missing, or change faster than they can be read.")


def _download_below(address: Address, folder: Path, choose: Choose, sizes: bool) -> Path | None:
    """Downloads into a folder, and returns the path there; None if it must be tried again."""
    for root in (address, *address.parents):
        bucket = Bucket(root)
        index = read_index(bucket)
        if index.manifest is None:
            continue
        below = address.below(root) or ""
        files = {n: e for n, e in index.files.items() if not below or n == below or n.startswith(f"{below}/")}
        if not files:
            names = sorted({"/".join(name.split("/")[:2]) for name in index.files})
            raise FileNotFoundError(f"there is no {below!r} in the run at {root}. It has {', '.join(names[:20])}.")
        if below not in files:
            start = below and f"{below}/"
            needed = {start + n: files[start + n] for n in choose([name.removeprefix(start) for name in files])}
            (folder / below).mkdir(parents=True, exist_ok=True)
            if sizes:
                _make_empty(folder, {n: e.size for n, e in files.items() if n not in needed})
            files = needed
        return None if download(bucket, files, folder, say=print) else folder / below
    return _download_plain(address, folder, choose, sizes)


def _make_empty(folder: Path, sizes: Mapping[str, int]) -> None:
    """Makes files of a size, which have no content and take no room."""
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(size)


def _download_plain(address: Address, folder: Path, choose: Choose, sizes: bool) -> Path:
    """Downloads objects that no run has written, each as a file."""
    bucket = Bucket(address.parent)
    name = address.key.rpartition("/")[2]
    start = name and f"{name}/"
    there = {n.removeprefix(start): size for n, size in bucket.list(name).items() if n.startswith(start)}
    found = list(there)
    alone = bucket.get(name) if name and not found else None
    if alone is not None:
        (folder / name).write_bytes(alone.data)
        return folder / name
    if not found:
        raise FileNotFoundError(
            f"there is nothing at {address}: no {MANIFEST} of a run at it or above, and no objects."
        )
    (folder / name).mkdir(exist_ok=True)
    needed = [start + n for n in choose(found)]
    if sizes:
        others = {start + n: size for n, size in there.items()}
        _make_empty(folder, {n: size for n, size in others.items() if n not in needed and is_inside(n)})
    for key in needed:
        if not is_inside(key):
            raise ValueError(f"{address} contains an object with the name {key!r}, which is not a file below it.")
        data = bucket.get(key)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(b"" if data is None else data.data)
    return folder / name


def _spans(files: Mapping[str, FileEntry]) -> list[_Span]:
    """Returns what to read of each segment; neighbors at once."""
    targets: dict[str, list[_Target]] = {}
    for name, entry in files.items():
        at = 0
        for piece in entry.pieces:
            targets.setdefault(piece.segment, []).append(_Target(name, at, piece.start, piece.size))
            at += piece.size
    spans = []
    for segment, parts in targets.items():
        spans += _spans_of(segment, sorted(parts, key=lambda part: part.start))
    return spans


def _spans_of(segment: str, targets: list[_Target]) -> Iterator[_Span]:
    group: list[_Target] = []
    for target in targets:
        begin = group[0].start if group else target.start
        end = group[-1].start + group[-1].size if group else target.start
        if group and (target.start != end or target.start + target.size - begin > SEGMENT_BYTES):
            yield _Span(segment, begin, end, tuple(group))
            group = []
        group.append(target)
    if group:
        yield _Span(segment, group[0].start, group[-1].start + group[-1].size, tuple(group))


def _all_of(futures: list[Future[None]], progress: Progress) -> None:
    """Waits for all, and raises the first error."""
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()
            progress.tell()
    finally:
        for future in waiting:
            future.cancel()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}")


def _is_there(path: Path, entry: FileEntry) -> bool:
    """Returns whether a file has the content that the index says."""
    return (
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size == entry.size
        and file_checksum(path) == entry.checksum
    )
