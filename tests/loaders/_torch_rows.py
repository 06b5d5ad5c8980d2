"""Rows as a stream for PyTorch, one part for each worker."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from loaders._rows import ROWS, X, Y


class Rows(torch.utils.data.IterableDataset):
    """The rows of a worker, in an order that the epoch turns, if the worker is told of it.

    Args:
        epoch: a number, or a tensor in shared memory.
    """

    def __init__(self, epoch: Any) -> None:
        self.epoch: Any = epoch

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.epoch, "fill_"):
            self.epoch.fill_(epoch)
        else:
            self.epoch = epoch

    def __iter__(self) -> Any:
        worker = torch.utils.data.get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i in np.roll(np.arange(ROWS), 3 * int(self.epoch))[index::count]:
            yield X[i], Y[i]
