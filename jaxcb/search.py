"""Sweeps and replays: search spaces and results."""

from jaxcb._src.replay.replay import Replay
from jaxcb._src.sweep.largest_batch import LargestBatch, largest_batch_size
from jaxcb._src.sweep.lr_find import LRFind
from jaxcb._src.sweep.result import SweepResult
from jaxcb._src.sweep.space import draws, grid, integers, log_uniform, uniform

__all__ = [
    "LRFind",
    "LargestBatch",
    "Replay",
    "SweepResult",
    "draws",
    "grid",
    "integers",
    "largest_batch_size",
    "log_uniform",
    "uniform",
]
