"""`Lease`: the object that says which process writes below an address.

A lease is no lock: a process that was paused, or cut off from the network, holds it without knowing that another
process has taken it. So every put that makes something visible has a condition of its own (see `Mirror`), and the lease
only keeps two runs from doing their work in vain.

No clocks of two machines are compared. The holder renews its lease by putting another version of it. Another process
that finds a lease watches it by its own clock: where the version changes, the holder lives; where it does not change
for as long as the lease lasts, it may be taken.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from jaxcb._src.storage.buckets.bucket import Bucket, ConflictError, Found, Version
from jaxcb._src.storage.schema import FormError, boolean, parse, record, text, whole
from jaxcb._src.utils.platforms import has_ended, this_process

NAME = "lease.json"
SECONDS = 30.0  # how long a lease lasts without being renewed
_BRIEF_SECONDS = 1.0  # how long a renewal is retried that will be tried again anyway
_CLOCKS = 60.0  # seconds by which the clocks of two machines may differ, where a person is told of it
_LONGEST = 3600  # seconds; of a lease that another version wrote
_FORM = record(
    {
        "format": whole(1, least=1),
        "number": whole(least=1),
        "writer": text,
        "where": text,
        "process": text,
        "since": text,
        "renewed": whole(),
        "seconds": whole(_LONGEST, least=0),
        "released": boolean,
    }
)


class LeaseLostError(RuntimeError):
    """Another process writes to the bucket now."""


class Lease:
    """The right to write below an address, for a process.

    Args:
        bucket: the address.
        seconds: how long it lasts without being renewed; whole.
        say: prints a line.

    Attributes:
        writer: a random name of this process's writer.
        number: number of the lease, higher than those of all writers before; 0 before it is acquired.
    """

    def __init__(self, bucket: Bucket, *, seconds: float = SECONDS, say: Callable[[str], None] = print) -> None:
        self._bucket, self._seconds, self._say = bucket, seconds, say
        self.writer = secrets.token_hex(4)
        self.number = 0
        self._facts: dict[str, Any] = {}
        self._version: Version | None = None
        self._confirmed = 0.0  # when the last renewal was sent, by the bucket's clock
        self._lost: LeaseLostError | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, after: int = 0) -> None:
        """Takes the lease, where necessary after watching that of another process.

        Args:
            after: number of the last lease under which something was written; its object may have been deleted.

        Raises:
            RuntimeError: if another process has it and lives.
            ValueError: if the object is not a lease.
            OSError: for requests that fail.
        """
        found = self._bucket.get(NAME)
        while True:
            known = None if found is None else self._parse(found)
            if found is not None and known is not None and not known["released"] and not has_ended(known["process"]):
                found = self._watch(found, known)
                continue
            number = max(after, 0 if known is None else known["number"]) + 1
            self._facts = {
                "format": 1,
                "number": number,
                "writer": self.writer,
                "where": f"process {os.getpid()} on {socket.gethostname()}",
                "process": this_process(),
                "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "renewed": 0,
                "seconds": max(1, round(self._seconds)),
                "released": False,
            }
            sent = self._bucket.clock()
            try:
                self._version = self._bucket.put_if(NAME, self._data(), None if found is None else found.version)
            except ConflictError:  # another process was faster
                found = self._bucket.get(NAME)
                if found is not None and not self._parse(found)["released"]:
                    raise self._refusal(self._parse(found)) from None
                continue
            self.number, self._confirmed = number, sent
            return

    def keep(self) -> None:
        """Renews the lease in a thread until it is released."""
        self._thread = threading.Thread(target=self._renew_until_over, name="jaxcb-lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> LeaseLostError | None:
        """The error that says who has taken the lease; None if no one is known to have."""
        return self._lost

    def ensure(self) -> None:
        """Renews the lease if it may have run out. Called before each write, so that a paused process does not write.

        Raises:
            LeaseLostError: if another process has taken it.
            OSError: for a request that fails.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._bucket.clock() - self._confirmed > self._seconds / 2:
                self._renew(None)

    def release(self) -> None:
        """Stops to renew the lease, and lets another process take it at once. Not to be able to is no error."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._lost is None and self.number:
                self._facts = {**self._facts, "released": True}
                with contextlib.suppress(OSError, LeaseLostError):
                    self._renew(_BRIEF_SECONDS)

    def take_over(self, by: str) -> LeaseLostError:
        """Notes that another writer was found to have written, and returns the error."""
        with self._lock:
            self._lost = self._lost or LeaseLostError(_LOST.format(address=self._bucket.address, by=by))
            return self._lost

    def _renew_until_over(self) -> None:
        while not self._over.wait(self._seconds / 3):
            with self._lock:
                if self._lost is not None:
                    return
                # where the store does not answer, `ensure` decides before the next write
                with contextlib.suppress(OSError, LeaseLostError):
                    self._renew(_BRIEF_SECONDS)

    def _renew(self, patience: float | None) -> None:
        """Puts a new version. The lock is held."""
        self._facts = {**self._facts, "renewed": self._facts["renewed"] + 1}
        sent = self._bucket.clock()
        try:
            self._version = self._bucket.put_if(NAME, self._data(), self._version, patience=patience)
        except ConflictError:
            found = self._bucket.get(NAME, patience=patience)
            known = None if found is None else self._parse(found)
            if found is not None and known is not None and known["writer"] == self.writer:
                # a renewal whose acknowledgement never came; it was performed at an unknown time
                self._version = found.version
                self._renew(patience)
                return
            by = "its lease was deleted" if known is None else known["where"]
            self._lost = LeaseLostError(_LOST.format(address=self._bucket.address, by=by))
            raise self._lost from None
        self._confirmed = sent

    def _watch(self, found: Found, known: dict[str, Any]) -> Found | None:
        """Waits until a lease of another process has run out, or has been released.

        Returns:
            The last version that was read.

        Raises:
            RuntimeError: if its holder renews it.
        """
        clock, began = self._bucket.clock, self._bucket.clock()
        self._say(
            f"jaxcb: {self._bucket.address} is in use by another run ({known['where']}, since {known['since']}), or "
            f"was until it was killed; waiting up to {known['seconds']} s for a sign of it."
        )
        while clock() - began <= known["seconds"]:
            self._bucket.sleep(max(0.05, known["seconds"] / 10))
            now = self._bucket.get(NAME)
            if now is None or now.version != found.version:
                if now is not None and not self._parse(now)["released"]:
                    raise self._refusal(self._parse(now))
                return now
        # it has run out: this version of it is replaced, and no other
        known["released"] = True
        return Found(json.dumps(known).encode(), found.version)

    def _refusal(self, known: dict[str, Any]) -> RuntimeError:
        return RuntimeError(
            f"{self._bucket.address} is in use by another run: {known['where']}, since {known['since']} by its clock. "
            "Wait for its end, or pass another run_dir."
        )

    def _parse(self, found: Found) -> dict[str, Any]:
        try:
            return parse(found.data, _FORM)
        except FormError as error:
            raise ValueError(
                f"{self._bucket.address / NAME} is not the lease of a run, or of a newer jaxcb: {error}. If no run "
                "uses this address, delete the object."
            ) from None

    def _data(self) -> bytes:
        return json.dumps(self._facts).encode()


_LOST = (
    "{address} was taken over by another process ({by}): this one was paused, or cut off from the bucket, for longer "
    "than its lease. It stops, and writes nothing more there. What it has done since its last complete save in the "
    "bucket is in its local folder alone."
)


def is_held(bucket: Bucket) -> bool:
    """Returns whether a process seems to write below an address, for people to read.

    Its last renewal is compared with the clock of this machine, whose error is assumed to be below a minute.
    """
    found, modified = bucket.get(NAME), bucket.modified(NAME)
    if found is None or modified is None:
        return False
    try:
        known = parse(found.data, _FORM)
    except FormError:  # of a stranger, or of another version
        return False
    age = datetime.datetime.now(datetime.UTC) - modified
    return not (known["released"] or has_ended(known["process"]) or age.total_seconds() > known["seconds"] + _CLOCKS)
