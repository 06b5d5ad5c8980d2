"""A store that fails as stores and networks do, and a machine that mirrors a folder to it."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from obstore.exceptions import GenericError, PermissionDeniedError
from obstore.store import MemoryStore

from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.download import restore
from jaxcb._src.storage.buckets.index import read_index
from jaxcb._src.storage.buckets.lease import Lease
from jaxcb._src.storage.buckets.mirror import Mirror
from jaxcb._src.storage.buckets.snapshot import MARK, Limit, scan
from jaxcb._src.utils.address import Address

ADDRESS = Address("s3", "bucket", "runs/a")
SECONDS = 30.0  # of a lease
Fault = Callable[[], Any]  # called in place of a request that is performed, or not, by the fault itself


class Clock:
    """A clock of one machine; waiting moves it, and calls what happens elsewhere meanwhile."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.meanwhile: Callable[[float], None] = lambda seconds: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(seconds)


class FaultyStore:
    """What one machine sees of a store that it shares with others.

    Args:
        memory: the objects.
        fault: is given the number and kind of each request, its path, and a function that performs it; returns its
            result, or raises.
    """

    def __init__(
        self,
        memory: MemoryStore,
        fault: Callable[[int, str, str, Callable[[], Any]], Any] = lambda n, kind, path, go: go(),
    ) -> None:
        self.memory, self.fault = memory, fault
        self.requests: list[tuple[str, str]] = []

    def _request(self, kind: str, path: str, go: Callable[[], Any]) -> Any:
        self.requests.append((kind, path))
        return self.fault(len(self.requests) - 1, kind, path, go)

    def put(self, path: str, data: bytes, *, mode: Any, use_multipart: bool) -> Any:
        assert not use_multipart
        return self._request("put", path, lambda: self.memory.put(path, data, mode=mode))

    def get(self, path: str) -> Any:
        return self._request("get", path, lambda: self.memory.get(path))

    def get_range(self, path: str, *, start: int, length: int) -> Any:
        return self._request("get", path, lambda: self.memory.get_range(path, start=start, length=length))

    def delete(self, paths: list[str]) -> Any:
        return self._request("delete", ",".join(paths), lambda: self.memory.delete(paths))

    def list(self, prefix: str | None) -> Any:
        return self._request("list", prefix or "", lambda: list(self.memory.list(prefix)))


def throttled() -> Any:
    raise GenericError("Server returned non-2xx status code: 503 Service Unavailable: SlowDown")


def denied() -> Any:
    raise PermissionDeniedError("The provided token has expired (ExpiredToken)")


def cut_off(at: int, *, performed: bool) -> Callable[[int, str, str, Callable[[], Any]], Any]:
    """From a request on nothing is answered any more, as after a kill; that request itself may be performed."""

    def fault(number: int, kind: str, path: str, go: Callable[[], Any]) -> Any:
        if number < at:
            return go()
        if number == at and performed:
            go()
        raise GenericError("error sending request: the machine has vanished")

    return fault


def contents(memory: MemoryStore) -> dict[str, str]:
    """Name -> entity tag of all objects."""
    return {entry["path"]: str(entry["e_tag"]) for part in memory.list() for entry in part}


def files_in(folder: Path) -> dict[str, bytes]:
    """The files that a mirror copies."""
    return {name: (folder / name).read_bytes() for name in scan(folder)}


class Machine:
    """A machine that runs in a bucket: its folder is empty when it begins.

    Args:
        store: what it sees of the store.
        folder: an empty folder.
        clock: its own.
        segment_bytes: small, so that a file has several.
    """

    def __init__(
        self, store: Any, folder: Path, clock: Clock | None = None, *, segment_bytes: int = 200, patience: float = 20.0
    ) -> None:
        self.clock = clock or Clock()
        self.said: list[str] = []
        self.folder = folder
        self.bucket = Bucket(ADDRESS, store=store, clock=self.clock, sleep=self.clock.sleep, patience=patience)
        self.lease = Lease(self.bucket, seconds=SECONDS, say=self.said.append)
        self.mirror = Mirror(self.bucket, self.lease, folder, say=self.said.append, segment_bytes=segment_bytes)
        self.logs: dict[str, Limit] = {}

    def open(self) -> "Machine":
        """Begins as a run does."""
        (self.folder / MARK).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / MARK).write_text("{}")
        before = read_index(self.bucket).manifest
        self.lease.acquire(0 if before is None else before.lease)
        self.mirror.open()
        self.mirror.know(restore(self.bucket, self.mirror.index, self.folder, say=self.said.append))
        self.mirror.start()
        return self

    def checkpoint(self, step: int, *, keep: int = 2) -> None:
        """Appends to logs, writes a checkpoint, and removes old ones, as a run does. What it writes is a function of
        the step alone.
        """
        folder = self.folder / "checkpoints" / f"step_{step:09d}"
        with (self.folder / "log.csv").open("ab") as file:
            file.write(b"%d,%d\n" % (step, step * step) * 3)
        data = (self.folder / "log.csv").read_bytes()
        self.logs = {"log.csv": Limit(len(data), zlib.crc32(data))}
        folder.mkdir(parents=True)
        (folder / "arrays").write_bytes(bytes([step % 256]) * (150 + step))
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
        (self.folder / "best.json").write_text(json.dumps({"step": step // 3}))
        for old in sorted((self.folder / "checkpoints").iterdir())[:-keep]:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()

    def save(self) -> None:
        """Uploads what is there, and waits for it."""
        self.mirror.save(self.logs)
        self.mirror.wait()
        self.mirror.check()

    def close(self) -> None:
        self.mirror.stop()
        self.lease.release()
