"""The lines about transfers that take long."""

import itertools
import re
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from storage.buckets._faulty import Clock, FaultyStore, Machine

from jaxcb._src.storage.buckets.progress import Progress, shown_bytes


@given(parts=st.lists(st.tuples(st.integers(0, 10**10), st.floats(0, 4)), max_size=40))
def test_a_line_comes_after_five_seconds_and_then_every_ten(parts):
    clock, lines = Clock(1000.0), []
    progress = Progress("s3://bucket/run", "uploaded", lambda line: lines.append((clock.now, line)), clock=clock)
    total, done = sum(size for size, _ in parts), 0
    progress.begin(total)
    for size, seconds in parts:
        progress.add(size)
        done += size
        clock.now += seconds
        before = len(lines)
        progress.tell()
        for _, line in lines[before:]:
            how_much = f"{shown_bytes(done)} of {shown_bytes(total)}" if done < total else "all, finishing"
            assert line == f"jaxcb: s3://bucket/run: uploaded {how_much}."
    times = [at for at, _ in lines]
    assert all(at >= 1005.0 for at in times)
    assert all(later - at >= 10.0 for at, later in itertools.pairwise(times))
    assert (clock.now - 1000.0 >= 5.0) == bool(lines)


def test_long_uploads_and_downloads_tell_their_progress(tmp_path):
    memory, clock = MemoryStore(), Clock()

    def slow(number: int, kind: str, path: str, go: Any) -> Any:
        if "segments/" in path:
            clock.now += 6.0
            time.sleep(0.3)  # the run looks at the progress ten times a second
        return go()

    machine = Machine(FaultyStore(memory, slow), tmp_path / "a", clock).open()
    machine.checkpoint(1)
    machine.save()
    machine.close()
    assert re.search(r"jaxcb: s3://bucket/runs/a: uploaded \d+ B of \d+ B\.", "\n".join(machine.said))
    fresh = Machine(FaultyStore(memory, slow), tmp_path / "b", clock).open()
    fresh.close()
    assert re.search(r"jaxcb: s3://bucket/runs/a: downloaded (\d+ B of \d+ B|all, finishing)\.", "\n".join(fresh.said))
