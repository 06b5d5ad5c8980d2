"""What a run does by the clock is left out: no test of the loop depends on how fast the machine is."""

import math
from collections.abc import Iterator

import pytest
from _patience import PATIENCE

from jaxcb._src.checkpointing import checkpointer as _keeping
from jaxcb._src.data import prefetch as _stream


@pytest.fixture(scope="session", autouse=True)
def _no_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_stream, "_JOIN_SECONDS", PATIENCE)  # else a thread that ends late is left to itself
        patched.setattr(_keeping, "SAVE_SECONDS", math.inf)  # else a slow run saves once more
        yield
