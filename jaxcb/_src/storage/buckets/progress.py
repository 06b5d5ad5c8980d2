"""`Progress`: lines about a transfer that takes long."""

import threading
import time
from collections.abc import Callable

_FIRST, _EVERY = 5.0, 10.0  # seconds before the first line, and between two


class Progress:
    """Counts bytes, and prints a line from time to time.

    Args:
        where: what is read or written; begins each line.
        verb: what is done, in the past.
        say: prints a line.
        clock: returns seconds.
    """

    def __init__(
        self, where: str, verb: str, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._where, self._verb, self._say, self._clock = where, verb, say, clock
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._due = clock() + _FIRST

    def begin(self, total: int) -> None:
        """Begins a transfer of some bytes."""
        with self._lock:
            self._done, self._total, self._due = 0, total, self._clock() + _FIRST

    def add(self, size: int) -> None:
        """Notes transferred bytes."""
        with self._lock:
            self._done += size

    def tell(self) -> None:
        """Prints a line if it is time for one."""
        with self._lock:
            if self._clock() < self._due:
                return
            self._due = self._clock() + _EVERY
            done, total = self._done, max(self._total, self._done)
        how_much = f"{shown_bytes(done)} of {shown_bytes(total)}" if done < total else "all, finishing"
        self._say(f"jaxcb: {self._where}: {self._verb} {how_much}.")


def shown_bytes(size: float) -> str:
    """Returns a size in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
