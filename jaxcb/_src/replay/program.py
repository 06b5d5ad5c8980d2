"""The device program of a replay: `on_train_begin`, one scan over the records, `on_train_end`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.actions.base import Action, ControlAction
from jaxcb._src.core.actions.control import Average, ScaleLearningRate, SetLearningRate, Snapshot, Stop, WeightAction
from jaxcb._src.core.chain import Chain
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.rates import Rates, base_rates, rate_names
from jaxcb._src.training.apply import apply
from jaxcb._src.training.learning_rate import LearningRate
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.kept_programs import KeptFunction, kept_program
from jaxcb._src.utils.names import rate_metric
from jaxcb._src.utils.program_key import key_of, tree_key
from jaxcb._src.utils.pytree import select
from jaxcb._src.utils.xla import fast_compile_options

SIMULATED = (Stop, ScaleLearningRate, SetLearningRate, WeightAction)  # actions that can affect later decisions


class Rows(NamedTuple):
    """The inputs of the scan at each record; None for a number that is equal at all records."""

    values: Any  # float32 (names,), in `on_epoch_end`
    reported: Any  # int32 (names,)
    eval_values: Any  # float32 (names,), in `on_eval_end`: without those reported only at the end of the epoch
    eval_reported: Any  # int32 (names,)
    past_values: Any  # float32 (names,), of the record before
    past_reported: Any  # int32 (names,)
    before: Any  # int32 (), updates done at the record before
    step: Any  # int32 ()
    epoch: Any  # int32 ()
    opens: Any  # bool (), whether it is the first record of an epoch
    evaluates: Any  # bool (), whether a validation ends here
    closes: Any  # bool (), whether it ends an epoch
    first_base: Any  # a float32 () for each learning rate: its base rate of the first update since the record before
    last_base: Any  # that of the last update before this record
    next_base: Any  # that of the first update after this record


class ReplaySpec(NamedTuple):
    """The static properties of the records that a program is compiled for.

    Attributes:
        names: the names of the metrics.
        old: pairs of a hook and the names that no record reports in it.
        rates: the names of the learning rates; the only one has the name "".
        same: the numbers that are equal at all records, by their names in `Rows`; constants of the program.
    """

    names: tuple[str, ...]
    old: frozenset[tuple[str, frozenset[str]]]
    rates: tuple[str, ...]
    same: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, records: Records, learning_rate: Rates | None) -> "ReplaySpec":
        """Returns the specification for these records and base rates."""
        return cls(records.names, frozenset(records.old.items()), rate_names(records, learning_rate))


def program_of(records: Records, learning_rate: Rates | None) -> tuple[ReplaySpec, Rows]:
    """Returns the specification of the program for the given records, and its inputs.

    Args:
        records: the recorded run.
        learning_rate: the base rates, as in `base_rates`.

    Raises:
        ValueError: for the name of a rate that was not recorded.
    """
    rows = to_rows(records, learning_rate)
    same = {
        name: jax.tree.map(lambda x: x[0], numbers)
        for name, numbers in rows._asdict().items()
        if all(x.ndim == 1 and (x == x[0]).all() for x in jax.tree.leaves(numbers))
    }
    spec = ReplaySpec.of(records, learning_rate)._replace(same=tuple(same.items()))
    return spec, rows._replace(**dict.fromkeys(same))


def replay_function(
    name: str,
    fn: Callable[[Chain, Rows, ReplaySpec], Any],
    callbacks: Chain,
    form: ReplaySpec,
    device: Any,
    axes: Sequence[int | None] = (),
) -> Callable[[Rows], Any]:
    """Returns a compiled function of rows, which is kept for later replays of equal callbacks.

    Args:
        name: of the function.
        fn: the function.
        callbacks: the chain; its numbers are arguments of the program.
        form: the specification of the records.
        device: where to run.
        axes: for each number of the callbacks 0 if it has an axis of configurations to map over, else None; empty
            for one configuration.
    """
    kept = kept_program(lambda: (name, tree_key(callbacks), key_of((form, axes)), device))
    leaves, tree = jax.tree.flatten(callbacks)

    def one(leaves: list[Any], rows: Rows) -> Any:
        return fn(jax.tree.unflatten(tree, leaves), rows, form)

    function = KeptFunction(
        name,
        jax.vmap(one, in_axes=(list(axes), None)) if axes else one,
        kept,
        options=lambda: {"compiler_options": fast_compile_options(device.platform)},
        devices=device,
    )
    return lambda rows: function(leaves, rows)


def to_rows(records: Records, learning_rate: Rates | None) -> Rows:
    """Converts records to inputs of the scan; `learning_rate` as in `base_rates`."""
    closes, fresh = records.closes, records.fresh
    validation = np.asarray([name in records.validated for name in records.names], bool)
    before = _shifted(records.step, 0)
    first, last, following = zip(*base_rates(records, before, learning_rate), strict=True)
    past_values, past_reported = _shifted(records.values, np.nan), _shifted(records.reported, -1)
    late = closes[:, None] & ~validation
    return Rows(
        values=records.values,
        reported=records.reported,
        eval_values=np.where(late, past_values, records.values),
        eval_reported=np.where(late, past_reported, records.reported),
        past_values=past_values,
        past_reported=past_reported,
        before=before,
        step=records.step,
        epoch=records.epoch,
        opens=_shifted(closes, True),
        evaluates=~closes | (fresh & validation).any(axis=1),
        closes=closes,
        first_base=first,
        last_base=last,
        next_base=following,
    )


def _shifted(column: np.ndarray, first: Any) -> np.ndarray:
    """Shifts a column by one record, with `first` as the first entry."""
    return np.concatenate([np.full_like(column[:1], first), column[:-1]])


class Replayed(NamedTuple):
    """The result of the program."""

    begin: Any  # the actions of on_train_begin
    actions: Any  # the actions of each record, stacked
    end: Any  # the actions of on_train_end
    scale: Any  # float32 (records, rates), the callbacks' factors after each record
    stopped: Any  # bool (records,), whether the run has stopped by then
    states: Any  # the callbacks' states at the end
    each: Any  # the callbacks' states after each record, stacked
    controls: Any  # float32 (records,), equal for equal control actions other than a stop and a scaled rate


class _Carry(NamedTuple):
    train: TrainState  # without parameters; its optimizer state is only the learning rates
    states: Any
    ran: Any  # int32 (), records before the stop

    @property
    def rates(self) -> tuple[LearningRate, ...]:
        return self.train.opt_state

    def with_rates(self, rates: Iterable[LearningRate]) -> "_Carry":
        return self._replace(train=self.train.replace(opt_state=tuple(rates)))

    def at(self, bases: Iterable[Any]) -> "_Carry":
        """Returns the carry with other base rates."""
        return self.with_rates(r.replace(count=base) for r, base in zip(self.rates, bases, strict=True))


def _recorded(base: Any) -> Any:
    """The schedule of a replay: its `count` is not a number of updates, but the base rate itself."""
    return base


def run(callbacks: Chain, rows: Rows, form: ReplaySpec) -> Replayed:
    """Runs the callbacks over all records; each hook is traced once.

    Args:
        callbacks: the chain, with its numbers as arrays.
        rows: the records.
        form: the specification of the records.

    Returns:
        A `Replayed`; actions keep their `when`.
    """
    names, old, same = form.names, dict(form.old), dict(form.same)

    def at(index: Any) -> Rows:
        return jax.tree.map(lambda x: x[index], rows)._replace(**same)

    hooks, total = callbacks.hooks(), at(-1).step

    def run_hook(hook: str, carry: _Carry, seen: Metrics, happens: Any) -> tuple[_Carry, tuple[Action, ...]]:
        if hook not in hooks:
            return carry, ()
        states, actions = getattr(callbacks, hook)(carry.states, seen.replace(old=old.get(hook, frozenset())))
        actions = tuple(a.replace(when=a.when & happens) for a in actions)
        train = apply(tuple(a for a in actions if isinstance(a, SIMULATED)), carry.train)
        return carry._replace(train=train, states=select(happens, states, carry.states)), actions

    def shown(rates: Iterable[LearningRate], effective: Callable[[LearningRate], Any]) -> dict[str, Any]:
        found = {}
        for rate in rates:
            found[rate_metric("learning_rate", rate.name)] = effective(rate)
            found[rate_metric("base_learning_rate", rate.name)] = rate.base()
        return found

    def begins(rates: tuple[LearningRate, ...], step: Any, epoch: Any) -> Metrics:
        rates_now = shown(rates, LearningRate.effective)
        return Metrics(rates_now, step=step, epoch=epoch, total_steps=total, closes_epoch=False)

    def ends(carry: _Carry, row: Rows, values: Array, reported: Array, closes: Any) -> Metrics:
        rates = shown(carry.at(row.last_base).rates, lambda rate: rate.applied)
        return Metrics(
            {name: values[i] for i, name in enumerate(names)} | rates,
            reported={name: reported[i] for i, name in enumerate(names)},
            step=row.step,
            epoch=row.epoch,
            total_steps=total,
            closes_epoch=closes,
        )

    def record(carry: _Carry, row: Rows) -> tuple[_Carry, Any]:
        row = row._replace(**same)
        carry = carry.at(row.first_base)
        seen = begins(carry.rates, row.before, row.epoch)
        carry, fired = run_hook("on_epoch_begin", carry, seen, row.opens & ~carry.train.stop)
        alive = ~carry.train.stop  # a stop in on_epoch_begin takes effect before the first step
        carry = carry.at(row.last_base)
        carry = carry.with_rates(
            rate.replace(applied=jnp.where(alive, rate.effective(), rate.applied)) for rate in carry.rates
        )
        carry = carry.at(row.next_base)
        validates = row.evaluates & alive
        seen = ends(carry, row, row.past_values, row.past_reported, row.closes)
        carry, more = run_hook("on_eval_begin", carry, seen, validates)
        fired += more
        seen = ends(carry, row, row.eval_values, row.eval_reported, row.closes)
        carry, more = run_hook("on_eval_end", carry, seen, validates)
        fired += more
        seen = ends(carry, row, row.values, row.reported, True)
        carry, more = run_hook("on_epoch_end", carry, seen, row.closes & alive)
        carry = carry._replace(ran=carry.ran + alive.astype(jnp.int32))
        scales = jnp.stack([rate.scale for rate in carry.rates])
        return carry, (fired + more, scales, carry.train.stop, carry.states, _controls(fired + more))

    first = tuple(LearningRate.create(_recorded, name) for name in form.rates)
    train = TrainState.create(params={}, opt_state=first, callbacks=callbacks)
    carry = _Carry(train, callbacks.init(), jnp.zeros((), jnp.int32)).at(at(0).first_base)
    always = jnp.ones((), bool)
    carry, begin = run_hook("on_train_begin", carry, begins(carry.rates, 0, at(0).epoch), always)
    carry, (actions, scale, stopped, each, controls) = jax.lax.scan(record, carry, rows)
    row, ran = at(jnp.maximum(carry.ran - 1, 0)), carry.ran > 0
    values, reported = jnp.where(ran, row.values, jnp.nan), jnp.where(ran, row.reported, -1)
    seen = ends(carry, row._replace(step=jnp.where(ran, row.step, 0)), values, reported, True)
    carry, end = run_hook("on_train_end", carry, seen, always)
    return Replayed(begin, actions, end, scale, stopped, carry.states, each, controls)


# seen in the flag and the scale; a copy of weights changes nothing
_NO_OTHERS = (Stop, ScaleLearningRate, Snapshot, Average)


def _controls(actions: Sequence[Action]) -> Array:
    """Returns a number that differs, but for coincidence, where other control actions fire or have other values."""
    total = jnp.zeros((), jnp.float32)
    for i, action in enumerate(a for a in actions if isinstance(a, ControlAction) and not isinstance(a, _NO_OTHERS)):
        payload = [jnp.sum(jnp.asarray(x, jnp.float32)) for x in jax.tree.leaves(action.replace(when=None))]
        total = total + jnp.where(jnp.any(action.when), i + 1 + sum(payload), 0.0)
    return total
