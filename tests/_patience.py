"""How long tests wait for what must come: so long that it ends only what hangs, on however busy a machine."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 1800.0  # seconds: beside eight busy processes a test took 20 times as long as alone


def until(holds: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Waits until something holds; fails where it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it does not hold after {seconds:g} s"
        time.sleep(0.002)
