"""`ReplayGrid`: many configurations of callbacks on one recorded run, in one program."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxcb._src.core.chain import Chain, stacked_callbacks
from jaxcb._src.history.logs import read_log
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.program import ReplaySpec, Rows, program_of, replay_function, run
from jaxcb._src.replay.rates import only_rate
from jaxcb._src.sweep.overrides import with_overrides
from jaxcb._src.sweep.space import Point, as_points
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.names import rate_metric
from jaxcb._src.utils.pytree import to_strong_types

NEVER = -1


@dataclass(frozen=True)
class ReplayGrid:
    """The result of many configurations of callbacks on a recorded run.

    Attributes:
        points: the values of each configuration, by path.
        stopped_epoch: the epoch (from 0) in which each first stopped the run, int64 (configurations,); -1 if never.
        lr_scales: the callbacks' factor on each learning rate at the end: name -> float32 (configurations,). The only
            rate of a run has the name "".
        values: metric name -> its value at the last record that each configuration saw, float32 (configurations,).

    Example:
        >>> import jaxcb as jc
        >>> grid = jc.replay([jc.EarlyStopping()], {"val_loss": [3.0, 2.0, 2.5, 2.5, 1.0]},
        ...                  over={"callbacks.EarlyStopping.patience": [1, 2, 3]})
        >>> grid.stopped_epoch.tolist(), grid.values["val_loss"].tolist()
        ([2, 3, -1], [2.5, 2.5, 1.0])
    """

    points: tuple[Point, ...]
    stopped_epoch: np.ndarray = field(repr=False)
    lr_scales: dict[str, np.ndarray] = field(repr=False)
    values: dict[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def lr_scale(self) -> np.ndarray:
        """The callbacks' factor on the only learning rate at the end, float32 (configurations,)."""
        return only_rate("replay", self.lr_scales)

    def table(self) -> dict[str, list[Any]]:
        """Returns one row per configuration, as columns by name, for `pandas.DataFrame`; None if it never stopped."""
        columns: dict[str, list[Any]] = {path: [p[path] for p in self.points] for path in self.points[0]}
        columns["stopped_epoch"] = [None if e == NEVER else e for e in self.stopped_epoch.tolist()]
        columns |= {rate_metric("lr_scale", of): scale.tolist() for of, scale in self.lr_scales.items()}
        return columns | {name: column.tolist() for name, column in self.values.items()}


def replay_grid(callbacks: Chain, source: Any, learning_rate: Any, over: Any) -> ReplayGrid:
    """Replays each configuration; those with equal structure run in one program.

    Args:
        callbacks: the chain.
        source: the recorded run.
        learning_rate: the base rate.
        over: a grid, or points.

    Returns:
        A `ReplayGrid`.

    Raises:
        ValueError: for an unknown path, one outside of callbacks, or a value out of range.
    """
    points = as_points(over)
    for path in points[0]:
        if not path.startswith("callbacks."):
            raise ValueError(f"over: {path!r} is not in a callback; a recorded run has no other numbers to change.")
    base = TrainingConfig(0, None, None, callbacks)
    chains = [with_overrides(base, point).callbacks for point in points]
    records = read_log(source)
    form, rows = program_of(records, learning_rate)
    last, scale = np.zeros(len(points), np.int64), np.zeros((len(points), len(form.rates)), np.float32)
    stopped = np.zeros(len(points), bool)
    for index in by_structure(chains):
        at, factor, ended = _run([chains[i] for i in index], form, rows)
        last[index], scale[index], stopped[index] = at, factor, ended
    scales = {name: scale[:, i] for i, name in enumerate(form.rates)}
    return _result(points, records, last, scales, stopped)


def by_structure(chains: Sequence[Chain]) -> list[list[int]]:
    """Returns the indices of the chains in groups of equal structure."""
    groups: list[tuple[Any, list[int]]] = []
    for i, one in enumerate(chains):
        tree = jax.tree.structure(one)
        for known, index in groups:
            if known == tree:
                index.append(i)
                break
        else:
            groups.append((tree, [i]))
    return [index for _, index in groups]


def _run(chains: Sequence[Chain], form: ReplaySpec, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the record at which each stops, or the last one; the factors there; and whether it stopped."""
    whole, axes = stacked_callbacks(chains)
    with jax.default_device(device := host_device()):
        whole = jax.device_get(to_strong_types(whole))
        if not any(axis == 0 for axis in axes):  # all configurations are equal
            found = jax.device_get(replay_function("stops", _stop_of, whole, form, device)(rows))
            return tuple(np.broadcast_to(x, (len(chains), *np.shape(x))) for x in found)  # pyright: ignore[reportReturnType]
        return jax.device_get(replay_function("stops", _stop_of, whole, form, device, axes)(rows))


def _stop_of(callbacks: Chain, rows: Rows, form: ReplaySpec) -> Any:
    out = run(callbacks, rows, form)
    ended = out.stopped.any()
    at = jax.numpy.where(ended, jax.numpy.argmax(out.stopped), len(out.stopped) - 1)
    return at, out.scale[at], ended


def _result(
    points: Sequence[Point], records: Records, last: np.ndarray, scales: dict[str, np.ndarray], stopped: np.ndarray
) -> ReplayGrid:
    values = {name: records.values[last, i] for i, name in enumerate(records.names)}
    return ReplayGrid(tuple(points), np.where(stopped, records.epoch[last], NEVER), scales, values)


def host_device() -> Any:
    """Returns the CPU: for thousands of tiny dependent steps, kernel launches would dominate on an accelerator."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return None
