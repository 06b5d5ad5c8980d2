"""The types that travel through compiled programs: what is carried, what is given, what is told."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.data.feed import BatchLayout, rows_in
from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.pytree import Struct


class LastReported(Struct):
    """The epoch-level values last reported."""

    values: dict[str, Any]  # name -> float32 array, NaN before the first report
    reported: dict[str, Any]  # name -> int32 (), the step of the report, -1 for never


class ProbeValue(Struct):
    """What a probe has last seen."""

    values: dict[str, Any]  # metric's name -> float32 array, NaN before the first look
    step: Any  # int32 (), updates done when the step that it looked into was through; -1 for never


class InitialBuffers(NamedTuple):
    """What a run has measured before its first step: nothing, in the form of what is to come."""

    windows: dict[str, MetricAccumulator]
    readings: dict[str, ProbeValue]
    latest: LastReported


class LoopState(Struct):
    """A run between two dispatches. Donated to each program, and so never held by anyone else.

    With members, `train`, `callbacks`, `windows`, the values of `readings` and `latest`, and `ended` have a leading
    member axis; the positions belong to the loop and have none.
    """

    train: TrainState
    callbacks: dict[str, Any]
    windows: dict[str, MetricAccumulator]  # the step's own values under "", and those of each probe
    readings: dict[str, ProbeValue]  # by probe
    latest: LastReported
    step: Any  # int32 (), updates done
    epoch: Any  # int32 (), from 0
    began: Any  # int32 (), updates done when this epoch began
    evaluated: Any  # int32 (), step of the last validation
    seq: Any  # int32 (), moments recorded so far
    opened: Any  # bool (), whether this epoch has begun
    yielded: Any  # bool (), whether a host action waits
    ended: Any  # bool (), whether a stop has closed its epoch
    member: Any  # int32 (members,), the number of each row; None in a single run
    order: Any  # int32 (rows,), this epoch's order of resident rows; None elsewhere

    @property
    def cursor(self) -> Any:
        """Steps done in this epoch, int32 ()."""
        return self.step - self.began


class DispatchParams(NamedTuple):
    """The integers that a dispatch is given, sent as one vector."""

    data_epoch: int  # the epoch that the data belongs to, or its first one; -1 for any
    epochs: int  # how many it holds; more than one are whole ones, of one length
    base: int  # cursor of its first batch
    size: int  # batches in it
    epoch_len: int  # steps of such an epoch, FOREVER where not yet known
    length: int  # steps that this dispatch may do
    end_step: int
    end_epoch: int
    total_steps: int  # for `Metrics`, -1 where not known

    def packed(self, host: np.ndarray) -> np.ndarray:
        """One int32 vector with the host metrics, float32, behind the numbers: a dispatch transfers once."""
        return np.concatenate([np.asarray(self, np.int32), host.view(np.int32)])


class PackedParams(NamedTuple):
    """`DispatchParams` inside a program: the vector that was sent, of which each is read where it is used.

    A number that is taken out of it before a loop would be a kernel of its own.
    """

    vector: Any

    def __getattr__(self, name: str) -> Any:
        if name not in DispatchParams._fields:
            raise AttributeError(name)
        return self.vector[DispatchParams._fields.index(name)]

    def batch_index(self, carry: LoopState) -> Any:
        """Which batch of the data is next, int32 (); says nothing of another epoch than the data's."""
        epochs = jnp.where(self.data_epoch < 0, 0, carry.epoch - self.data_epoch)
        return carry.cursor - self.base + epochs * self.epoch_len


class Inputs(Struct):
    """What a dispatch is given and does not consume."""

    settings: Any  # the callbacks' numbers as arrays, in the order of their tree
    data: Any  # resident rows, or this dispatch's batches
    key: Any  # PRNG key of the data's order; one a member where members see different orders
    val: Any  # resident validation rows by set
    numbers: Any  # one vector while they travel, with the bits of the host metrics behind them; then `Sent`
    bits: Any = None  # of the host metrics, once unpacked

    def unpacked(self) -> "Inputs":
        """The same with the numbers under their names; traced, once a program."""
        return self.replace(numbers=PackedParams(self.numbers), bits=self.numbers[len(DispatchParams._fields) :])

    def host_bits(self) -> np.ndarray:
        """The host metrics as the host has packed them, float32."""
        return self.numbers[len(DispatchParams._fields) :].view(np.float32)

    def host(self, names: Sequence[str]) -> dict[str, Any]:
        """The host metrics, traced: name -> float32 ()."""
        return {name: jax.lax.bitcast_convert_type(self.bits[i], jnp.float32) for i, name in enumerate(names)}


class Status(Struct):
    """What each dispatch tells the host."""

    step: Any
    epoch: Any
    cursor: Any
    evaluated: Any
    stop: Any  # whether all have asked for the end
    alive: Any  # members whose last epoch is not closed yet, bool (members,); None in a single run
    yielded: Any
    over: Any  # whether the run has closed its last epoch
    awaits: Any  # whether a validation by the host is due
    window: dict[str, Any]  # means of the window so far
    controls: dict[str, Any]  # the train state's


def initial_state(train: TrainState, callbacks: Any, empty: InitialBuffers, order: Any) -> LoopState:
    """The carry before the first step."""
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return LoopState(
        train=train,
        callbacks=callbacks,
        windows=empty.windows,
        readings=empty.readings,
        latest=empty.latest,
        step=zero,
        epoch=zero,
        began=zero,
        evaluated=zero,
        seq=zero,
        opened=no,
        yielded=no,
        ended=jnp.zeros_like(train.stop),
        member=jnp.arange(train.stop.size, dtype=jnp.int32) if train.stop.ndim else None,
        order=order,
    )


def fetch_batch(layout: BatchLayout, inputs: Inputs, carry: LoopState, *, remainder: bool = False) -> tuple[Any, int]:
    """Returns the next batch and its rows; traced."""
    data = inputs.data
    if layout.kind == "single":
        return data, rows_in(data)
    if layout.kind == "stacked":
        index = inputs.numbers.batch_index(carry)
        batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), data)
        return batch, rows_in(batch)
    rows = layout.remainder if remainder else layout.batch_size
    start = carry.cursor * layout.batch_size
    if carry.order is None:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), data), rows
    index = jax.lax.dynamic_slice_in_dim(carry.order, start, rows, axis=-1)
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data), rows


def named_leaves(carry: LoopState) -> dict[str, Any]:
    """The leaves by the names under which checkpoints keep them; the order of the rows is a function of the key."""
    leaves = jax.tree_util.tree_leaves_with_path(carry.replace(order=None))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def with_leaves(carry: LoopState, leaves: Mapping[str, Any]) -> LoopState:
    """Returns the carry with some leaves replaced, by name."""
    old, tree = jax.tree_util.tree_flatten_with_path(carry)
    return jax.tree.unflatten(tree, [leaves.get(jax.tree_util.keystr(path), leaf) for path, leaf in old])


def clear_stop(carry: LoopState) -> LoopState:
    """Returns the carry of a run that has stopped, as one that may go on."""
    train = carry.train.replace(stop=jnp.zeros_like(carry.train.stop))
    return carry.replace(train=train, ended=jnp.zeros_like(carry.ended), yielded=jnp.zeros_like(carry.yielded))


def copy_arrays(tree: Any) -> Any:
    """Copies, so that donation takes nothing from the caller and no buffer stands twice."""
    return jax.tree.map(jnp.copy, tree)
