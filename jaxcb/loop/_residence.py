"""Whether arrays are kept on the devices, or stay with the host, which gathers each batch."""

import os
from collections.abc import Callable
from typing import Any

import jax

from jaxcb._processes import Processes
from jaxcb.parallel import Placement

_SHARE = 0.5  # of a device's free memory that arrays may take; the rest is the model's


def are_kept(
    arrays: Any,
    what: str,
    asked: bool | str,
    *,
    placement: Placement,
    processes: Processes,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Whether arrays are kept on the devices, whole on each.

    Args:
        arrays: a pytree of arrays.
        what: its name in what is said.
        asked: True or False as the user has said, or "auto".
        placement: the devices.
        processes: of the run; process 0 decides for all.
        say: takes a line for the user.
    """
    if isinstance(asked, bool):
        return asked
    # what one device holds already is not moved
    new = [x for x in jax.tree.leaves(arrays) if placement.mesh is not None or not isinstance(x, jax.Array)]
    needed = sum(x.nbytes for x in new)
    free = processes.agree(lambda: free_bytes(placement.own_devices))
    if needed <= _SHARE * free:
        return True
    if say is not None:
        say(
            f"jaxcb: {what} has {needed / 1e9:.3g} GB, and a device {free / 1e9:.3g} GB left: it stays with the host, "
            "which gathers each batch. resident=True keeps it on the devices."
        )
    return False


def free_bytes(devices: list[Any]) -> int:
    """Bytes that each of some devices has left; of the machine's memory, which CPU devices share, all that there is."""
    told = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in told):
        return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in told)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
