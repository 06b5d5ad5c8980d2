"""`Orders`: what process 0 decides for all before each stretch of work, one small record a turn."""

from typing import NamedTuple

import numpy as np

from jaxcb._errors import DataError
from jaxcb.loop._feed import Chunk


class Orders(NamedTuple):
    """What the host does next. All that no device can decide alike on every process is in here.

    Attributes:
        signum: a signal that asks for the end.
        save: whether the run is to be saved.
        pack: whether a population goes on in a smaller program.
        length: steps that the next dispatch may do.
        host: the host metrics that it is given; None where nothing is to be dispatched.
        data: where its data belongs.
    """

    signum: int | None = None
    save: bool = False
    pack: bool = False
    length: int = 0
    host: np.ndarray | None = None
    data: tuple[int, ...] = ()

    @property
    def rest(self) -> bool:
        """Whether there is something to do for which nothing may be under way."""
        return self.signum is not None or self.save or self.pack


def placed(chunk: Chunk) -> tuple[int, ...]:
    """Where a chunk belongs: what process 0's data and that of each other process must have in common."""
    return chunk.epoch, chunk.base, chunk.size, chunk.epoch_len, int(chunk.closes), chunk.epochs


def same_place(chunk: Chunk | None, wanted: tuple[int, ...], index: int) -> Chunk:
    """Returns this process's own chunk.

    Raises:
        DataError: where it is not of the steps that process 0 has data for.
    """
    if chunk is not None and placed(chunk) == wanted:
        return chunk
    got = "none any more" if chunk is None else _shown(placed(chunk))
    raise DataError(
        f"process {index} has other data than process 0: {got}, where process 0 has {_shown(wanted)}. Each process "
        "must give as many batches an epoch as the others, of the same number of rows."
    )


def _shown(place: tuple[int, ...]) -> str:
    epoch, base, size, _, closes, _ = place
    return f"batches {base + 1} to {base + size} from epoch {epoch + 1} on" + (", the last ones" if closes else "")
