"""Coordination of the processes of a run: process 0 decides, and broadcasts its decisions.

All messages use the key-value store of JAX's distributed service. It does not involve the devices, so that nothing
waits for pending steps. Its client has no public name in JAX (0.10 to 0.12); Orbax and Flax use the same private one.
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
_SLICE_MS = 2_000  # milliseconds to wait for process 0 before checking for a failed process
_POLL_SECONDS = 1.0  # seconds between two reads of the messages of other processes
_EXIT_GRACE_SECONDS = 15.0  # seconds for a process to end normally after another one has failed
_RESPONSE_SECONDS = 5.0  # seconds for other processes to respond after a step has failed
_BLOCK, _KEPT = 64, 4  # broadcasts per directory of the store, and number of directories that are kept

_runs, _points = 0, 0  # counters; equal on each process


class Processes:
    """A single process, and base class for several.

    Attributes:
        index: index of this process.
        count: number of processes.
        signum: a signal that another process received, or None.
        takes_sigterm: whether JAX's own preemption notice handles SIGTERM, so that nothing else may.
    """

    index, count = 0, 1
    signum: int | None = None
    takes_sigterm = False

    @property
    def is_primary(self) -> bool:
        """Whether this process decides, writes files and prints."""
        return self.index == 0

    @property
    def is_multiprocess(self) -> bool:
        """Whether there are several processes."""
        return self.count > 1

    def broadcast_from_primary(self, find: Callable[[], T]) -> T:
        """Returns `find()` of process 0, where alone it is called. All processes must call this in the same order."""
        return find()

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes on process 0, and only its own on the others."""
        return [value]

    def notified(self) -> bool:
        """Returns whether all processes have reached the step at which they act on a preemption notice."""
        return False

    def report_signal(self, signum: int) -> None:
        """Reports a signal that this process received to process 0."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace


SINGLE_PROCESS = Processes()


def processes() -> Processes:
    """Returns the processes of a new run, a context manager."""
    global _runs
    if jax.process_count() == 1:
        return SINGLE_PROCESS
    from jax._src import distributed

    if distributed.global_state.client is None:  # such as a TPU pod that was not initialized
        raise RuntimeError(
            f"JAX sees {jax.process_count()} processes, but they cannot communicate: call "
            "jc.distributed.initialize() before anything else."
        )
    _runs += 1
    return MultiProcess(distributed.global_state, jax.process_index(), jax.process_count(), _runs)


class MultiProcess(Processes):
    """Several processes.

    Args:
        state: of `jax.distributed`.
        index: index of this process.
        count: number of processes.
        run: number of runs that these processes have begun.
    """

    def __init__(self, state: Any, index: int, count: int, run: int) -> None:
        self.index, self.count = index, count
        self.takes_sigterm = state.preemption_sync_manager is not None
        self._client = state.client
        self._root, self._past = f"jaxcb/{run}", f"jaxcb/{run - 2}"
        self._number = 0  # number of the next broadcast
        self._signal_reported = False
        self._failed: tuple[int, str] | None = None  # index and error of a process that has reported a failure
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_others, name="jaxcb-processes", daemon=True)

    def __enter__(self) -> Self:
        self._set(f"who/{self.index}", f"pid {os.getpid()} on {socket.gethostname()}")
        if self.is_primary:
            # all processes have left that run, since they were in the one after it
            self._client.key_value_delete(self._past)
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

    # Broadcasts

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
        self._set_bytes(key, pickle.dumps((True, value)))  # pickle is safe, since all processes run the same code
        if number % _BLOCK == 0 and number >= _BLOCK * _KEPT:
            self._client.key_value_delete(f"{self._root}/agreed/{number // _BLOCK - _KEPT}")
        return value

    def _receive(self, key: str, index: int = 0) -> Any:
        """Waits for the value of a process, without a time limit: it may be busy with a user's function."""
        while True:
            try:
                found, value = pickle.loads(self._client.blocking_key_value_get_bytes(f"{self._root}/{key}", _SLICE_MS))
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise ProcessError(f"{self._name(index)} cannot be reached: {error}") from error
            self._raise_failure()
        if not found:
            raise ProcessError(f"{self._name(index)} failed: {value}")
        return value

    def gather(self, value: T) -> list[T]:
        number = self._number
        self._number += 1
        if not self.is_primary:
            self._set_bytes(f"gathered/{number}/{self.index}", pickle.dumps((True, value)))
            return [value]
        found: list[T] = [value]
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

        _points += 1  # must be consecutive, otherwise the agreed step is missed
        return multihost_utils.reached_preemption_sync_point(_points)

    def report_signal(self, signum: int) -> None:
        if not self._signal_reported and not self.is_primary:
            self._signal_reported = True
            self._publish(signum=signum)

    # Failures

    def _watch_others(self) -> None:
        """Reads the messages of other processes. Ends this process if it cannot end normally. Runs in a thread.

        A step with a missing process never ends, and Python cannot interrupt it.
        """
        since: float | None = None
        while not self._over.wait(_POLL_SECONDS):
            for index, message in self._messages().items():
                if message.get("signum") is not None:
                    self.signum = message["signum"]
                if message.get("error") is not None and self._failed is None:
                    self._failed, since = (index, message["error"]), time.monotonic()
            if since is not None and time.monotonic() - since > _EXIT_GRACE_SECONDS:
                print(f"jaxcb: {self._failure()} This process waits for it in a step, and ends.", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)

    def _fail(self, error: BaseException) -> None:
        """Reports that this process has failed. If a step failed, finds out which process is missing in it.

        Raises:
            ProcessError: if another process is the cause.
        """
        if isinstance(error, jax.errors.JaxRuntimeError):
            missing = self._missing()
            self._failed = next(((i, t["error"]) for i, t in self._messages().items() if t.get("error")), self._failed)
            if self._failed is not None:
                raise ProcessError(self._failure()) from error
            if missing:
                names = ", ".join(self._name(index) for index in missing)
                raise ProcessError(
                    f"{names} died or cannot be reached, so a step of this process failed. Start all processes "
                    "again with the same command: with resume=True the run resumes from its last checkpoint."
                ) from error
        self._publish(error=_words(error))

    def _missing(self) -> list[int]:
        """Returns the processes that do not respond. A failed step must have stopped all others."""
        until, responding = time.monotonic() + _RESPONSE_SECONDS, {self.index}
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set(f"here/{self.index}", "")
            while len(responding) < self.count and time.monotonic() < until:
                time.sleep(0.1)
                found = self._client.key_value_dir_get(f"{self._root}/here/")
                responding = {int(key.rpartition("/")[2]) for key, _ in found} | {self.index}
        return sorted(set(range(self.count)) - responding - self._messages().keys())

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise ProcessError(self._failure())

    def _failure(self) -> str:
        assert self._failed is not None
        index, error = self._failed
        return f"{self._name(index)} failed: {error}"

    # Key-value store

    def _publish(self, **what: Any) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set(f"told/{self.index}", json.dumps(what), allow_overwrite=True)

    def _messages(self) -> dict[int, dict[str, Any]]:
        """Returns the messages of the other processes."""
        try:
            found = self._client.key_value_dir_get(f"{self._root}/told/")
        except jax.errors.JaxRuntimeError:
            return {}
        messages = {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}
        return {index: message for index, message in messages.items() if index != self.index}

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
