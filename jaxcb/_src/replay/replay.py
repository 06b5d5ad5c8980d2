"""`replay`: runs callbacks on a recorded run."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.records import fired
from jaxcb._src.core.actions.utils import fill
from jaxcb._src.core.callback import STEP_HOOKS, Callback, PopulationCallback
from jaxcb._src.core.chain import Chain, as_chain
from jaxcb._src.history.logs import read_log
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.grid import ReplayGrid, host_device, replay_grid
from jaxcb._src.replay.program import Replayed, program_of, replay_function, run
from jaxcb._src.replay.rates import Rates, only_rate
from jaxcb._src.sweep.space import Point
from jaxcb._src.utils.pytree import to_strong_types


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of replaying callbacks on a recorded run.

    Attributes:
        stopped_epoch: the epoch (from 0) in which a callback first stopped the run; None if none did.
        stop_reason: the reasons of that stop, each preceded by the name of its callback; None if none stopped.
        actions: for each recorded epoch the actions that fired, in order, including those of validations within the
            epoch. A sequence that makes its entries when they are accessed.
        lr_scales: the callbacks' factor on each learning rate after each epoch: name -> float32 (epochs,). The only
            rate of a run has the name "".
        states: the callbacks' states at the end, by name.
        begin: the actions that fired in `on_train_begin`.
        end: the actions that fired in `on_train_end`.
    """

    stopped_epoch: int | None
    stop_reason: str | None
    actions: "FiredByEpoch" = dataclasses.field(repr=False)
    lr_scales: dict[str, np.ndarray] = dataclasses.field(repr=False)
    states: dict[str, Any] = dataclasses.field(repr=False)
    begin: tuple[Action, ...] = dataclasses.field(repr=False)
    end: tuple[Action, ...] = dataclasses.field(repr=False)

    @property
    def lr_scale(self) -> np.ndarray:
        """The callbacks' factor on the only learning rate after each epoch, float32 (epochs,)."""
        return only_rate("replay", self.lr_scales)


class FiredByEpoch(Sequence[tuple[Action, ...]]):
    """The actions that fired, epoch by epoch, stored as the arrays that the scan returned."""

    def __init__(self, stacked: tuple[Action, ...], starts: np.ndarray, ends: np.ndarray) -> None:
        self._parts = [(np.asarray(a.when), *jax.tree.flatten(a)) for a in stacked]
        self._starts, self._ends = starts, ends
        fires = np.zeros(int(ends[-1]), bool)
        for when, _, _ in self._parts:
            fires |= when
        self._any = np.logical_or.reduceat(fires, starts).tolist()

    def __len__(self) -> int:
        return len(self._any)

    @overload
    def __getitem__(self, index: int) -> tuple[Action, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Action, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not self._any[index]:
            return ()
        return tuple(
            jax.tree.unflatten(form, [leaf[record] for leaf in leaves])
            for record in range(int(self._starts[index]), int(self._ends[index]))
            for when, leaves, form in self._parts
            if when[record]
        )

    def __iter__(self) -> Iterator[tuple[Action, ...]]:
        return (self[i] if some else () for i, some in enumerate(self._any))

    def __repr__(self) -> str:
        return f"<actions of {len(self)} epochs, {sum(self._any)} with some>"


@overload
def replay(
    callbacks: Callback | Iterable[Callback],
    source: Any,
    *,
    learning_rate: Rates | None = None,
    over: None = None,
) -> Replay: ...
@overload
def replay(
    callbacks: Callback | Iterable[Callback],
    source: Any,
    *,
    learning_rate: Rates | None = None,
    over: Mapping[str, Iterable[Any]] | Sequence[Point],
) -> ReplayGrid: ...
def replay(
    callbacks: Callback | Iterable[Callback],
    source: Any,
    *,
    learning_rate: Rates | None = None,
    over: Any = None,
) -> Any:
    """Runs callbacks on a recorded run, as if they had been part of it.

    A decision depends only on the metrics, so this is exact as long as the decisions would not have
    changed the run itself. After the first different decision, the result shows what the callbacks would have done
    if the run had continued as recorded. The callbacks' learning rate is simulated and shown to them. One compiled
    scan processes all records.

    Each record calls `on_epoch_begin` (at the first record of an epoch), `on_eval_begin` and `on_eval_end` (at records
    with new `val_` values or within an epoch) and `on_epoch_end` (at the last record of an epoch).
    After the first record that stops the run, states no longer change and nothing fires until `on_train_end`.
    Log and host actions are returned, not performed.

    Args:
        callbacks: callbacks, or a chain of them.
        source: the path, or the address in a bucket, of a `history.csv` or of its `run_dir` (host metrics, such as
            `elapsed`, are read from the journal next to it), or of the log of another library (Keras's CSVLogger,
            Lightning's `metrics.csv`, TensorBoard's event files, JSON lines, W&B's offline files); a dict of lists; or
            a list of dicts. None, "NA" and a missing key mean that a metric was not reported; nan is a value. The names
            `epoch` (from 0; the record's index if missing) and `step` (increasing; counted from 1 if missing) are
            positions; records of an epoch before its last one are validations within it.
        learning_rate: the base rate, a number or an optax schedule of the step; of a run with several optimizers, a
            dict of the names of its rates to these. None for the recorded `base_learning_rate`, or 1 if there is none.
        over: many configurations of the callbacks at once, as in `jc.sweep`: a grid by path, such as
            `{"callbacks.EarlyStopping.patience": range(20)}`, or a list of points.

    Returns:
        A `Replay`; with `over` a `ReplayGrid`, which has the stop of each configuration.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: if the source has no records, columns of different lengths, or a cell that is
            not a number.
        MissingMetricError: if a monitor was not recorded; lists the names that were.
        ValueError: if no callback has a hook that a recorded run can replay, and for a learning rate that was not
            recorded; names those that were.

    Example:
        >>> import jaxcb as jc
        >>> callbacks = [jc.EarlyStopping(patience=3), jc.ReduceLROnPlateau(factor=0.5, patience=2)]
        >>> result = jc.replay(callbacks, {"val_loss": [3.0, 2.0, 2.5, 2.5, 2.25, 1.0]})
        >>> result.stopped_epoch, result.lr_scale.tolist()
        (4, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
        >>> result.stop_reason
        'EarlyStopping: val_loss has not improved for 3 reports; best 2 at epoch 2'
        >>> [type(action).__name__ for action in result.actions[3]]
        ['ScaleLearningRate']

        A run with several optimizers has a rate for each, by its name:

        >>> plateau = jc.ReduceLROnPlateau(factor=0.5, patience=1, of="head")
        >>> result = jc.replay(plateau, {"val_loss": [3.0, 3.0]}, learning_rate={"body": 0.1, "head": 0.2})
        >>> {name: scale.tolist() for name, scale in result.lr_scales.items()}
        {'body': [1.0, 1.0], 'head': [1.0, 0.5]}

    Source: none; Keras, Lightning and others cannot, because their callbacks read the live trainer.
    """
    whole = as_chain(callbacks)
    _check_replayable(whole)
    if over is not None:
        return replay_grid(whole, source, learning_rate, over)
    records = read_log(source)
    form, rows = program_of(records, learning_rate)
    with jax.default_device(device := host_device()):
        whole = jax.device_get(to_strong_types(whole))
        out = jax.device_get(replay_function("all", run, whole, form, device)(rows))
    return _result(records, out, form.rates)


def _check_replayable(callbacks: Chain) -> None:
    """Rejects population callbacks, and warns about hooks that need batches, which a history does not have."""
    together = [name for name, c in callbacks.items() if isinstance(c, PopulationCallback)]
    if together:
        raise ValueError(f"{', '.join(together)} acts on a population, but a history is of a single run.")
    lost = {name: sorted(c.hooks() & set(STEP_HOOKS)) for name, c in callbacks.items() if c.hooks() & set(STEP_HOOKS)}
    if not lost:
        return
    shown = ", ".join(f"{name} ({', '.join(hooks)})" for name, hooks in lost.items())
    if not callbacks.hooks() - set(STEP_HOOKS):
        raise ValueError(
            f"nothing to replay: {shown} act at every batch, and a history records epochs and validations. "
            "Replay callbacks that define on_epoch_end or on_eval_end."
        )
    warnings.warn(
        f"replay skips hooks that act at every batch, because a history records epochs and validations: {shown}.",
        stacklevel=3,
    )


def _result(records: Records, out: Replayed, rates: tuple[str, ...]) -> Replay:
    ends = np.flatnonzero(records.closes) + 1
    starts = np.append(0, ends[:-1])
    begin, actions = fired(out.begin), FiredByEpoch(out.actions, starts, ends)
    stopped_epoch = stop_reason = None
    if out.stopped.any():
        at = int(np.argmax(out.stopped))
        stopped_epoch = int(records.epoch[at])
        early = any(isinstance(a, Stop) for a in begin)
        of = begin if early else actions[int(np.searchsorted(ends, at, side="right"))]
        step = 0 if early else int(records.step[at])
        stop_reason = "; ".join(
            f"{a.owner}: {fill(a, step=step, epoch=stopped_epoch)}" for a in of if isinstance(a, Stop)
        )
    return Replay(
        stopped_epoch=stopped_epoch,
        stop_reason=stop_reason,
        actions=actions,
        lr_scales={name: out.scale[ends - 1, i] for i, name in enumerate(rates)},
        states=out.states,
        begin=begin,
        end=fired(out.end),
    )
