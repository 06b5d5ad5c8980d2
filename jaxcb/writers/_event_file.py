"""`EventFile`: one of TensorBoard's event files that grows."""

import os
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

_PREFIX = "events.out.tfevents."
_SYNC = 10.0  # seconds, so that curves are seen while they grow


class EventFile:
    """Writes events straight into a file.

    tensorboardX's own writers hand each event to a thread through a queue, which costs several times as much, and for
    which flushing is no barrier. Here all that was written is on the disk when `sync` returns.

    Args:
        directory: where the file goes; it is made.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # names alone differ by the second, and one of two files would replace the other
        self._file = EventsWriter(str(directory / "events"), f".{time.time_ns()}.{os.getpid()}")
        self._synced = time.monotonic()

    def add_summary(self, summary: Any, step: int) -> None:
        """Writes what belongs to a step."""
        self.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def add_event(self, event: Any) -> None:
        """Writes an event as it is."""
        self._file.write_event(event)

    def tick(self) -> None:
        """Shows what was written, now and then."""
        if time.monotonic() - self._synced > _SYNC:
            self.sync()

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        self._file.flush()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Writes the rest."""
        self._file.close()


def event_files(directory: Path) -> list[Path]:
    """The event files of a directory."""
    return sorted(directory.glob(f"{_PREFIX}*"))
