"""`TrackerWriter`: writes records to tracking services, through an outbox."""

import re
import zlib
from pathlib import Path
from typing import Any

from jaxcb._src.storage.ownership import FOLDER
from jaxcb._src.writers.base import Writer
from jaxcb._src.writers.scalars import fresh_scalars_of, python_numbers
from jaxcb._src.writers.trackers.base import Status, TrackedRun, Tracker
from jaxcb._src.writers.trackers.delivery import Delivery, record_at
from jaxcb._src.writers.trackers.outbox import DiskOutbox, MemoryOutbox

_OUTBOXES = "outbox"  # directory below that of the run's records
_CAPACITY = 10_000  # maximum number of records that wait in memory


class TrackerWriter(Writer):
    """Sends the records of each callback to its service, from a thread.

    In a run with a directory the records are kept there until the service has them, and the service's id of the run is
    part of checkpoints. A subclass makes the tracker of an action.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._deliveries: dict[str, Delivery] = {}

    def tracker(self, action: Any) -> Tracker:
        """Returns the client of the service."""
        raise NotImplementedError

    def capacity(self, action: Any) -> int:
        """Returns the maximum number of records that wait in memory, in a run without a directory."""
        return _CAPACITY

    def prepare(self, action: Any) -> None:
        context, owner = self.context, action.owner
        if owner in self._deliveries:
            return
        tracker = self.tracker(action)
        tracker.check(owner)
        if context.trial:
            return
        key = f"{context.record.run}-{_slug(owner)}"
        outbox = (
            MemoryOutbox(self.capacity(action)) if context.run_dir is None else self._on_disk(context.run_dir, owner)
        )
        run = TrackedRun(key, None, context.run.what_ran, context.run_dir, context.verbose == 0)
        self._deliveries[owner] = Delivery(owner, tracker, outbox, run)

    def _on_disk(self, run_dir: Path, owner: str) -> DiskOutbox:
        context = self.context
        path = self.context.path(str(run_dir / FOLDER / _OUTBOXES / f"{_slug(owner)}.jsonl"))
        journal = path.with_suffix(".sent.jsonl")
        file = context.append_file(path, f"records of {owner}")
        if not context.complete:
            context.record.make(context.key(journal))
        return DiskOutbox(file, journal, resumed=context.key(path) in context.resumed_files)

    def write(self, record: Any) -> None:
        if self.context.trial:
            return
        delivery = self._deliveries[record.action.owner]
        if not delivery.started:
            delivery.start()
        values = python_numbers(fresh_scalars_of(record.action))
        if values:
            delivery.put(record_at(record.step, record.epoch, values))

    def position(self) -> Any:
        return {owner: delivery.position() for owner, delivery in self._deliveries.items()} or None

    def restore(self, position: Any) -> None:
        for owner, delivery in self._deliveries.items():
            if owner in position:
                delivery.restore(position[owner], complete=self.context.complete)
                if not self.context.complete:
                    delivery.start()

    def tick(self, status: Any) -> None:
        for delivery in self._deliveries.values():
            delivery.check()

    def close(self) -> None:
        failure = self.context.failure
        status: Status = "finished"
        if failure is not None:
            status = "failed" if isinstance(failure, Exception) else "interrupted"
        for delivery in self._deliveries.values():
            if delivery.started or delivery.unfinished:
                delivery.finish(status)

    def deliveries(self) -> tuple[Delivery, ...]:
        """Returns what sends the records, for records after the end of the run."""
        return tuple(self._deliveries.values())


class CustomTrackerWriter(TrackerWriter):
    """Sends the records of `LogTracker` actions by the action's own tracker."""

    def tracker(self, action: Any) -> Tracker:
        return action.tracker


def _slug(owner: str) -> str:
    """Returns a callback's name as part of file names and of ids; different for different names."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", owner)[:60]
    return slug if slug == owner else f"{slug}-{zlib.crc32(owner.encode()):08x}"
