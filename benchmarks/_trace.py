"""How busy a device was in a trace of `jax.profiler`, and how long it waited between kernels."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LONG = 20.0  # microseconds; a shorter gap is that between two kernels in a stream


class Busy(NamedTuple):
    """How a device spent its time between the first and the last kernel of a trace.

    Attributes:
        kernels: number of kernels and copies.
        seconds: between the begin of the first and the end of the last.
        idle: the fraction of the seconds in which nothing ran.
        gaps: number of gaps of more than 20 microseconds.
        longest: the longest gap in microseconds.
    """

    kernels: int
    seconds: float
    idle: float
    gaps: int
    longest: float


def read(directory: Path) -> list[dict[str, Any]]:
    """Reads the events of the newest trace in a directory of `jax.profiler.trace`.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(directory.glob("plugins/profile/*/*.trace.json.gz"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no trace: jax.profiler.trace writes plugins/profile/*/*.json.gz.")
    with gzip.open(files[-1], "rt") as file:
        return json.load(file)["traceEvents"]


def busy(events: Iterable[Mapping[str, Any]]) -> Busy | None:
    """Returns how busy the first GPU of a trace was; None if the trace has no kernels of a GPU."""
    events = list(events)
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    devices = sorted(pid for pid, name in names.items() if "/device:GPU" in name)
    if not devices:
        return None
    spans = sorted(
        (e["ts"], e["ts"] + e.get("dur", 0))
        for e in events
        if e.get("ph") == "X" and e["pid"] == devices[0] and "Stream" in threads.get((e["pid"], e["tid"]), "")
    )
    if not spans:
        return None
    gaps, end = [], spans[0][0]
    for start, stop in spans:
        if start > end:
            gaps.append(start - end)
        end = max(end, stop)
    whole = end - spans[0][0]
    return Busy(len(spans), whole / 1e6, sum(gaps) / whole, sum(gap > LONG for gap in gaps), max(gaps, default=0.0))
