"""The processes of a run, and how they agree: what process 0 finds is what all of them act on.

Everything travels through the key-value store of JAX's distributed service, which takes no part in what the devices
do, so that nothing waits for the steps under way. Its client has no public name in JAX (0.10 to 0.12); Orbax and Flax
take it from the same place.
"""

import contextlib
import json
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from jaxcb._src.utils.errors import ProcessError

T = TypeVar("T")
_SLICE_MS = 2_000  # milliseconds that are waited for process 0 before it is asked whether somebody has failed
_LOOK = 1.0  # seconds between two looks at what the others tell
_GRACE = 15.0  # seconds for a process to come to an end by itself once another one has failed
_ROLL_CALL = 5.0  # seconds in which those who are there answer when a step has failed
_BLOCK, _KEPT = 64, 4  # agreements in a directory of the store, and directories that stay

_runs, _points = 0, 0  # of this process; each process makes the same ones


class Processes:
    """One process: what it finds holds.

    Attributes:
        index: of this process.
        count: of all processes.
        signum: a signal that another process was sent; None where none was.
        takes_sigterm: whether JAX's own preemption notice takes SIGTERM, so that nobody else may.
    """

    index, count = 0, 1
    signum: int | None = None
    takes_sigterm = False

    @property
    def is_primary(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.index == 0

    @property
    def is_multiprocess(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def broadcast_from_primary(self, find: Callable[[], T]) -> T:
        """Returns what process 0 finds; the function is called there alone. All processes come here in one order."""
        return find()

    def gather(self, own: T) -> list[T]:
        """Returns what each process has, at process 0; at the others their own alone."""
        return [own]

    def notified(self) -> bool:
        """Whether all processes have reached the point at which they act on a preemption notice."""
        return False

    def report_signal(self, signum: int) -> None:
        """Tells process 0 of a signal that this one was sent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace


SINGLE_PROCESS = Processes()


def processes() -> Processes:
    """Returns the processes of a run that begins; to be entered."""
    global _runs
    if jax.process_count() == 1:
        return SINGLE_PROCESS
    from jax._src import distributed

    if distributed.global_state.client is None:  # as on a TPU pod that was not initialized
        raise RuntimeError(
            f"JAX sees {jax.process_count()} processes, but they cannot talk to each other: call "
            "jc.distributed.initialize() before anything else."
        )
    _runs += 1
    return MultiProcess(distributed.global_state, jax.process_index(), jax.process_count(), _runs)


class MultiProcess(Processes):
    """A run of several processes.

    Args:
        state: of `jax.distributed`.
        index: of this process.
        count: of all.
        run: how many runs these processes have begun.
    """

    def __init__(self, state: Any, index: int, count: int, run: int) -> None:
        self.index, self.count = index, count
        self.takes_sigterm = state.preemption_sync_manager is not None
        self._client = state.client
        self._root, self._past = f"jaxcb/{run}", f"jaxcb/{run - 2}"
        self._number = 0  # of the next agreement
        self._told_signal = False
        self._failed: tuple[int, str] | None = None  # who has told that it failed, and how
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look_around, name="jaxcb-processes", daemon=True)

    def __enter__(self) -> Self:
        self._set(f"who/{self.index}", f"pid {os.getpid()} on {socket.gethostname()}")
        if self.is_primary:
            self._client.key_value_delete(self._past)  # all have left that run, as they were in the one after it
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, trace
        try:
            if error is not None and not isinstance(error, SystemExit | ProcessError):
                self._fail(error)
        finally:
            self._over.set()
            self._watch.join()

    # Agreeing

    def broadcast_from_primary(self, find: Callable[[], T]) -> T:
        number = self._number
        self._number += 1
        key = f"agreed/{number // _BLOCK}/{number}"
        if not self.is_primary:
            return self._receive(key)
        self._raise_failure()
        try:
            value = find()
        except BaseException as error:
            self._set_bytes(key, pickle.dumps((False, _words(error))))
            raise
        self._set_bytes(key, pickle.dumps((True, value)))  # the processes of a run run the same code
        if number % _BLOCK == 0 and number >= _BLOCK * _KEPT:
            self._client.key_value_delete(f"{self._root}/agreed/{number // _BLOCK - _KEPT}")
        return value

    def _receive(self, key: str, index: int = 0) -> Any:
        """Waits for what a process has found: as long as it lives, for it may be busy with a user's function."""
        while True:
            try:
                found, value = pickle.loads(self._client.blocking_key_value_get_bytes(f"{self._root}/{key}", _SLICE_MS))
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise ProcessError(f"{self._name(index)} cannot be reached any more: {error}") from error
            self._raise_failure()
        if not found:
            raise ProcessError(f"{self._name(index)} failed: {value}")
        return value

    def gather(self, own: T) -> list[T]:
        number = self._number
        self._number += 1
        if not self.is_primary:
            self._set_bytes(f"gathered/{number}/{self.index}", pickle.dumps((True, own)))
            return [own]
        found: list[T] = [own]
        for index in range(1, self.count):
            found.append(self._receive(f"gathered/{number}/{index}", index))
        self._client.key_value_delete(f"{self._root}/gathered/{number}")
        return found

    # Signals

    def notified(self) -> bool:
        global _points
        if not self.takes_sigterm:
            return False
        from jax.experimental import multihost_utils

        _points += 1  # consecutive, or the point that all have agreed on is passed over
        return multihost_utils.reached_preemption_sync_point(_points)

    def report_signal(self, signum: int) -> None:
        if not self._told_signal and not self.is_primary:
            self._told_signal = True
            self._tell(signum=signum)

    # Failures

    def _look_around(self) -> None:
        """Takes note of what the others tell. Ends this process where it cannot end by itself; a thread.

        A step in which a process is missing never comes to its end, and nothing in Python can cut it short.
        """
        since: float | None = None
        while not self._over.wait(_LOOK):
            for index, told in self._told().items():
                if told.get("signum") is not None:
                    self.signum = told["signum"]
                if told.get("error") is not None and self._failed is None:
                    self._failed, since = (index, told["error"]), time.monotonic()
            if since is not None and time.monotonic() - since > _GRACE:
                print(f"jaxcb: {self._failure()} This process waits for it in a step, and ends.", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)

    def _fail(self, error: BaseException) -> None:
        """Tells the others that this process has failed; where a step failed, finds out who is missing in it.

        Raises:
            ProcessError: where another process is the cause.
        """
        if isinstance(error, jax.errors.JaxRuntimeError):
            missing = self._missing()
            self._failed = next(((i, t["error"]) for i, t in self._told().items() if t.get("error")), self._failed)
            if self._failed is not None:
                raise ProcessError(self._failure()) from error
            if missing:
                names = ", ".join(self._name(index) for index in missing)
                raise ProcessError(
                    f"{names} died or cannot be reached, so that a step of this process failed. Start all processes "
                    "again with the same command: with resume='auto' the run goes on from where it was saved last."
                ) from error
        self._tell(error=_words(error))

    def _missing(self) -> list[int]:
        """Those who do not answer, of those whom a failed step must have stopped as well."""
        until, there = time.monotonic() + _ROLL_CALL, {self.index}
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set(f"here/{self.index}", "")
            while len(there) < self.count and time.monotonic() < until:
                time.sleep(0.1)
                found = self._client.key_value_dir_get(f"{self._root}/here/")
                there = {int(key.rpartition("/")[2]) for key, _ in found} | {self.index}
        return sorted(set(range(self.count)) - there - self._told().keys())

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise ProcessError(self._failure())

    def _failure(self) -> str:
        assert self._failed is not None
        index, error = self._failed
        return f"{self._name(index)} failed: {error}"

    # The store

    def _tell(self, **what: Any) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set(f"told/{self.index}", json.dumps(what), allow_overwrite=True)

    def _told(self) -> dict[int, dict[str, Any]]:
        """What the others have told, by process."""
        try:
            found = self._client.key_value_dir_get(f"{self._root}/told/")
        except jax.errors.JaxRuntimeError:
            return {}
        told = {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}
        return {index: what for index, what in told.items() if index != self.index}

    def _name(self, index: int) -> str:
        try:
            return f"process {index} ({self._client.key_value_try_get(f'{self._root}/who/{index}')})"
        except jax.errors.JaxRuntimeError:
            return f"process {index}"

    def _set(self, key: str, text: str, *, allow_overwrite: bool = False) -> None:
        self._client.key_value_set(f"{self._root}/{key}", text, allow_overwrite=allow_overwrite)

    def _set_bytes(self, key: str, value: bytes) -> None:
        self._client.key_value_set_bytes(f"{self._root}/{key}", value)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
