"""From what a user asked for to a driver that is ready to go."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._chain import Chain
from jaxcb._probe import Probe
from jaxcb._struct import strong_tree
from jaxcb._train_state import TrainState
from jaxcb.loop._carry import FOREVER, Carry, Inputs, initial, owned
from jaxcb.loop._choose import choose
from jaxcb.loop._driver import Driver
from jaxcb.loop._evaluators import Evaluators
from jaxcb.loop._executor import Live
from jaxcb.loop._feed import Feed
from jaxcb.loop._host_metrics import HostMetrics
from jaxcb.loop._keeping import Keeper
from jaxcb.loop._looped import Looped
from jaxcb.loop._place import Place
from jaxcb.loop._positions import Cadence
from jaxcb.loop._prepare import prepare
from jaxcb.loop._program import EvalSet, Program
from jaxcb.loop._run import Run
from jaxcb.loop._stepped import Stepped
from jaxcb.loop._validation import HostSet, ResidentSet
from jaxcb.writers import Context


def assemble(
    *,
    step: Callable[..., Any],
    eval_step: Callable[..., Any] | None,
    callbacks: Chain,
    train_state: TrainState,
    feed: Feed,
    sets: Mapping[str, ResidentSet | HostSet],
    cadence: Cadence,
    end: tuple[int | None, int | None],
    executor: str,
    steps_per_execution: int | None,
    context: Context,
    run: Run,
    probes: Mapping[str, Probe] | None = None,
    evaluators: Evaluators | None = None,
    host_metrics: Mapping[str, Callable[[], Any]] | None = None,
    keeper: Keeper | None = None,
    debug: bool = False,
    members: int | None = None,
    chain_axes: Any = None,
) -> tuple[Driver, str]:
    """Builds the program, checks it by its shapes, and makes the driver of a run.

    Args:
        step: the training step.
        eval_step: the evaluation step, or None.
        callbacks: all callbacks.
        train_state: the state to start from; with members each array has a leading member axis.
        feed: training batches.
        sets: validation sets by prefix.
        cadence: when to validate.
        end: epochs and steps after which the run is over, None for no such end.
        executor: "auto", "looped" or "stepped".
        steps_per_execution: steps of a dispatch, None to measure.
        context: for the writers.
        run: for host functions.
        probes: the user's looks inside the step; callbacks may ask for more.
        evaluators: what the host computes at a validation.
        host_metrics: name -> function of nothing, read before each dispatch.
        keeper: saves the run; None where it is not saved.
        debug: whether to look for NaN at every step.
        members: the size of the member axis, None for a single run.
        chain_axes: which of the callbacks' numbers have a member axis, as `vmap`'s `in_axes`.

    Returns:
        The driver, and why its executor was chosen.
    """
    resident = {prefix: own for prefix, own in sets.items() if isinstance(own, ResidentSet)}
    host = {prefix: own for prefix, own in sets.items() if isinstance(own, HostSet)}
    evaluators = evaluators or Evaluators({})
    outside = HostMetrics(
        host_metrics, examples_per_step=feed.layout.batch_size, step_flops=lambda: program.flops(state, example)
    )
    program = Program(
        step=step,
        eval_step=eval_step,
        chain=callbacks,
        members=members,
        evals=[EvalSet(prefix, own.rows, own.batch_size) for prefix, own in resident.items()],
        host_prefixes=list(host),
        cadence=cadence,
        layout=feed.layout,
        host_values=evaluators.names,
        probes=_all_probes(probes, callbacks),
        host_names=outside.names,
        batch_axis=0 if feed.key is not None and jnp.ndim(feed.key) and feed.layout.shuffle else None,
        chain_axes=chain_axes,
        debug=debug,
    )
    settings = jax.tree.leaves(strong_tree(callbacks))
    state, states = jax.eval_shape(lambda state: _with_callbacks(state, callbacks, members), train_state)
    example = feed.example
    if program.batch_axis is not None:
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), example)
    examples = {prefix: own.example for prefix, own in sets.items()}
    empty = prepare(program, state, states, settings, example, examples)
    outside.use(program.host_read, context)
    run.traced_step = lambda: program.traced(state, example)
    kind, why = ("stepped", "debug=True") if debug else choose(executor, program.jaxpr(state, example))
    feed.choose(stacked=kind == "looped")
    program.layout = feed.layout
    inputs = Inputs(
        settings=settings,
        data=feed.data,
        key=feed.key,
        val={prefix: own.arrays for prefix, own in resident.items()},
        numbers=None,
    )

    def start(state: TrainState) -> Carry:
        order = jax.eval_shape(program.layout.new_order, inputs, 0)
        order = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), order)  # drawn when the epoch begins
        return owned(initial(*_with_callbacks(state, callbacks, members), empty, order))

    context.steps_per_epoch = None if feed.epoch_len == FOREVER else feed.epoch_len
    driver = Driver(
        executor=Looped(program) if kind == "looped" else Stepped(program),
        live=Live.of(jax.jit(start)(train_state)),
        feed=feed,
        host_sets=host,
        evaluators=evaluators,
        host_metrics=outside,
        inputs=inputs,
        place=_place(end, feed, cadence),
        context=context,
        run=run,
        steps_per_execution=steps_per_execution,
        keeper=keeper,
    )
    return driver, why


def _all_probes(given: Mapping[str, Probe] | None, callbacks: Chain) -> dict[str, Probe]:
    """The user's probes and those of the callbacks; a name stands for one of them."""
    probes = callbacks.probes()
    for name, own in (given or {}).items():
        if not isinstance(own, Probe):
            raise TypeError(f"probes: {name!r} must be made with jc.probe(fn, every=...), got a {type(own).__name__}.")
        if probes.setdefault(name, own) != own:
            raise ValueError(f"probes: {name!r} is also the name of another look that a callback asks for.")
    return probes


def _with_callbacks(state: TrainState, callbacks: Chain, members: int | None) -> tuple[TrainState, Any]:
    """The train state as a new run starts it, with room for the named weights, and the callbacks' states."""
    kept = {key: own for key, own in state.weights.items() if key not in callbacks.slots()}
    state = state.replace(weights=kept, stop=jnp.zeros_like(state.stop))
    states = callbacks.init()
    if members is not None:
        states = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape)), states)
    return callbacks.setup(state).with_slots(callbacks), states


def _place(end: tuple[int | None, int | None], feed: Feed, cadence: Cadence) -> Place:
    epochs, steps = end
    total = FOREVER if steps is None else steps
    if epochs is not None and feed.epoch_len != FOREVER:
        total = min(total, epochs * feed.epoch_len)
    return Place(
        epoch_len=feed.epoch_len,
        end_step=FOREVER if steps is None else steps,
        end_epoch=FOREVER if epochs is None else epochs,
        total_steps=-1 if total == FOREVER else total,
        eval_every=cadence.steps,
        full=feed.layout.full if feed.layout.remainder else FOREVER,
    )
