"""`AsyncSender`: sends records to a service from a thread, so that the run never waits for it."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_LONGEST_PAUSE = 30.0  # seconds between two attempts at a service that is down


class RefusedError(Exception):
    """The service rejected the data, so sending it again is useless."""


class AsyncSender:
    """A bounded queue and a thread that sends its items, in order.

    Failed sends are repeated after increasing pauses; when the queue is full, the oldest item is dropped.
    Everything except `_work` runs on the caller's thread, warnings too.

    Args:
        service: its name, for the warning.
        send: sends a list of items or raises an error; called on the thread.
        warn: called with the text of a warning.
        capacity: maximum number of waiting items.
        batch: maximum number of items per call of `send`.
        pause: seconds before the second attempt.
    """

    def __init__(
        self,
        service: str,
        send: Callable[[list[Any]], None],
        warn: Callable[[str], None],
        *,
        capacity: int,
        batch: int = 1,
        pause: float = 1.0,
    ) -> None:
        self.sent = self.lost = 0
        self._service, self._send, self._warn = service, send, warn
        self._capacity, self._batch, self._pause = capacity, batch, pause
        self._waiting: deque[Any] = deque()
        self._under_way = 0
        self._changed = threading.Condition()
        self._closing = False
        self._failure: Exception | None = None
        self._told = False
        # a daemon thread, so that a service that hangs does not keep the process alive
        self._thread = threading.Thread(target=self._work, name=f"jaxcb: {service}", daemon=True)

    def put(self, item: Any) -> None:
        """Adds an item to the queue; never waits."""
        with self._changed:
            self._waiting.append(item)
            self._shorten()
            self._changed.notify()
        if self._thread.ident is None:
            self._thread.start()
        self.check()

    def check(self) -> None:
        """Warns once, about the service's first failure."""
        if self._failure is not None and not self._told:
            self._told = True
            self._warn(f"{self._service} could not be reached: {self._failure!r}. The run continues. Shown once.")

    def close(self, timeout: float) -> None:
        """Sends waiting items, for at most `timeout` seconds, and warns about lost ones."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        with self._changed:
            self.lost += len(self._waiting) + self._under_way
            self._waiting.clear()
        self.check()
        if self.lost:
            self._warn(f"{self._service} did not receive {self.lost} of {self.sent + self.lost} messages.")

    def _shorten(self) -> None:
        while len(self._waiting) > self._capacity:
            self._waiting.popleft()
            self.lost += 1

    def _work(self) -> None:
        pause = self._pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                last = self._closing
                items = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
                self._under_way = len(items)
            try:
                self._send(items)
            except Exception as error:
                with self._changed:
                    self._under_way = 0
                    self._failure = self._failure or error
                    if isinstance(error, RefusedError):
                        self.lost += len(items)
                        continue
                    self._waiting.extendleft(reversed(items))
                    self._shorten()
                    if last:  # the service is still down, and the run waits
                        return
                    self._changed.wait_for(lambda: self._closing, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                with self._changed:
                    self._under_way = 0
                    self.sent += len(items)
                pause = self._pause
