"""The moments of a run as pure functions of the carry; both executors are made of these."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._actions import Action, HostAction, ScaleLearningRate, ScaleUpdates, SkipUpdate
from jaxcb._callback import HOOKS
from jaxcb._chain import Chain
from jaxcb._form import conform
from jaxcb._metrics import Metrics
from jaxcb._schedules import learning_rates
from jaxcb._step import Step
from jaxcb._struct import select
from jaxcb._train_state import TrainState, apply, check_actions
from jaxcb.loop._carry import Carry, Inputs, Latest, Status
from jaxcb.loop._layout import Layout, rows_in
from jaxcb.loop._positions import Cadence, Positions
from jaxcb.loop._rings import Entry, Rings, any_fires
from jaxcb.loop._window import Window

RESERVED = ("learning_rate", "base_learning_rate", "lr_scale", "epoch", "step")


class EvalSet(NamedTuple):
    """One validation set inside the program: rows that stay on the device."""

    prefix: str  # of its metrics' names, "val_" or "val_wiki_"
    rows: int
    batch_size: int


class Program:
    """Traced pieces of one run. Each hook and each step function is traced once a batch shape.

    Args:
        step: `(train_state, batch) -> (train_state, metrics)`; a `Step` also runs `on_before_update`.
        eval_step: `(train_state, batch) -> metrics`, or None.
        chain: all callbacks.
        members: the size of the member axis, None for a single run.
        evals: resident validation sets; those that the host feeds are in `host_prefixes`.
        host_prefixes: prefixes of the validation sets that the host feeds.
        cadence: when to validate.
        layout: how batches are found.
        batch_axis: 0 where each member sees its own batches, None where all see the same.
        chain_axes: which of the callbacks' numbers have a member axis, as `vmap`'s `in_axes`.
    """

    def __init__(
        self,
        *,
        step: Callable[..., Any],
        eval_step: Callable[..., Any] | None,
        chain: Chain,
        members: int | None,
        evals: Sequence[EvalSet],
        host_prefixes: Sequence[str],
        cadence: Cadence,
        layout: Layout,
        batch_axis: int | None = None,
        chain_axes: Any = None,
    ) -> None:
        self.members = members
        self.evals = tuple(evals)
        self.host_eval = bool(host_prefixes)
        self.prefixes = tuple(e.prefix for e in evals) + tuple(host_prefixes)
        self.at = Positions(cadence, bool(self.prefixes))
        self.layout = layout
        self.batch_axis = batch_axis
        self.hooks = chain.hooks()
        self._halves = isinstance(step, Step) and "on_before_update" in self.hooks
        over_members = (0, batch_axis)
        self._step = self._compiled(step, over_members)
        if isinstance(step, Step) and self._halves:
            self._gradients = self._compiled(step.gradients, over_members)
            self._update = self._compiled(step.update, (0, 0, 0))
        self._eval = self._compiled(eval_step, (0, None)) if eval_step is not None else None
        self._chain = chain
        tree = jax.tree.structure(chain)
        axes = None if chain_axes is None else tree.flatten_up_to(chain_axes)
        seen = Metrics._make(values=0, step=None, epoch=None, total_steps=None, reported=None, closes_epoch=None)
        self._hook = {hook: self._compiled(_hook(hook, tree), (axes, 0, seen)) for hook in self.hooks}
        self.rings = Rings({})

    def _compiled(self, fn: Callable[..., Any], in_axes: Any) -> Any:
        """One trace a shape, wherever it is called from; over members where there are some."""
        if fn.__hash__ is None:  # jax.jit wants a key; a partial is one by its identity
            fn = functools.partial(fn)
        return jax.jit(jax.vmap(fn, in_axes=in_axes) if self.members is not None else fn)

    # What is known before the first step

    def prepare(
        self, train: TrainState, callbacks: Any, settings: Any, batch: Any, val: Mapping[str, Any], host: Any
    ) -> tuple[Window, Latest]:
        """Learns all shapes by evaluating shapes alone, and checks what can be checked.

        Args:
            train: the train state.
            callbacks: the callbacks' states.
            settings: the callbacks' numbers, as in `Inputs`.
            batch: a batch of training data, or its shapes.
            val: prefix -> a batch of each validation set, or its shapes.
            host: host metrics.

        Returns:
            The empty window and the epoch-level values before the first report.
        """
        gradients = jax.eval_shape(self._gradients, train, batch) if self._halves else None
        if gradients is not None:
            values = gradients.values
        else:
            new, values = _pair(jax.eval_shape(self._step, train, batch))
            _check_names("train_step", values)
            self._check_state(new, train)
        names = dict(values)
        for prefix, shapes in val.items():
            assert self._eval is not None
            found = jax.eval_shape(self._eval, train, shapes)
            _check_names("eval_step", found)
            own = {prefix + name: value for name, value in found.items()}
            for name in sorted(own.keys() & names):
                raise ValueError(f"{name!r} is the name of a validation's metric, and of another one; rename that one.")
            names |= own
        taken = sorted({*RESERVED, *host} & set(names))
        if taken:
            raise ValueError(f"the metric {taken[0]!r} is one that jaxcb reports by itself; give yours another name.")
        self.train_names, self.val_names = tuple(values), tuple(n for n in names if n not in values)
        window = self._window(values)
        latest = Latest(
            {n: jnp.full(v.shape, jnp.nan, jnp.float32) for n, v in names.items()},
            {n: jnp.full((), -1, jnp.int32) for n in names},
        )
        self._prepare_hooks(train, callbacks, settings, values, latest, host)
        if gradients is not None:
            new = jax.eval_shape(self._update, train, gradients, self.actions["on_before_update"])
            self._check_state(new, train)
        return window, latest

    def jaxpr(self, train: TrainState, batch: Any) -> Any:
        """The traced step; the trace is the one that the programs use."""
        step = self._gradients if self._halves else self._step
        return step.trace(train, batch).jaxpr

    def _window(self, values: Mapping[str, Any]) -> Window:
        """An empty window; a population's counts rows a member, since each stops alone."""
        window = Window.empty(dict(values))
        if self.members is None:
            return window
        return jax.tree.map(lambda x: x if x.ndim else jnp.zeros((self.members,), x.dtype), window)

    def _check_state(self, new: Any, train: TrainState) -> None:
        if not isinstance(new, TrainState):
            raise TypeError(
                f"train_step returned {type(new).__name__} first, expected the new TrainState: `return state, metrics`."
            )
        jax.eval_shape(lambda n: conform(n, train, "train_step: the train state", error=ValueError), new)

    def _prepare_hooks(
        self, train: TrainState, callbacks: Any, settings: Any, values: Any, latest: Latest, host: Any
    ) -> None:
        shapes: dict[str, tuple[Any, ...]] = {}
        for hook in sorted(self.hooks, key=HOOKS.index):
            if hook in ("on_eval_begin", "on_eval_end") and not self.prefixes:
                continue
            if hook == "on_before_update" and not self._halves:
                raise ValueError(
                    f"{self._owners(hook)} needs the gradients before the update (on_before_update), but this "
                    "train_step does not hand them out. Use fit, or make the step with jc.Step(loss_fn)."
                )
            given = {"on_batch_end": values, "on_before_update": values}.get(hook, {})
            if hook in ("on_eval_begin", "on_eval_end", "on_epoch_end", "on_train_end"):
                given = latest.values

            def moment(
                callbacks: Any, train: TrainState, given: Any, settings: Any, host: Any, hook: str = hook
            ) -> Any:
                zero = jnp.zeros((), jnp.int32)
                metrics = self._metrics(given, train, host, step=zero, epoch=zero, total=zero, last=False)
                return self._hook[hook](settings, callbacks, metrics)

            _, actions = jax.eval_shape(moment, callbacks, train, given, settings, host)
            check_actions(actions, train)
            if hook != "on_before_update":
                lost = [a for a in actions if isinstance(a, SkipUpdate | ScaleUpdates)]
                if lost:
                    raise ValueError(
                        f"{lost[0].owner}: {type(lost[0]).__name__} acts in on_before_update, not in {hook}."
                    )
            shapes[hook] = actions
        self.actions = shapes
        scaled = any(isinstance(a, ScaleLearningRate) for actions in shapes.values() for a in actions)
        self.scales_ready_made = scaled and any(r.schedule is None for r in learning_rates(train.opt_state))
        self.rings = Rings(shapes)

    def _owners(self, hook: str) -> str:
        return ", ".join(name for name, callback in self._chain.members() if hook in callback.hooks())

    def yields_at(self, *hooks: str) -> bool:
        """Whether a host action is possible in any of these hooks."""
        return any(isinstance(a, HostAction) for hook in hooks for a in self.actions.get(hook, ()))

    # Metrics of a moment

    def _metrics(
        self,
        values: Mapping[str, Any],
        train: TrainState,
        host: Mapping[str, Any],
        *,
        step: Any,
        epoch: Any,
        total: Any,
        last: bool,
        reported: Mapping[str, Any] | None = None,
        closes: Any = False,
    ) -> Metrics:
        rates: dict[str, Any] = {}
        for rate in learning_rates(train.opt_state)[:1]:
            if rate.schedule is None:
                rates["lr_scale"] = rate.scale
            else:
                rates["learning_rate"] = rate.applied if last else rate.effective()
                rates["base_learning_rate"] = rate.base(last=last)
        own = dict(values)
        if self.members is not None:
            host = {k: jnp.broadcast_to(v, (self.members,)) for k, v in host.items()}
        values = {**own, **rates, **host}
        at = dict.fromkeys(values, step) | dict(reported or {})
        return Metrics._make(
            values=values, step=step, epoch=epoch, total_steps=total, reported=at, closes_epoch=jnp.asarray(closes)
        )

    def metrics(self, inputs: Inputs, carry: Carry, values: Mapping[str, Any], *, last: bool, **more: Any) -> Metrics:
        """The metrics of a moment: `values`, the learning rate (in force, or of the last update), host metrics."""
        return self._metrics(
            values,
            carry.train,
            inputs.host,
            step=carry.step,
            epoch=carry.epoch,
            total=inputs.n().total_steps,
            last=last,
            **more,
        )

    # One moment

    def moment(
        self,
        hook: str,
        inputs: Inputs,
        carry: Carry,
        rings: Any,
        metrics: Metrics,
        *,
        alive: Any = None,
        ok: Any = True,
    ) -> tuple[Carry, Any, tuple[Action, ...]]:
        """Runs a hook: new states, control actions applied, the rest recorded.

        Args:
            hook: its name.
            inputs: the dispatch's inputs.
            carry: the run.
            rings: the records so far.
            metrics: what the hook sees.
            alive: members that still act, bool (members,); None where all do.
            ok: whether the moment happens at all, bool (); what it did to the carry is for the caller to drop.
        """
        if hook not in self.actions:
            return carry, rings, ()
        states, actions = self._hook[hook](inputs.settings, carry.callbacks, metrics)
        if alive is not None:
            states = select(alive, states, carry.callbacks)
            actions = tuple(a.replace(when=a.when & alive) for a in actions)
        waits = any_fires(tuple(a for a in actions if isinstance(a, HostAction)))
        at = Entry(carry.seq, carry.step, carry.epoch, carry.cursor)
        new = carry.replace(
            train=apply(actions, carry.train),
            callbacks=states,
            yielded=carry.yielded | waits,
            seq=carry.seq + 1,
        )
        return new, self.rings.append(rings, hook, at, actions, ok), actions

    def boundary_waits(self, inputs: Inputs, carry: Carry) -> Array:
        """Whether the boundary must wait for the host, bool ()."""
        return self.at.eval_due(inputs, carry) if self.host_eval else jnp.zeros((), bool)

    # What the host is told

    def status(self, inputs: Inputs, carry: Carry) -> Status:
        """What the host is told."""
        return Status(
            step=carry.step,
            epoch=carry.epoch,
            cursor=carry.cursor,
            evaluated=carry.evaluated,
            stop=self.at.all_stopped(carry),
            yielded=carry.yielded,
            over=self.at.over(inputs, carry),
            awaits=self.boundary_waits(inputs, carry) & ~carry.yielded,
            halted=carry.yielded | self.at.all_stopped(carry),
            window=carry.window.means(),
            controls=dict(carry.train.controls),
        )

    # A step

    def one_step(
        self, inputs: Inputs, carry: Carry, rings: Any, batch: Any, rows: int, *, ok: Any = None
    ) -> tuple[Carry, Any]:
        """One step with its moments.

        Args:
            inputs: the dispatch's inputs.
            carry: the run.
            rings: the records so far.
            batch: one batch.
            rows: its rows.
            ok: where false, nothing changes; None where the caller has made sure.
        """
        before, happens = carry, True if ok is None else ok
        alive = None if self.members is None else ~(carry.train.stop | carry.ended)
        metrics = self.metrics(inputs, carry, {}, last=False)
        carry, rings, _ = self.moment("on_batch_begin", inputs, carry, rings, metrics, alive=alive, ok=happens)
        if self._halves:
            gradients = self._gradients(carry.train, batch)
            metrics = self.metrics(inputs, carry, gradients.values, last=False)
            carry, rings, actions = self.moment(
                "on_before_update", inputs, carry, rings, metrics, alive=alive, ok=happens
            )
            train, values = self._update(carry.train, gradients, actions), gradients.values
        else:
            train, values = self._step(carry.train, batch)
        train = conform(train, carry.train, "train_step: the train state", error=ValueError)
        carry = carry.replace(
            # counts on from where the given state stood, so that a second run draws other keys
            train=train.replace(step=before.train.step + 1),
            window=carry.window.add(values, rows),
            step=carry.step + 1,
            cursor=carry.cursor + 1,
        )
        metrics = self.metrics(inputs, carry, values, last=True)
        carry, rings, _ = self.moment("on_batch_end", inputs, carry, rings, metrics, alive=alive, ok=happens)
        mask = alive if ok is None else (ok if alive is None else ok & alive)
        if mask is not None:
            frozen = {
                name: select(mask, getattr(carry, name), getattr(before, name))
                for name in ("train", "callbacks", "window")
            }
            carry = carry.replace(**frozen)
        if ok is not None:
            places = ("step", "cursor", "seq", "yielded")
            carry = carry.replace(**{name: select(ok, getattr(carry, name), getattr(before, name)) for name in places})
        return carry, rings

    # A validation batch

    def empty_eval(self, train: TrainState, batch: Any) -> Window:
        """The window of a validation set before its first batch."""
        assert self._eval is not None
        return self._window(jax.eval_shape(self._eval, train, batch))

    def eval_batch(self, window: Window, train: TrainState, batch: Any, index: Any) -> Window:
        """Adds one validation batch, weighted by its rows. Its index sets its key apart from the others'."""
        assert self._eval is not None
        fold = jax.random.fold_in if self.members is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))
        train = train.replace(key=fold(train.key, index))
        return window.add(self._eval(train, batch), rows_in(batch))


def _pair(result: Any) -> tuple[Any, Any]:
    """What a train step returned, as the two that it should return."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise TypeError(
            f"train_step returned {type(result).__name__}, expected (train_state, metrics): `return state, metrics`."
        )
    return result[0], result[1]


def _check_names(what: str, values: Any) -> None:
    """Requires a mapping of names to arrays."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} returned metrics as {type(values).__name__}, expected a dict of names to arrays.")
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{what} returned a metric with the name {name!r}, expected a string that is not empty.")
        if not hasattr(value, "dtype"):
            raise TypeError(f"{what} returned the metric {name!r} as {type(value).__name__}, expected an array.")


def _hook(hook: str, tree: Any) -> Callable[..., Any]:
    """A hook of all callbacks as a function of their numbers; what is static in them is never compared again."""

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        return getattr(jax.tree.unflatten(tree, settings), hook)(states, metrics)

    run.__name__ = hook
    return run
