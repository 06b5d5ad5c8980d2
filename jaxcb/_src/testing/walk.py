"""`drive`: calls the hooks of a callback in the order of a run, so that `print` and pdb work in them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.records import fired
from jaxcb._src.core.actions.utils import fill
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, Chain, chain
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.history.reader import Records, read_records
from jaxcb._src.replay.program import SIMULATED
from jaxcb._src.testing.compare import to_numpy
from jaxcb._src.training.apply import apply
from jaxcb._src.training.learning_rate import LearningRate, checked_rate
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import DataError, check_bool, check_int
from jaxcb._src.utils.names import leaf_name


@dataclasses.dataclass(frozen=True)
class HookCall:
    """One call of a hook.

    Attributes:
        hook: the name of the hook.
        metrics: the metrics that it saw.
        state: the callback's state after it.
        actions: the actions that fired, in order.
    """

    hook: str
    metrics: Metrics
    state: Any
    actions: tuple[Action, ...]


@dataclasses.dataclass(frozen=True)
class Driven:
    """The result of `drive`.

    Attributes:
        moments: the calls of the hooks, in order.
        state: the callback's state at the end; for a chain, by name.
    """

    moments: tuple[HookCall, ...]
    state: Any

    def at(self, hook: str) -> list[HookCall]:
        """Returns the calls of one hook."""
        return [call for call in self.moments if call.hook == hook]


def drive(
    callback: Callback | AsCallback,
    metrics: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    steps_per_epoch: int = 1,
    validate: bool = True,
    learning_rate: float | optax.Schedule = 1.0,
    host_metrics: Mapping[str, Sequence[float]] | None = None,
    show: Callable[[str], Any] | None = print,
) -> Driven:
    """Calls all hooks of a callback in the order of a run, without jit.

    Values are concrete when a hook runs, so `print` and `breakpoint()` work in it. For the same reason a Python `if`
    works here that would fail in a run: `check_callback` finds it.

    Each epoch reports its training values at every one of its steps and as its means, and its `val_` values at the
    validation that closes it. A `Stop` ends the epoch as in a run: it is validated and closed. The learning rate is
    simulated, as in `replay`; there is no model, so log and host actions are returned and not performed.

    Args:
        callback: any callback, or a chain.
        metrics: name -> one value per epoch, or one dict per epoch. None means not reported.
        steps_per_epoch: steps of each epoch.
        validate: whether there are validations.
        learning_rate: the base rate, a number or an optax schedule of the step.
        host_metrics: host metrics, such as `elapsed`: name -> one value per epoch, which every hook sees.
        show: called with a line of text for each hook call in which an action fires or the state changes; None for
            no output.

    Returns:
        The hook calls, and the state at the end.

    Raises:
        TypeError: if `callback` is not a callback.
        DataError: for columns of different lengths, or values that are not numbers.
        MissingMetricError: if a metric does not exist in a hook call; lists those that do.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> driven = jc.testing.drive(jc.EarlyStopping(patience=1), {"val_loss": [0.5, 0.75, 0.1]})
        epoch 1 step 1 on_eval_end: best nan -> 0.5; best_epoch -1 -> 0; seen/step -1 -> 1; seen/epoch -1 -> 0
        epoch 2 step 2 on_eval_end: Stop("val_loss has not improved for 1 reports; best 0.5 at epoch 1");
        wait 0 -> 1; seen/step 1 -> 2; seen/epoch 0 -> 1
        >>> len(driven.at("on_eval_end"))
        2

    Source: none.
    """
    steps = check_int("drive", "steps_per_epoch", steps_per_epoch, least=1)
    check_bool("drive", "validate", validate)
    rate: Any = checked_rate("drive", learning_rate)
    rate = rate if callable(rate) else optax.constant_schedule(rate)
    records, outside = read_records(metrics), dict(host_metrics or {})
    for name, column in outside.items():
        if len(column) != len(records.step):
            raise DataError(
                f"host_metrics: {name!r} has {len(column)} values, expected one per epoch: {len(records.step)}."
            )
    walk = _Walk(callback, records, outside, steps, validate, rate, show)
    with jax.disable_jit():
        walk.run()
    return Driven(tuple(walk.moments), walk.own())


class _Walk:
    """A run that consists only of its hook calls."""

    def __init__(
        self,
        callback: Callback | AsCallback,
        records: Records,
        outside: Mapping[str, Sequence[float]],
        steps: int,
        validate: bool,
        rate: optax.Schedule,
        show: Callable[[str], Any] | None,
    ) -> None:
        self.single = not isinstance(callback, Chain)
        self.chain = chain(callback)
        self.records, self.outside, self.steps, self.show = records, outside, steps, show
        validation = [name for name in records.names if name.startswith("val_")]
        self.validation = validation if validate else []
        self.training = [name for name in records.names if name not in validation]
        self.train = TrainState.create(params={}, opt_state=LearningRate.create(rate), callbacks=self.chain)
        self.states = self.chain.init()
        self.moments: list[HookCall] = []
        self.step = self.epoch = 0
        self.latest: _Reports = dict.fromkeys((*self.training, *self.validation), (math.nan, -1))

    def own(self) -> Any:
        """Returns the state, for a single callback without the chain around it."""
        return self.states[self.chain.names[0]] if self.single else self.states

    def run(self) -> None:
        self._call("on_train_begin", {})
        for epoch in range(len(self.records.step)):
            if self.train.stop:
                break
            self.epoch = epoch
            self._epoch()
        self._call("on_train_end", self.latest, last=True, closes=True)

    def _epoch(self) -> None:
        self._call("on_epoch_begin", {})
        if self.train.stop:  # stopped before its first step
            return
        for _ in range(self.steps):
            self._call("on_batch_begin", {})
            self._call("on_before_update", self._reports(self.training))
            self.step += 1
            self.train = self.train.replace(opt_state=self.train.opt_state.updated())
            self._call("on_batch_end", self._reports(self.training), last=True)
            if self.train.stop:
                break
        if any(self._fresh(name) for name in self.validation):
            self._call("on_eval_begin", self.latest, last=True, closes=True)
            self.latest |= self._reports(self.validation)
            self._call("on_eval_end", self.latest, last=True, closes=True)
        self.latest |= self._reports(self.training)
        self._call("on_epoch_end", self.latest, last=True, closes=True)

    def _reports(self, names: list[str]) -> "_Reports":
        """Returns the values reported now, and the last values of other names."""
        values = self.records.values[self.epoch]
        known = {name: float(value) for name, value in zip(self.records.names, values, strict=True)}
        return {name: (known[name], self.step) if self._fresh(name) else self.latest[name] for name in names}

    def _fresh(self, name: str) -> bool:
        return bool(self.records.fresh[self.epoch, self.records.names.index(name)])

    def _call(self, hook: str, reports: "_Reports", *, last: bool = False, closes: bool = False) -> None:
        """Calls one hook and applies its actions to the stop flag and the learning rate."""
        if hook not in self.chain.hooks():
            return
        rate = self.train.learning_rate
        rates = {
            "learning_rate": rate.applied if last else rate.effective(),
            "base_learning_rate": rate.base(last=last),
        }
        metrics = Metrics(
            {name: value for name, (value, _) in reports.items()} | rates,
            reported={name: jnp.int32(step) for name, (_, step) in reports.items()},
            step=self.step,
            epoch=self.epoch,
            total_steps=len(self.records.step) * self.steps,
            closes_epoch=closes,
            host={name: float(column[self.epoch]) for name, column in self.outside.items()},
        )
        before = self.own()
        self.states, actions = getattr(self.chain, hook)(self.states, metrics)
        self.train = apply(tuple(a for a in actions if isinstance(a, SIMULATED)), self.train)
        happened = fired(actions)
        self.moments.append(HookCall(hook, metrics, self.own(), happened))
        said = [self._action(action) for action in happened] + _changes(before, self.own())
        if said and self.show is not None:
            self.show(f"epoch {self.epoch + 1} step {self.step} {hook}: {'; '.join(said)}")

    def _action(self, action: Action) -> str:
        """Formats an action."""
        text = fill(action, step=self.step, epoch=self.epoch) if action.template else None
        fields = {f.name: getattr(action, f.name) for f in dataclasses.fields(action)}
        shown = [] if text is None else [f'"{text}"']
        for name, value in fields.items():
            if name not in ("when", "owner", "values", "fresh", action.template) and _is_plain(value):
                shown.append(f"{name}={_plain(value)}")
        values = fields.get("values")
        if text is None and isinstance(values, Mapping):
            fresh = fields.get("fresh") or {}
            shown += [f"{n}={_plain(v)}" for n, v in values.items() if fresh.get(n, True) and _is_plain(v)]
        owner = "" if self.single else f"{action.owner}: "
        return f"{owner}{type(action).__name__}({', '.join(shown)})"


_Reports = dict[str, tuple[float, int]]  # name -> its value and the step of its report


def _changes(before: Any, after: Any) -> list[str]:
    """Describes the leaves of a state that have changed."""
    said = []
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        old, new = to_numpy(old), to_numpy(new)
        if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            name = leaf_name(path) or "state"
            said.append(f"{name} {_plain(old)} -> {_plain(new)}" if old.ndim == 0 else f"{name} changed")
    return said


def _is_plain(value: Any) -> bool:
    return value is not None and not callable(value) and (isinstance(value, str) or np.ndim(value) == 0)


def _plain(value: Any) -> str:
    """Formats a string, or a number with few digits."""
    if isinstance(value, str):
        return repr(value)
    value = np.asarray(value).item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
