"""Training data that stays on the devices: whether it fits, its description, and its feed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from jaxcb._src.data.feed import Chunk, Feed
from jaxcb._src.data.inputs import DataConfig, rows_of
from jaxcb._src.data.progress import UNBOUNDED, Progress
from jaxcb._src.data.spec import BatchLayout, DataSpec
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.platforms import least_memory
from jaxcb._src.utils.pytree import on_device

_MAX_FRACTION = 0.5  # fraction of a device's free memory that data may use


def fits_on_device(
    arrays: Any,
    what: str,
    requested: bool | None,
    *,
    placement: Placement,
    processes: Processes,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Returns whether to keep arrays on the devices, replicated.

    Args:
        arrays: a pytree of arrays.
        what: name of the data in messages.
        requested: True or False as the user requested, or None.
        placement: the devices.
        processes: of the run; process 0 decides.
        say: prints a line.
    """
    if isinstance(requested, bool):
        return requested
    # arrays that are already on the single device take no further memory
    new = [x for x in jax.tree.leaves(arrays) if placement.mesh is not None or not isinstance(x, jax.Array)]
    needed = sum(x.nbytes for x in new)
    free = processes.broadcast_from_primary(lambda: free_bytes(placement.own_devices))
    if needed <= _MAX_FRACTION * free:
        return True
    if say is not None:
        say(
            f"jaxcb: {what} has {needed / 1e9:.3g} GB, a device has {free / 1e9:.3g} GB free: it stays on the host, "
            "which gathers each batch. Execution(resident=True) keeps it on the devices."
        )
    return False


def free_bytes(devices: list[Any]) -> int:
    """Returns the minimum of the free bytes of some devices; for CPU devices, their share of the machine's memory."""
    per_device = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in per_device):
        return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in per_device)
    return least_memory() // len(devices)


@dataclass(frozen=True)
class ResidentPlan:
    """Rows that stay on the devices, in an order that the device draws for each epoch.

    Attributes:
        spec: what programs know of them.
        arrays: the rows, on the devices of a single run, or on the default device until a strategy places them; None
            for a run without data.
    """

    spec: DataSpec
    arrays: Any

    @classmethod
    def of(
        cls,
        arrays: Any,
        *,
        batch_size: int,
        shuffle: bool,
        key: Array,
        epoch_len: int,
        train_remainder: bool,
        placement: Placement,
    ) -> "ResidentPlan":
        """Transfers rows and describes them.

        Args:
            arrays: a pytree of arrays with a common leading axis.
            batch_size: rows of a batch, at most the rows of the arrays.
            shuffle: whether each epoch has its own order.
            key: PRNG key of the orders, or one per member.
            epoch_len: batches of an epoch.
            train_remainder: whether to train on the smaller last batch.
            placement: the devices.
        """
        layout = BatchLayout("resident", rows_of(arrays, "train_data"), batch_size, shuffle, train_remainder)
        # replicated: the indices are sharded, so that gathering rows needs no communication
        arrays = placement.put_everywhere(jax.tree.map(on_device, arrays))
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), arrays)
        return cls(DataSpec(example, layout, epoch_len, key), arrays)


NO_DATA: Any = type("NoData", (), {})()  # takes the place of training data if the step takes no batch


def plan_without_data(config: DataConfig) -> ResidentPlan:
    """Returns the plan of a run whose step takes no batch.

    Raises:
        DataError: if nothing says how long the run or an epoch is, or for the size of batches.
    """
    if config.batch_size is not None:
        raise DataError(f"batch_size={config.batch_size} was given without data. Leave it out, or pass train_data.")
    if config.steps_per_epoch is None and (config.steps is None or config.epochs not in (None, 1)):
        raise DataError(
            f"epochs={config.epochs} and steps={config.steps} were given without data, and nothing says how long an "
            "epoch is. Pass steps_per_epoch=, or steps= alone for a run of one epoch."
        )
    length = UNBOUNDED if config.steps_per_epoch is None else config.steps_per_epoch
    return ResidentPlan(DataSpec(None, BatchLayout("none", 0, 1, False, False), length), None)


class Resident(Feed):
    """The feed of rows on the devices, or of no data: every dispatch gets all of them.

    Args:
        plan: the rows.
        placement: the devices.
    """

    def __init__(self, plan: ResidentPlan, placement: Placement) -> None:
        self.epoch_len = plan.spec.epoch_len
        self.data = placement.put_everywhere(plan.arrays)

    def next(self, most: int, *, wait: bool) -> Chunk:
        del most, wait
        return Chunk(self.data, None, -1, 0, UNBOUNDED, self.epoch_len)

    def confirm(self, status: Progress, *, again: bool = False) -> int:
        del status, again
        return self.epoch_len
