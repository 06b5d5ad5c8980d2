"""`TracedFunctions`: the functions that programs are made of, jitted; and how to call them inside a program."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.actions.utils import materialize
from jaxcb._src.core.callback import PopulationCallback
from jaxcb._src.core.chain import Chain
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.inspection.traced_step import TracedStep, repeated_flops
from jaxcb._src.loop.compiled.member_map import Over, over_members
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.probes import Probe, look, readings
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import PendingUpdate, Step
from jaxcb._src.utils.flat_jit import FlatJit


class RunFunctions(NamedTuple):
    """The functions of a run.

    Attributes:
        step: `(train_state, batch) -> (train_state, metrics)`.
        eval_step: `(train_state, batch) -> metrics`, or None.
        callbacks: the callbacks.
    """

    step: Callable[..., Any]
    eval_step: Callable[..., Any] | None
    callbacks: Chain


class MemberMapping(NamedTuple):
    """How the functions of one run become those of a population, and where they run.

    Attributes:
        members: size of the member axis; None for a single run.
        over: maps a function over the members, `over(fn, in_axes) -> fn`.
        batch_axis: 0 if each member has its own batches, None if members share them.
        chain_axes: for each numeric field of the callbacks 0 if it has a member axis, None if shared; as `in_axes`.
        placement: shardings of batches and train state, for a single run.
        frozen_axis: 0 if each member has its own frozen parameters, None if they share them.
    """

    members: int | None = None
    over: Over = jax.vmap
    batch_axis: int | None = None
    chain_axes: Any = None
    placement: Placement = ONE_DEVICE
    frozen_axis: int | None = None


class TracedFunctions:
    """The jitted functions of a run. Each is traced once for each shape of a batch, whatever programs call it.

    Args:
        functions: steps and callbacks; with a `Step`, `on_before_update` can run.
        probes: name -> probe of the step.
        mapping: how they become functions of a population, and where they run.
        debug: whether to check for NaN at every step; only possible without compilation.

    Attributes:
        split_step: whether something runs between gradients and update.
        first_half: the function that computes the gradients; the complete step if nothing runs between.
        hook: the hooks of all callbacks, by name.
        populations: names of the callbacks that act on a population.

    Raises:
        ValueError: for a step that does not expose the gradients that callbacks or probes need, or for a callback of a
            population in a single run.
    """

    def __init__(
        self,
        functions: RunFunctions,
        probes: Mapping[str, Probe],
        mapping: MemberMapping,
        *,
        debug: bool = False,
    ) -> None:
        self.mapping, self.debug, self.probes = mapping, debug, dict(probes)
        step, eval_step, chain = functions
        hooks, over_members = chain.hooks(), (0, mapping.batch_axis)
        probes_step = "on_before_update" in hooks or bool(probes)
        self.split_step = isinstance(step, Step) and (probes_step or debug)
        if probes_step and not self.split_step:
            who = _needing_gradients(chain, probes)
            raise ValueError(
                f"{who} needs the gradients before the update (on_before_update), but this train_step does not expose "
                "them. Use fit, or make the step with jc.Step(loss_fn) or jc.Step.from_gradients(fn)."
            )
        self.step = step
        self.first_half = self._compiled(step, over_members)
        self.probe_functions: dict[str, Any] = {}
        if isinstance(step, Step) and self.split_step:
            self.first_half = self._compiled(step.compute_update, over_members)
            self.update = self._compiled(step.update, (0, 0, 0))
            self.probe_functions = {
                name: self._compiled(probe_function(name, probe, step.activations), (0, 0, mapping.batch_axis))
                for name, probe in self.probes.items()
            }
            self.answer_inside = self._compiled(materializer(step.activations), (0, 0, 0, mapping.batch_axis))
        self.answer = self._compiled(materialize, (0, 0))
        self.eval_step = self._compiled(eval_step, (0, None)) if eval_step is not None else None
        tree = jax.tree.structure(chain)
        axes = None if mapping.chain_axes is None else tree.flatten_up_to(mapping.chain_axes)
        make = functools.partial(members_hook, axes) if mapping.members is not None else hook_of
        self.hook = {hook: FlatJit(make(hook, tree)) for hook in hooks}
        self.populations = tuple(n for n, callback in chain.items() if isinstance(callback, PopulationCallback))
        if self.populations and mapping.members is None:
            who = ", ".join(self.populations)
            raise ValueError(f"{who} acts on a population: pass it to jc.sweep. This is a single run.")

    def _compiled(self, fn: Callable[..., Any], in_axes: Any) -> FlatJit:
        """Jits a function, mapped over members if there are any. One jit per function means one trace per shape."""
        mapping = self.mapping
        if mapping.members is None:
            return FlatJit(mapping.placement.with_mesh(fn))
        return FlatJit(over_members(mapping.over, fn, in_axes, mapping.frozen_axis))

    # Costs, known before the first step

    def jaxpr(self, train: TrainState, batch: Any) -> Any:
        """Returns the traced step. The programs reuse this trace."""
        return self.first_half.trace(train, batch).jaxpr

    def traced(self, train: TrainState, batch: Any) -> TracedStep:
        """Returns the traced step, with the location of its metrics."""
        traced = self.first_half.trace(train, batch)
        return TracedStep.of(traced, train, batch, lambda out: out.gradients.values if self.split_step else out[1])

    def flops(self, train: TrainState, batch: Any, before_update: tuple[Any, ...]) -> float:
        """Returns the floating point operations of a step; NaN if XLA reports none.

        XLA's cost analysis counts the body of a loop once. The matrix products and convolutions of the other trips are
        added for loops whose length is known, such as a scan over the layers of a model.

        Args:
            train: shapes of the train state.
            batch: shapes of a batch.
            before_update: shapes of the actions of `on_before_update`.
        """
        parts = [self.first_half.trace(train, batch)]
        if self.split_step:
            proposal = self.first_half.eval_shape(train, batch)
            parts.append(self.update.trace(train, proposal, before_update))
        by_xla = (float((part.lower().cost_analysis() or {}).get("flops", jnp.nan)) for part in parts)
        return sum(by_xla) + sum(repeated_flops(part.jaxpr.jaxpr) for part in parts)


def _needing_gradients(chain: Chain, probes: Mapping[str, Probe]) -> str:
    """Returns the names of the callbacks that need gradients, and of probes that belong to no callback."""
    own = {name: callback.probes() for name, callback in chain.items()}
    found = [n for n, callback in chain.items() if own[n] or "on_before_update" in callback.hooks()]
    named = {probe for probes_of_one in own.values() for probe in probes_of_one}
    return ", ".join([*found, *(f"the probe {name!r}" for name in probes if name not in named)])


def hook_of(hook: str, tree: Any) -> Callable[..., Any]:
    """Returns a hook of all callbacks as a function of their numeric fields.

    The static fields are closed over, so that a call does not compare them again.

    Args:
        hook: its name.
        tree: the structure of the chain.
    """

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        return getattr(jax.tree.unflatten(tree, settings), hook)(states, metrics)

    run.__name__ = hook
    return run


def members_hook(axes: Any, hook: str, tree: Any) -> Callable[..., Any]:
    """Returns a hook of all callbacks, mapped over the members of a population.

    Callbacks that see the complete population run after the others.

    Args:
        axes: which numeric fields of the callbacks have a member axis, as `in_axes` of `vmap`.
        hook: its name.
        tree: the structure of the chain.
    """
    one = hook_of(hook, tree)

    def run(settings: list[Any], states: Any, metrics: Metrics) -> Any:
        per_member = metrics.replace(alive=None, member=None)
        seen = jax.tree.map(lambda _: None, per_member).replace(values=0)
        states, actions = jax.vmap(one, in_axes=(axes, 0, seen))(settings, states, per_member)
        if metrics.alive is None:
            return states, actions
        states, more = one(settings, states, metrics)
        return states, actions + more

    run.__name__ = hook
    return run


def probe_function(name: str, probe: Probe, forward: Callable[..., Any]) -> Callable[..., dict[str, Array]]:
    """Returns a probe as a function of the train state, the pending update and the batch."""

    def run(train: TrainState, proposal: PendingUpdate, batch: Any) -> dict[str, Array]:
        return readings(name, probe, look(train, proposal, batch, forward))

    return run


def materializer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that computes lazy log actions between gradients and update."""

    def run(action: Any, train: TrainState, proposal: PendingUpdate, batch: Any) -> Any:
        return materialize(action, look(train, proposal, batch, forward))

    return run


def variables_of(fn: FlatJit, *args: Any) -> tuple[Any, Any]:
    """Returns the variables of a traced function, in the structures of its arguments and of its results.

    An output that is an unmodified input is the same variable.
    """
    traced = fn.trace(*args)
    jaxpr = traced.jaxpr.jaxpr
    return (
        jax.tree.unflatten(jax.tree.structure(args), jaxpr.invars),
        jax.tree.unflatten(jax.tree.structure(traced.out_info), jaxpr.outvars),
    )


def call_preserving_identity(fn: FlatJit, *args: Any) -> Any:
    """Calls a jitted function inside a trace. An output that is an unmodified input is returned as that input object.

    A nested jit gives each output a new tracer, also for inputs that it returns unchanged. The identity of the tracers
    is what `Compiled` and `select` use to skip leaves that do not change.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return fn(*args)
    out, tree = jax.tree.flatten(fn(*args))
    jaxpr = fn.trace(*args).jaxpr.jaxpr
    given = {id(v): x for v, x in zip(jaxpr.invars, jax.tree.leaves(args), strict=True)}
    return jax.tree.unflatten(tree, [given.get(id(v), x) for v, x in zip(jaxpr.outvars, out, strict=True)])
