"""`Delivery`: sends the records of an outbox to a service from a thread, so that the run never waits for it."""

import threading
import time
import warnings
from typing import Any

from jaxcb._src.writers.trackers.base import RefusedError, Status, TrackedRecord, TrackedRun, Tracker
from jaxcb._src.writers.trackers.outbox import DiskOutbox, Entry, Outbox

_LONGEST_PAUSE = 30.0  # seconds between two attempts at a service that is down
_INTERRUPTED_SECONDS = 5.0  # an interrupted run has little time, and its records are on the disk


class Delivery:
    """Sends records to a service, in order, from a thread. Failed requests are repeated after increasing pauses.

    Everything except `_work` and what it calls runs on the caller's thread, warnings too. It does not refer to the run,
    so that a result can keep it.

    Args:
        owner: name of the callback.
        tracker: the client of the service.
        outbox: the records.
        run: the run, for the tracker.
        pause: seconds before the second attempt.

    Attributes:
        refused: number of records that the service has rejected.
        id: the service's id of the run; None if it is unknown.
    """

    def __init__(self, owner: str, tracker: Tracker, outbox: Outbox, run: TrackedRun, *, pause: float = 1.0) -> None:
        self.refused, self.id = 0, run.id
        self._owner, self._tracker, self._outbox, self._run, self._pause = owner, tracker, outbox, run, pause
        self._service = tracker.service or type(tracker).__name__
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._opened = self._doubtful = False  # doubtful: a request has failed, and may have arrived nevertheless
        self._catches_up = False  # an earlier process may have sent records that its journal does not name
        self._last_alone = -1  # number of the last record that is sent alone, because one of a batch was refused
        self._status: Status | None = None  # set when the run is over
        self._abandoned = False  # the run has not waited any longer
        self._failure: Exception | None = None
        self._warned = False
        self._after: int | None = None  # number of the first record of `log_after`; None if the run is not over

    # Called by the run

    @property
    def started(self) -> bool:
        """Whether the thread runs, or has run."""
        return self._thread is not None

    @property
    def unfinished(self) -> bool:
        """Whether the service lacks records, or does not know that the run is over."""
        return self._outbox.unfinished

    def start(self) -> None:
        """Starts the thread; with `opens_first`, opens the service's run before.

        Raises:
            Exception: that opening raised, if it is the user's to mend.
        """
        if self._tracker.opens_first and not self._opened:
            try:
                self._open()
            except Exception as error:
                if self._tracker.is_fatal(error):
                    raise
                self._note_failure(error)
        self._start_thread()
        self.check()

    def put(self, record: TrackedRecord) -> None:
        """Adds a record; never waits for the service."""
        with self._changed:
            self._outbox.put(record)
            self._changed.notify()
        self.check()

    def check(self) -> None:
        """Warns once, about the first failure."""
        if self._failure is not None and not self._warned:
            self._warned = True
            what = "has refused records of" if isinstance(self._failure, RefusedError) else "could not be reached by"
            _warn(f"{self._service} {what} {self._owner}: {self._failure!r}. The run continues. Shown once.")

    def position(self) -> dict[str, Any]:
        """Returns the service's run and the position in the records, as JSON."""
        with self._changed:
            return {"id": self.id, "made": self._outbox.made, "sent": self._outbox.done}

    def restore(self, position: dict[str, Any], *, complete: bool) -> None:
        """Continues from the position in a checkpoint. Called before `start`.

        Args:
            position: of a checkpoint.
            complete: whether the run is complete, so that nothing but the rest is sent.
        """
        made, sent, known = position["made"], position["sent"], position["id"]
        if not all(type(n) is int and n >= 0 for n in (made, sent)) or not isinstance(known, str | None):
            raise TypeError(f"expected the numbers of records and an id, got {position!r}")
        self.id = known
        outbox = self._outbox
        if isinstance(outbox, DiskOutbox):
            if outbox.made < made:
                raise ValueError(
                    f"{outbox.path} has {outbox.made} records, but had {made} at the checkpoint. It was changed since; "
                    "put it back from a backup, or give the callback another name."
                )
            if self._tracker.confirms:
                outbox.skip(sent)
            else:
                outbox.forget_held()
        self._after = made if complete else None
        self._catches_up = True

    def finish(self, status: Status) -> None:
        """Sends waiting records and closes the service's run, for a limited time. Warns about those that are left."""
        limit = self._tracker.close_seconds
        if status == "interrupted" and self._outbox.path is not None:
            limit = min(limit, _INTERRUPTED_SECONDS)
        self._after = self._outbox.made if self._after is None else self._after
        self._start_thread()
        with self._changed:
            self._status = status
            self._changed.notify()
        assert self._thread is not None
        self._thread.join(limit)
        self.abandon()
        self.check()
        self._warn_of_the_rest()

    def abandon(self) -> None:
        """Ends the thread as soon as a request that is under way returns. Nothing more reaches the outbox."""
        with self._changed:
            self._abandoned = True
            self._outbox.close()
            self._changed.notify()

    def log_after(self, record: TrackedRecord) -> None:
        """Sends a record after the end of the run, unless an earlier process has already sent it.

        Args:
            record: the record; its time is not compared.
        """
        outbox = self._outbox
        if isinstance(outbox, DiskOutbox):
            known = list(outbox.after(self._after or 0))
            if any(repr(other._replace(time=record.time)) == repr(record) for other in known):  # NaN equals NaN
                if self.unfinished:
                    self._reopen()
                return
        self.put(record)
        self._reopen()

    def _reopen(self) -> None:
        status = self._status or "finished"
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(self._tracker.close_seconds)
        self._thread, self._status, self._opened, self._abandoned, self._warned = None, None, False, False, False
        self._failure = None
        self.finish(status)

    def _start_thread(self) -> None:
        if self._thread is None:
            # a daemon, so that a service that hangs does not keep the process alive
            name = f"jaxcb: {self._owner}"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def _warn_of_the_rest(self) -> None:
        outbox = self._outbox
        waiting, made = outbox.made - outbox.done, outbox.made
        lost = self.refused + outbox.dropped + (waiting if outbox.path is None else 0)
        if lost:
            _warn(f"{self._service} did not receive {lost} of {made} records of {self._owner}.")
        if waiting and outbox.path is not None:
            _warn(
                f"{waiting} of {made} records of {self._owner} wait for {self._service} in {outbox.path}. The same run "
                "with resume=True sends them."
            )

    # In the thread

    def _work(self) -> None:
        pause = self._pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work or self._status is not None or self._abandoned)
                status = self._status
                if self._abandoned:
                    return
            try:
                if not self._has_work:  # the run is over
                    self._close(status or "finished")
                    return
                self._open()
                if self._outbox.made > self._outbox.done:
                    self._send_some()
            except Exception as error:  # of any kind: training does not depend on the service
                with self._changed:
                    self._note_failure(error)
                    if status is not None:  # the service is still down, and the run waits
                        return
                    self._changed.wait_for(lambda: self._status is not None or self._abandoned, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = self._pause

    @property
    def _has_work(self) -> bool:
        return not self._opened or self._outbox.made > self._outbox.done

    def _note_failure(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._opened, self._doubtful = False, True

    def _open(self) -> None:
        if not self._opened:
            self.id = self._tracker.open(self._run._replace(id=self.id))
            self._opened = True

    def _close(self, status: Status) -> None:
        self._tracker.close(status)
        with self._changed:
            self._opened = False
            if isinstance(self._outbox, DiskOutbox) and not self._abandoned:
                self._outbox.note_closed()

    def _send_some(self) -> None:
        """Sends the first waiting records that the service may lack."""
        with self._changed:
            entries = [] if self._abandoned else self._outbox.take(self._tracker.batch)
            if not entries:
                return
            if entries[0].number <= self._last_alone:
                entries = entries[:1]
            new = [entry for entry in entries if not self._outbox.is_held(entry)]
            noted = any(map(self._outbox.is_doubtful, new))
            doubtful = self._doubtful or self._catches_up or noted
            if new:
                self._outbox.note_sending(entries)
        records = [entry.record for entry in new]
        if doubtful and records:
            asked, records = records, self._tracker.missing(records)
            # from here on the service holds nothing, so that later records are sent at once
            self._catches_up = self._catches_up and (noted or records != asked)
        if records:
            try:
                self._tracker.send(records)
            except RefusedError as error:
                self._refuse(entries, error)
                return
        with self._changed:
            self._doubtful = False
            if not self._abandoned:
                self._outbox.advance(entries)

    def _refuse(self, entries: list[Entry], error: RefusedError) -> None:
        """Drops a record that was refused; those of a batch are sent one by one, to find it."""
        with self._changed:
            if self._abandoned:
                return
            if len(entries) > 1:
                self._last_alone = entries[-1].number
                return
            self._failure = self._failure or error
            self.refused += 1
            self._outbox.advance(entries)


def record_at(step: int, epoch: int, values: dict[str, float]) -> TrackedRecord:
    """Returns a record with the current time."""
    return TrackedRecord(step, epoch, time.time(), values)


def _warn(text: str) -> None:
    warnings.warn(f"jaxcb: {text}", RuntimeWarning, stacklevel=4)
