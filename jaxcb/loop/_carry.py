"""The types that travel through compiled programs: what is carried, what is given, what is told."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._struct import Struct
from jaxcb._train_state import TrainState
from jaxcb.loop._window import Window

FOREVER = np.iinfo(np.int32).max


class Latest(Struct):
    """The epoch-level values last reported."""

    values: dict[str, Any]  # name -> float32 array, NaN before the first report
    reported: dict[str, Any]  # name -> int32 (), the step of the report, -1 for never


class Carry(Struct):
    """A run between two dispatches. Donated to each program, and so never held by anyone else.

    With members, `train`, `callbacks`, `window`, `latest.values` and `ended` have a leading member axis;
    the positions belong to the loop and have none.
    """

    train: TrainState
    callbacks: dict[str, Any]
    window: Window
    latest: Latest
    step: Any  # int32 (), updates done
    epoch: Any  # int32 (), from 0
    cursor: Any  # int32 (), steps done in this epoch
    evaluated: Any  # int32 (), step of the last validation
    seq: Any  # int32 (), moments recorded so far
    opened: Any  # bool (), whether this epoch has begun
    yielded: Any  # bool (), whether a host action waits
    ended: Any  # bool (), whether a stop has closed its epoch
    order: Any  # int32 (rows,), this epoch's order of resident rows; None elsewhere


class Numbers(NamedTuple):
    """The integers that a dispatch is given, sent as one vector."""

    data_epoch: int  # the epoch that the data belongs to, -1 for any
    base: int  # cursor of its first batch
    size: int  # batches in it
    epoch_len: int  # steps of this epoch, FOREVER where not yet known
    length: int  # steps that this dispatch may do
    end_step: int
    end_epoch: int
    total_steps: int  # for `Metrics`, -1 where not known

    def packed(self) -> np.ndarray:
        """One int32 vector, so that a dispatch transfers once."""
        return np.asarray(self, np.int32)


class Inputs(Struct):
    """What a dispatch is given and does not consume."""

    settings: Any  # the callbacks' numbers as arrays, in the order of their tree
    data: Any  # resident rows, or this dispatch's batches
    key: Any  # PRNG key of the data's order; one a member where members see different orders
    val: Any  # resident validation rows by set
    host: dict[str, Any]  # host metrics, float32 ()
    numbers: Any  # `Numbers` packed

    def n(self) -> Numbers:
        """The numbers, traced."""
        return Numbers(*(self.numbers[i] for i in range(len(Numbers._fields))))


class Status(Struct):
    """What each dispatch tells the host."""

    step: Any
    epoch: Any
    cursor: Any
    evaluated: Any
    stop: Any  # whether all have asked for the end
    yielded: Any
    over: Any  # whether the run has closed its last epoch
    awaits: Any  # whether a validation by the host is due
    halted: Any  # whether further steps would change nothing for now
    window: dict[str, Any]  # means of the window so far
    controls: dict[str, Any]  # the train state's


def initial(train: TrainState, callbacks: Any, window: Window, latest: Latest, order: Any) -> Carry:
    """The carry before the first step."""
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return Carry(
        train=train,
        callbacks=callbacks,
        window=window,
        latest=latest,
        step=zero,
        epoch=zero,
        cursor=zero,
        evaluated=zero,
        seq=zero,
        opened=no,
        yielded=no,
        ended=jnp.zeros_like(train.stop),
        order=order,
    )


def owned(tree: Any) -> Any:
    """Copies, so that donation takes nothing from the caller and no buffer stands twice."""
    return jax.tree.map(jnp.copy, tree)
