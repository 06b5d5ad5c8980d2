"""`Bucket`: the objects below an address, through obstore.

All requests go through this module: it retries, translates errors, and counts. obstore's own retries are turned off,
because they hide a lost acknowledgement: the second attempt of a conditional put finds the object of the first one, and
fails. Here the object is read back and compared.
"""

import datetime
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, TypeVar

from jaxcb._src.utils.address import Address

T = TypeVar("T")

PATIENCE_SECONDS = 300.0  # how long a request of a run is retried
START_SECONDS = 20.0  # how long one is retried before the run has begun
_TIMEOUT = "120s"  # of one request
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 15.0  # seconds between two attempts
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
if hasattr(time, "CLOCK_BOOTTIME"):  # it continues while the machine sleeps

    def now() -> float:
        """Returns seconds that never go back."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    now = time.monotonic
Version = dict[str, Any]  # entity tag or generation, as obstore takes it as a condition


class ConflictError(Exception):
    """The condition of a put does not hold, because another writer has changed the object."""


class Found(NamedTuple):
    """An object that was read.

    Attributes:
        data: all of it.
        version: the condition under which a put replaces this version and no other.
    """

    data: bytes
    version: Version


def connect(address: Address) -> Any:
    """Returns obstore's store for the bucket of an address. It takes credentials from the environment.

    Raises:
        ImportError: if obstore is missing.
        ValueError: if the environment lacks a setting, such as the account for Azure.
    """
    try:
        from obstore import store as stores
    except ImportError:
        raise ImportError(f"{address} needs the package obstore: pip install jaxcb[bucket].") from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    plain = address.scheme == "s3" and endpoint.startswith("http://")
    options: Any = {
        "client_options": {"timeout": _TIMEOUT, "allow_http": plain},
        "retry_config": {"max_retries": 0},
    }
    kind = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[address.scheme]
    try:
        return kind(address.bucket, **options)
    except Exception as error:  # of several types; none of them is a fault of the network
        raise ValueError(f"{address} cannot be opened: {_first_line(error)}. {_cure(address)}") from None


class Bucket:
    """The objects below an address.

    Args:
        address: the bucket, and the names that all objects begin with.
        store: of obstore, or with the same methods; None for that of the address.
        patience: seconds for which a request is retried.
        clock: returns seconds that never go back.
        sleep: waits for some seconds.

    Attributes:
        requests: kind of request -> number of attempts.
        sent: bytes in all puts.
        received: bytes in all results.

    Raises:
        ImportError: if obstore is missing.
        ValueError: if the environment lacks a setting.
    """

    def __init__(
        self,
        address: Address,
        *,
        store: Any = None,
        patience: float = START_SECONDS,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.patience = patience
        self.requests: Counter[str] = Counter()
        self.sent = self.received = 0
        self.clock, self.sleep = clock, sleep
        self._store = connect(address) if store is None else store
        self._granted: set[str] = set()  # kinds of requests that were allowed: credentials may expire, and be renewed
        self._count = threading.Lock()

    def get(self, name: str, *, patience: float | None = None) -> Found | None:
        """Returns an object; None if there is none of this name."""

        def read() -> Found:
            result = self._store.get(self._key(name))
            return Found(bytes(result.bytes()), _condition(result.meta))

        try:
            found = self._attempt("get", name, read, patience)
        except FileNotFoundError:
            return None
        self._note(received=len(found.data))
        return found

    def modified(self, name: str) -> datetime.datetime | None:
        """Returns when an object was last written, by the clock of the store; None if there is none of this name."""
        try:
            return self._attempt("head", name, lambda: self._store.head(self._key(name)))["last_modified"]
        except FileNotFoundError:
            return None

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns a part of an object.

        Raises:
            FileNotFoundError: if there is no object of this name.
        """
        data = self._attempt(
            "get", name, lambda: bytes(self._store.get_range(self._key(name), start=start, length=length))
        )
        self._note(received=len(data))
        return data

    def put(self, name: str, data: bytes) -> None:
        """Writes an object whose name no other writer uses, so that a second attempt changes nothing."""
        self._attempt("put", name, lambda: self._send(name, data, "overwrite"))

    def put_if(self, name: str, data: bytes, version: Version | None, *, patience: float | None = None) -> Version:
        """Writes an object if its version is the given one.

        Args:
            name: of the object.
            data: no two writers, and no two calls of one, may pass the same: what was written is recognized by it.
            version: the version to replace; None if there must be no object.
            patience: seconds for which the request is retried.

        Returns:
            The new version.

        Raises:
            ConflictError: if the object has another version, which is not of this call.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def write() -> Version:
            try:
                return _condition(self._send(name, data, "create" if version is None else version))
            except (AlreadyExistsError, PreconditionError):
                # perhaps an attempt of this call was performed, and its acknowledgement was lost
                now = self.get(name, patience=patience)
                if now is not None and now.data == data:
                    return now.version
                if (None if now is None else now.version) == version:
                    raise _NotYet from None  # a store may answer so while it performs another request
                raise ConflictError(name) from None

        return self._attempt("put", name, write, patience)

    def delete(self, names: Collection[str]) -> None:
        """Deletes objects. One that does not exist is no error."""
        keys = [self._key(name) for name in names]
        if not keys:
            return
        try:
            self._attempt("delete", f"{len(keys)} objects", lambda: self._store.delete(keys))
        except FileNotFoundError:
            for name in keys if len(keys) > 1 else ():
                self.delete([name.removeprefix(self._prefix)])

    def list(self, below: str = "") -> dict[str, int]:
        """Returns name -> size of all objects below a name. A store may list a recent change as it was before."""
        key = self._key(below).rstrip("/")

        def read() -> dict[str, int]:
            return {entry["path"]: entry["size"] for part in self._store.list(key or None) for entry in part}

        found = self._attempt("list", below, read)
        return {path.removeprefix(self._prefix): size for path, size in found.items() if path.startswith(self._prefix)}

    @property
    def _prefix(self) -> str:
        return f"{self.address.key}/" if self.address.key else ""

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _send(self, name: str, data: bytes, mode: Any) -> Any:
        self._note(sent=len(data))
        return self._store.put(self._key(name), data, mode=mode, use_multipart=False)

    def _note(self, *, sent: int = 0, received: int = 0) -> None:
        with self._count:
            self.sent += sent
            self.received += received

    def _attempt(self, kind: str, name: str, call: Callable[[], T], patience: float | None = None) -> T:
        """Calls until it succeeds, for some time, with growing pauses.

        Raises:
            FileNotFoundError: if there is no such object; for a put, if there is no such bucket.
            PermissionError: if it was denied.
            ConnectionError: if the store did not answer, or refused for another reason.
        """
        limit = self.clock() + (self.patience if patience is None else patience)
        for delay in _delays():
            with self._count:
                self.requests[kind] += 1
            try:
                result = call()
            except (ConflictError, ImportError):
                raise
            except FileNotFoundError:
                if kind == "put":
                    raise self._without_bucket() from None
                self._granted.add(kind)
                raise
            except Exception as error:  # obstore's and, while it asks for credentials, those of others
                reason = error
            else:
                self._granted.add(kind)
                return result
            if self.clock() + delay > limit or not self._may_pass(kind, reason):
                raise self._explained(kind, name, reason) from reason
            self.sleep(delay)
        raise AssertionError

    def _may_pass(self, kind: str, error: Exception) -> bool:
        """Returns whether another attempt may succeed."""
        from obstore import exceptions as kinds

        if _is_denial(error):
            return kind in self._granted
        if "NoSuchBucket" in str(error):
            return False
        return not isinstance(
            error,
            kinds.NotSupportedError
            | kinds.InvalidPathError
            | kinds.UnknownConfigurationKeyError
            | ValueError
            | TypeError
            | NotImplementedError,
        )

    def _explained(self, kind: str, name: str, error: Exception) -> OSError:
        place = f"{self.address}: {kind} of {name or 'all objects'}"
        if "NoSuchBucket" in str(error):
            return self._without_bucket()
        if _is_denial(error):
            return PermissionError(f"{place} was denied: {_first_line(error)}. {_cure(self.address)}")
        return ConnectionError(f"{place} failed: {_first_line(error)}. {_cure(self.address)}")

    def _without_bucket(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"there is no bucket {self.address.bucket!r} for {self.address}. Create it, or pass another address."
        )


class _NotYet(Exception):
    """Try the same again."""


def _is_denial(error: Exception) -> bool:
    from obstore import exceptions as kinds

    # a denied list is a general error
    return isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError) or "AccessDenied" in str(error)


def _delays() -> Iterator[float]:
    """Yields the pauses between attempts; random, so that many writers do not try at the same times."""
    delay = _FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, _LONGEST_DELAY)


def _condition(meta: Any) -> Version:
    # a store uses one of both; obstore refuses a condition that is None
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__:.300}".rstrip(".")


def _cure(address: Address) -> str:
    return (
        f"Check the name of the bucket, the network and the settings in the environment ({_SETTINGS[address.scheme]})."
    )
