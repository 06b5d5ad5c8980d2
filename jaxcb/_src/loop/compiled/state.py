"""Loop state, per-dispatch inputs, and the status that is returned to the host."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator
from jaxcb._src.training.learning_rate import with_constant_rates_of
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.pytree import Struct


class LastReported(Struct):
    """The last reported epoch-level values."""

    values: dict[str, Any]  # name -> float32 array, NaN before the first report
    reported: dict[str, Any]  # name -> int32 (), step of the report, -1 if not reported yet


class ProbeValue(Struct):
    """The last value of a probe."""

    values: dict[str, Any]  # name -> float32 array, NaN before the first probe
    step: Any  # int32 (), updates done after the probed step; -1 if not probed yet


class MetricShapes(NamedTuple):
    """The shapes of everything that a run reports.

    Attributes:
        step: name -> shape of the metrics of a step, or a metric with its own merge.
        probes: probe -> name -> shape.
        epoch: name -> shape of the values that epoch hooks see.
        members: size of the member axis; None for a single run.
    """

    step: dict[str, Any]
    probes: dict[str, dict[str, Any]]
    epoch: dict[str, Any]
    members: int | None

    def windows(self) -> dict[str, MetricAccumulator]:
        """Returns empty accumulators: of the step's metrics (key "") and of each probe. Traced."""
        return {name: MetricAccumulator.empty(of, self.members) for name, of in {"": self.step, **self.probes}.items()}

    def readings(self) -> dict[str, ProbeValue]:
        """Returns the values of the probes before the first one. Traced."""
        return {name: ProbeValue(_unknown(of), jnp.full((), -1, jnp.int32)) for name, of in self.probes.items()}

    def latest(self) -> LastReported:
        """Returns the values of the epoch before the first report. Traced."""
        return LastReported(_unknown(self.epoch), {name: jnp.full((), -1, jnp.int32) for name in self.epoch})


def _unknown(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns NaN for each value, as before its first report."""
    return {name: jnp.full(s.shape, jnp.nan, jnp.float32) for name, s in shapes.items()}


class LoopState(Struct):
    """The complete state of a run on the device, between two dispatches.

    Every dispatch donates it, so nothing else may hold its arrays. With members, `train`, `callbacks`, `windows`, the
    values of `readings` and `latest`, and `ended` have a leading member axis; positions are shared and have none.
    """

    train: TrainState
    callbacks: dict[str, Any]
    windows: dict[str, MetricAccumulator]  # accumulators of the step's metrics (key "") and of each probe
    readings: dict[str, ProbeValue]  # by probe
    latest: LastReported
    step: Any  # int32 (), updates done
    epoch: Any  # int32 (), from 0
    began: Any  # int32 (), updates done when this epoch began
    evaluated: Any  # int32 (), step of the last validation
    seq: Any  # int32 (), hook calls recorded so far
    opened: Any  # bool (), whether `on_epoch_begin` has run for this epoch
    yielded: Any  # bool (), whether a host action is pending
    ended: Any  # bool (), or (members,): whether the run has stopped and closed its epoch
    member: Any  # int32 (members,), the member in each row; None for a single run
    order: Any  # int32 (rows,), order of resident rows in this epoch; None for other data or without shuffling

    @property
    def cursor(self) -> Any:
        """Steps done in this epoch, int32 ()."""
        return self.step - self.began


class DispatchParams(NamedTuple):
    """The integer parameters of a dispatch, sent as one vector.

    Numbers on the host, and int32 () once a program has read them. No program computes a number from two of them alone:
    XLA would move that out of all loops, as a kernel.
    """

    first_epoch: Any  # first epoch that the data belongs to
    past_epoch: Any  # the epoch after its last one; if there are several, all are complete and of one length
    stride: Any  # batches of the data in such an epoch; 0 for data that belongs to any epoch
    base: Any  # cursor of the first batch
    size: Any  # number of batches
    epoch_len: Any  # steps of such an epoch, UNBOUNDED if not yet known
    length: Any  # limit of steps for this dispatch
    end_step: Any
    end_epoch: Any
    total_steps: Any  # for `Metrics`; -1 if unknown

    def batch_index(self, carry: LoopState) -> Any:
        """Returns the index of the next batch in the data, int32 (). Only valid for data of the current epoch."""
        return carry.cursor - self.base + (carry.epoch - self.first_epoch) * self.stride

    def packed(self, host: np.ndarray) -> np.ndarray:
        """Returns one int32 vector for a single transfer: parameters, then the bits of the float32 host metrics."""
        return np.concatenate([np.asarray(self, np.int32), host.view(np.int32)])


class PackedParams(NamedTuple):
    """`DispatchParams` inside a program: reads each parameter from the vector at the place of its use.

    Slicing a parameter out of the vector before a loop would add a kernel for each of them.
    """

    vector: Any

    def __getattr__(self, name: str) -> Any:
        if name not in DispatchParams._fields:
            raise AttributeError(name)
        # indexing by `[]` would add operations that wrap negative indices
        return jax.lax.index_in_dim(self.vector, DispatchParams._fields.index(name), keepdims=False)

    def batch_index(self, carry: LoopState) -> Any:
        """Returns `DispatchParams.batch_index`."""
        return DispatchParams.batch_index(self, carry)  # pyright: ignore[reportArgumentType]

    def read(self) -> DispatchParams:
        """Returns all parameters, read at once: to trace this takes as long as to read one. For use at this place."""
        return _read(self.vector)


@jax.jit
def _read(vector: Any) -> DispatchParams:
    count = len(DispatchParams._fields)
    sizes = [1] * count + [vector.shape[0] - count] * (vector.shape[0] > count)
    return DispatchParams(*(jax.lax.squeeze(x, (0,)) for x in jax.lax.split(vector, sizes)[:count]))


class Inputs(Struct):
    """The inputs of a dispatch that are not donated."""

    settings: Any  # numeric fields of the callbacks, as leaves of the chain
    data: Any  # resident rows, or the batches of this dispatch
    key: Any  # PRNG key of the data order; one per member if their orders differ
    val: Any  # prefix -> resident validation rows
    numbers: Any  # packed parameters and host metrics; `PackedParams` once unpacked
    bits: Any = None  # int32 bits of the host metrics, once unpacked

    def unpacked(self) -> "Inputs":
        """Splits the packed vector. Traced."""
        return self.replace(numbers=PackedParams(self.numbers), bits=self.numbers[len(DispatchParams._fields) :])

    def read(self) -> "Inputs":
        """Returns the inputs with their parameters read, for several uses at one place of a program. Traced."""
        return self.replace(numbers=self.numbers.read())

    def host_bits(self) -> np.ndarray:
        """Returns the host metrics from the packed vector, float32. Runs on the host."""
        return self.numbers[len(DispatchParams._fields) :].view(np.float32)

    def host(self, names: Sequence[str], read: Container[str]) -> dict[str, Any]:
        """Returns the host metrics, name -> float32 (). Traced.

        Args:
            names: the names of all host metrics.
            read: the names that a hook reads; the others are zero.
        """
        found = {}
        for i, name in enumerate(names):
            found[name] = jnp.zeros((), jnp.float32)
            if name in read:
                bits = jax.lax.index_in_dim(self.bits, i, keepdims=False)
                found[name] = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return found


class Status(Struct):
    """The state of a run that the host reads after each dispatch."""

    step: Any
    epoch: Any
    cursor: Any
    evaluated: Any
    stop: Any  # whether every member has stopped
    alive: Any  # bool (members,), members whose last epoch is still open; None for a single run
    yielded: Any
    over: Any  # whether the last epoch is closed
    awaits: Any  # whether a validation by the host is due
    window: Any  # accumulator of the epoch so far; its means, name -> value, once unpacked
    controls: dict[str, Any]  # the train state's
    wasted: Any = 0  # masked steps of the dispatch's blocks, int32 ()


def initial_state(train: TrainState, callbacks: Any, metrics: MetricShapes, order: Any) -> LoopState:
    """Returns the loop state before the first step."""
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return LoopState(
        train=train,
        callbacks=callbacks,
        windows=metrics.windows(),
        readings=metrics.readings(),
        latest=metrics.latest(),
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


def named_leaves(carry: LoopState) -> dict[str, Any]:
    """Returns the leaves by the names used in checkpoints.

    Leaves out `order`, which is a function of key and epoch, and the frozen parameters, which never change.
    """
    leaves = jax.tree_util.tree_leaves_with_path(without_frozen(carry).replace(order=None))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def with_leaves(carry: LoopState, leaves: Mapping[str, Any]) -> LoopState:
    """Returns the loop state with the named leaves replaced by those of a checkpoint."""
    old, tree = jax.tree_util.tree_flatten_with_path(carry)
    new = jax.tree.unflatten(tree, [leaves.get(jax.tree_util.keystr(path), leaf) for path, leaf in old])
    opt_state = with_constant_rates_of(new.train.opt_state, carry.train.opt_state)
    return new.replace(train=new.train.replace(opt_state=opt_state))


def clear_stop(carry: LoopState) -> LoopState:
    """Returns the loop state of a stopped run so that training can continue."""
    train = carry.train.replace(stop=jnp.zeros_like(carry.train.stop))
    return carry.replace(train=train, ended=jnp.zeros_like(carry.ended), yielded=jnp.zeros_like(carry.yielded))


def without_frozen(carry: LoopState) -> LoopState:
    """Returns the loop state without the frozen parameters of its train state."""
    return carry.replace(train=carry.train.replace(frozen=None))


def owned(carry: LoopState, copy: Callable[[Any], Any] = jnp.copy) -> LoopState:
    """Returns the loop state with copies of all arrays that programs donate.

    Donation then cannot invalidate the caller's arrays, and no buffer is donated twice.

    Args:
        carry: the loop state.
        copy: copies an array; `jnp.copy` inside of a program.
    """
    new: LoopState = jax.tree.map(copy, without_frozen(carry))
    return new.replace(train=new.train.replace(frozen=carry.train.frozen))
