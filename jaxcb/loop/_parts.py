"""Where the data stands, of several processes: how far is the same for all, an iterator's own state is each one's."""

from collections.abc import Sequence
from typing import Any


def joined(positions: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Makes one position of those of all processes, in their order."""
    first = positions[0]
    if first is None or len(positions) == 1:
        return first
    states = [position.get("iterator") if position else None for position in positions]
    common = {name: value for name, value in first.items() if name != "iterator"}
    return common if None in states else common | {"iterators": states}


def part_of(position: dict[str, Any] | None, index: int, count: int) -> dict[str, Any] | None:
    """Returns a process's own position. Of another number of processes it is known only how far they were."""
    if position is None:
        return None
    states = position.get("iterators", [position["iterator"]] if "iterator" in position else [])
    common = {name: value for name, value in position.items() if name not in ("iterator", "iterators")}
    return common | {"iterator": states[index]} if len(states) == count else common
