"""Changes of the disk that a save makes: where a process can be stopped in the midst of one."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"open": Path, "fsync": os, "rename": Path, "unlink": os, "rmdir": os}


def watch_changes(act: Callable[[str], Any], put: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Calls `act` with the function's name before each change of the disk that a saving thread makes.

    Args:
        act: called on that thread.
        put: sets an attribute; `monkeypatch.setattr` takes the watch away again.
    """

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if threading.current_thread().name == "jaxcb-save":
                act(function.__name__)
            return function(*given, **named)

        return call

    for name, owner in CHANGES.items():
        put(owner, name, watched(getattr(owner, name)))


def wait_at_change(what: str, number: int) -> None:
    """Has this process say `at WHAT` before its n-th change of that kind, and wait there to be killed."""
    left = [number]

    def act(name: str) -> None:
        left[0] -= name == what
        if left[0] == 0:
            os.write(1, f"at {name}\n".encode())
            threading.Event().wait()

    watch_changes(act)
