"""Outboxes: the records of a run for one service, in memory or on the disk, and which of them it has."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxcb._src.writers.files import AppendFile
from jaxcb._src.writers.scalars import json_numbers
from jaxcb._src.writers.trackers.base import TrackedRecord

_BLOCK = 1 << 16  # bytes that are read at a time


class Entry(NamedTuple):
    """A record with its number in the run, from 0."""

    number: int
    record: TrackedRecord


class Outbox(Protocol):
    """Records that wait for a service. One thread puts them in, another one takes them out, under one lock.

    Attributes:
        made: number of records that were put in, in this process and earlier ones.
        done: number of records that the service has, or has refused.
        dropped: number of records that were dropped because there was no room.
        path: the file, or None.
    """

    made: int
    done: int
    dropped: int
    path: Path | None

    @property
    def unfinished(self) -> bool:
        """Whether the service lacks records, or does not know that the run is over."""
        ...

    def put(self, record: TrackedRecord) -> None:
        """Adds a record."""
        ...

    def take(self, most: int) -> list[Entry]:
        """Returns the first waiting entries, which stay until `advance`."""
        ...

    def is_doubtful(self, entry: Entry) -> bool:
        """Returns whether an earlier process may have sent the entry."""
        ...

    def is_held(self, entry: Entry) -> bool:
        """Returns whether an earlier process has noted that the service has the entry."""
        ...

    def note_sending(self, entries: list[Entry]) -> None:
        """Notes, before the request, that the service may have these entries."""
        ...

    def advance(self, entries: list[Entry]) -> None:
        """Notes that the service has, or has refused, the first waiting entries."""
        ...

    def close(self) -> None:
        """Makes all durable; it may be used again."""
        ...


class MemoryOutbox:
    """An outbox of a run without a directory. When it is full, the oldest record is dropped.

    Args:
        capacity: maximum number of waiting records.
    """

    path: Path | None = None

    def __init__(self, capacity: int) -> None:
        self.made = self.done = self.dropped = 0
        self._capacity = capacity
        self._waiting: deque[Entry] = deque()

    def put(self, record: TrackedRecord) -> None:
        self._waiting.append(Entry(self.made, record))
        self.made += 1
        if len(self._waiting) > self._capacity:
            self._waiting.popleft()
            self.dropped += 1
            self.done += 1

    def take(self, most: int) -> list[Entry]:
        return [self._waiting[i] for i in range(min(most, len(self._waiting)))]

    def is_doubtful(self, entry: Entry) -> bool:
        return False

    def is_held(self, entry: Entry) -> bool:
        return False

    def note_sending(self, entries: list[Entry]) -> None:
        pass

    def advance(self, entries: list[Entry]) -> None:
        for entry in entries:
            if self._waiting and self._waiting[0].number == entry.number:
                self._waiting.popleft()
                self.done += 1
            else:  # it was dropped while it was sent
                self.dropped -= 1

    @property
    def unfinished(self) -> bool:
        """Whether the service lacks records."""
        return self.done < self.made

    def close(self) -> None:
        pass


class DiskOutbox:
    """An outbox in the run's directory.

    The file holds all records of the run, one line each. Like other log files it is part of checkpoints, and a resumed
    run truncates it to its checkpoint and then makes the later records again. A journal beside it, which is never
    truncated, holds what was sent: so records that are made again are not sent again if they are the same.

    Args:
        file: the file of records.
        journal: path of the journal.
        resumed: whether the file continues that of an earlier process.
    """

    dropped = 0

    def __init__(self, file: AppendFile, journal: Path, *, resumed: bool) -> None:
        self.path: Path | None = file.path
        self._file = file
        self._offset = 0  # of the first waiting record, in bytes
        self.made = self.done = 0
        self._held: dict[int, set[str]] = {}  # number -> digests of the entries that the service has
        self._sent = -1  # number of the last entry that an earlier process may have sent
        # the thread writes it, so it is not registered in the run's record, which belongs to the main thread
        self._journal = AppendFile(journal, "journal of sent records", append=resumed)
        self._closed_at = -1  # number of records when the service's run was closed; -1 if it is open
        if resumed:
            self.made = len(_lines(file.path))
            self._read_journal(journal)

    def _read_journal(self, path: Path) -> None:
        if not path.exists():  # it was removed: any record may have been sent
            self._sent = self.made
            return
        for line in _lines(path):
            try:
                note = json.loads(line)
                if "sending" in note:
                    self._sent, self._closed_at = max(self._sent, int(note["sending"])), -1
                elif "held" in note:
                    for number, digest in note["held"]:
                        self._held.setdefault(int(number), set()).add(str(digest))
                elif "closed" in note:
                    self._closed_at = int(note["closed"])
            except (ValueError, TypeError, KeyError, AttributeError):  # cut off when a process was killed
                continue

    def skip(self, done: int) -> None:
        """Notes that the service has the first records, as a checkpoint says."""
        lines = _lines(self._file.path)[:done]
        self._offset, self.done = sum(map(len, lines)), len(lines)
        self._held = {number: digests for number, digests in self._held.items() if number >= self.done}

    def forget_held(self) -> None:
        """Drops what is noted as sent, for a service that takes records before it has stored them."""
        self._held = {}
        self._sent = max(self._sent, self.made)

    def after(self, number: int) -> Iterable[TrackedRecord]:
        """Returns the records from a number on."""
        return [_entry(i, line).record for i, line in enumerate(_lines(self._file.path)) if i >= number]

    def put(self, record: TrackedRecord) -> None:
        self._file.write(json.dumps(_payload(record) | {"time": record.time}, allow_nan=False) + "\n")
        self._file.flush()
        self.made += 1

    def take(self, most: int) -> list[Entry]:
        if self.done >= self.made:
            return []
        data, lines = b"", []
        with self._file.path.open("rb") as file:
            file.seek(self._offset)
            while len(lines) < most and (block := file.read(_BLOCK)):
                data += block
                lines = data.splitlines(keepends=True)
                if not lines[-1].endswith(b"\n"):
                    lines.pop()
        return [_entry(self.done + i, line) for i, line in enumerate(lines[:most])]

    def is_doubtful(self, entry: Entry) -> bool:
        return entry.number <= self._sent

    def is_held(self, entry: Entry) -> bool:
        digests = self._held.get(entry.number)  # of most records there are none, and theirs need not be computed
        return digests is not None and _digest(entry.record) in digests

    def note_sending(self, entries: list[Entry]) -> None:
        self._note({"sending": entries[-1].number})
        self._closed_at = -1

    def advance(self, entries: list[Entry]) -> None:
        self._note({"held": [[number, _digest(record)] for number, record in entries]})
        with self._file.path.open("rb") as file:
            file.seek(self._offset)
            self._offset += sum(len(file.readline()) for _ in entries)
        self.done += len(entries)
        for entry in entries:
            self._held.pop(entry.number, None)

    @property
    def unfinished(self) -> bool:
        """Whether the service lacks records, or does not know that the run is over."""
        return self.made > 0 and self._closed_at != self.made

    def note_closed(self) -> None:
        """Notes that the service's run was closed after the last record."""
        self._note({"closed": self.made})
        self._closed_at = self.made

    def close(self) -> None:
        self._file.close()
        self._journal.close()

    def _note(self, note: dict[str, Any]) -> None:
        self._journal.write(json.dumps(note) + "\n")
        self._journal.flush()


def _lines(path: Path) -> list[bytes]:
    """Returns the complete lines of a file; none if it is missing."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)


def _payload(record: TrackedRecord) -> dict[str, Any]:
    return {"step": record.step, "epoch": record.epoch, "values": json_numbers(record.values)}


def _entry(number: int, line: bytes) -> Entry:
    """Reads a line of the file.

    Raises:
        ValueError: if it is not one that `put` has written.
    """
    try:
        found = json.loads(line)
        # JSON has no non-finite numbers, which are strings
        values = {name: float(x) if isinstance(x, str) else x for name, x in found["values"].items()}
        return Entry(number, TrackedRecord(int(found["step"]), int(found["epoch"]), float(found["time"]), values))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"line {number + 1} of the records is damaged ({error!r})") from None


def _digest(record: TrackedRecord) -> str:
    """Returns a short hash of a record without its time, which differs when it is made again."""
    return hashlib.blake2b(json.dumps(_payload(record), sort_keys=True).encode(), digest_size=6).hexdigest()
