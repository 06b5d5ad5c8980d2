"""Event files, and graphs as GraphDefs, the format that TensorBoard draws."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.crc32c import CRC_TABLE, crc32c
from tensorboardX.proto import types_pb2
from tensorboardX.proto.attr_value_pb2 import AttrValue  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.graph_pb2 import GraphDef  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.node_def_pb2 import NodeDef  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.versions_pb2 import VersionDef  # pyright: ignore[reportAttributeAccessIssue]

from jaxcb._src.inspection.graph.draw import Node
from jaxcb._src.storage.failures import WriteFailures, append_whole, check_in_place, named
from jaxcb._src.storage.ownership import is_run_id

_PREFIX = "events.out.tfevents."
_OF = ".run-"
_VERSION = "brain.Event:2"
_SYNC = 10.0  # seconds between two syncs, so that curves are visible while they grow
_WAITING = 1 << 20  # maximum bytes of events that wait to be framed together
_FEW = 8  # below this number of records of one length, vectorized checksums do not pay off
_TABLE = np.asarray(CRC_TABLE, np.uint32)


class EventFile:
    """Writes events directly to a file, many at a time.

    tensorboardX's own writers pass each event to a thread through a queue, which costs several times as much and
    whose flush does not wait for the thread; and they compute checksums byte by byte in Python, which dominates the
    cost. Here everything that was written is on the disk when `sync` returns.

    Args:
        directory: the directory of the file; it is made.
        run: the id of the run, which becomes the end of the file's name.
        failures: what to do when the file cannot be written; its events then wait.
        check: raises an `OSError` if the directory must not be made.
    """

    def __init__(
        self,
        directory: Path,
        run: str = "",
        *,
        failures: WriteFailures | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        now = time.time_ns()
        self._failures, self._check = failures or WriteFailures(), check
        # nanoseconds in the name, because a second file of the same second would replace the first
        name = f"{_PREFIX}{now // 10**9:010d}.{socket.gethostname()}.{now}.{os.getpid()}{run and _OF}{run}"
        self.path = directory / name
        self._file: FileIO | None = None
        self._size = 0  # of the file
        self._waiting: list[bytes] = []
        self._bytes = 0  # of the events that wait
        self._limit = _WAITING  # bytes that wait when they are written next
        with self._handled():
            self._file = self._open()
        self._synced = time.monotonic()
        self.add_event(Event(wall_time=now / 1e9, file_version=_VERSION))

    def add_summary(self, summary: Any, step: int) -> None:
        """Writes a summary of a step."""
        self.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def add_event(self, event: Any) -> None:
        """Writes an event."""
        data = event.SerializeToString()
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > self._limit:
            with self._handled():
                self._write()

    def tick(self) -> None:
        """Syncs the file every few seconds."""
        if time.monotonic() - self._synced > _SYNC:
            self.sync()

    def sync(self) -> None:
        """Returns when everything that was written is on the disk, or waits since the disk does not take it."""
        self._synced = time.monotonic()
        with self._handled():
            os.fsync(self._write().fileno())

    def close(self) -> None:
        """Writes the rest."""
        try:
            self.sync()
        finally:
            if self._file is not None:
                self._file.close()
        if self._waiting:
            self._failures.report_loss(f"{self.path} lacks the last {len(self._waiting)} events of the run.")

    def _open(self) -> FileIO:
        self._check()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(self.path, "xb")

    def _write(self) -> FileIO:
        """Writes what waits, and returns the file."""
        self._limit = self._bytes + _WAITING  # in case that it fails
        self._file = self._file or self._open()
        check_in_place(self._file.fileno(), self.path)
        data = framed(self._waiting)
        append_whole(self._file.fileno(), self._size, data)
        self._size += len(data)
        self._waiting, self._bytes, self._limit = [], 0, _WAITING
        return self._file

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        """Raises an `OSError` of a write, or warns of it."""
        kept = "Its events wait in memory, and later writes try again."
        with self._failures.handled(self.path, kept), named("the event file", self.path):
            yield


def framed(records: Sequence[bytes]) -> bytes:
    """Frames records as TFRecords: length, its checksum, the record, its checksum."""
    lengths = [struct.pack("<Q", len(record)) for record in records]
    sums = zip(_masked(lengths), _masked(records), strict=True)
    parts = zip(lengths, records, sums, strict=True)
    return b"".join(b"".join((n, struct.pack("<I", a), r, struct.pack("<I", b))) for n, r, (a, b) in parts)


def _masked(records: Sequence[bytes]) -> list[int]:
    """Returns the masked CRC-32C of each record, as in TFRecords. Records of equal length are computed together."""
    sums = np.zeros(len(records), np.uint32)
    by_length: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        by_length.setdefault(len(record), []).append(i)
    for length, places in by_length.items():
        if len(places) < _FEW:
            sums[places] = [crc32c(records[i]) for i in places]
            continue
        columns = np.frombuffer(b"".join(records[i] for i in places), np.uint8).reshape(-1, length).T
        checksums = np.full(len(places), 0xFFFFFFFF, np.uint32)
        for column in columns:
            checksums = _TABLE[(checksums ^ column) & 0xFF] ^ (checksums >> 8)
        sums[places] = ~checksums
    return (((sums >> 15) | (sums << 17)) + np.uint32(0xA282EAD8)).tolist()


def event_files(directory: Path) -> list[Path]:
    """Returns the event files of a directory."""
    return sorted(path for path in directory.iterdir() if path.name.startswith(_PREFIX)) if directory.is_dir() else []


def run_of(path: Path) -> str | None:
    """Returns the id of the run that wrote an event file; None if its name has none."""
    run_id = path.name.rpartition(_OF)[2]
    return run_id if _OF in path.name and is_run_id(run_id) else None


_TYPES = {
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "float16": "DT_HALF",
    "bool": "DT_BOOL",
}  # all others have JAX's names
_PRODUCER = 22  # TensorFlow 1.x, whose graphs have this form


def as_graphdef(nodes: Iterable[Node]) -> GraphDef:
    """Returns the graph, with the shapes of results in the attribute that TensorBoard reads for edges."""
    return GraphDef(node=[_node(node) for node in nodes], versions=VersionDef(producer=_PRODUCER))


def _node(node: Node) -> NodeDef:
    attributes = {name: AttrValue(s=text.encode()) for name, text in node.about.items()}
    shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in shape]) for shape, _ in node.results]
    attributes["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=shapes))
    if node.results:
        dtype = node.results[0][1]
        known = getattr(types_pb2, _TYPES.get(dtype, f"DT_{dtype.upper()}"), None)
        attributes["dtype"] = AttrValue(s=dtype.encode()) if known is None else AttrValue(type=known)
    return NodeDef(name=node.name, op=node.op, input=node.inputs, attr=attributes)
