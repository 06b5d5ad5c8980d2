"""Builds a ready-to-run driver from validated arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.feed import UNBOUNDED, Feed
from jaxcb._src.data.validation import HostSet, ResidentSet
from jaxcb._src.loop.compiled.executor import DeviceState, Executor
from jaxcb._src.loop.compiled.member_map import Over, Strategy, known, measured
from jaxcb._src.loop.compiled.position import EvalSchedule, HostPosition
from jaxcb._src.loop.compiled.program import EvalSet, Program
from jaxcb._src.loop.compiled.scan import Looped
from jaxcb._src.loop.compiled.shapes import infer_shapes
from jaxcb._src.loop.compiled.state import InitialBuffers, Inputs, LoopState, copy_arrays, initial_state
from jaxcb._src.loop.compiled.stepwise import Stepped
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.host_metrics import Evaluators, HostMetrics
from jaxcb._src.loop.host.population import ActiveMembers, Population
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.probes import Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.pytree import to_strong_types
from jaxcb._src.utils.xla import jaxpr_in
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.run_handle import Run


def choose(executor: str | None, jaxpr: Any) -> tuple[str, str]:
    """Returns "looped" or "stepped", and why.

    XLA's CPU backend runs convolution gradients 10 to 33 times slower inside any loop or branch. No other measured
    operation is slower in a loop, and none on accelerators.

    Args:
        executor: "looped", "stepped", or None to choose.
        jaxpr: the traced step.
    """
    if executor is not None:
        return executor, "as requested"
    backend = jax.default_backend()
    if backend == "cpu" and _has_convolution(jaxpr):
        return "stepped", "the step has convolutions, whose gradients are slow in a compiled loop on the CPU"
    return "looped", f"{backend} runs this step well in a compiled loop"


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in equation.params.values():
            inner = value if isinstance(value, tuple | list) else (value,)
            if any(_has_convolution(v) for v in map(jaxpr_in, inner) if v is not None):
                return True
    return False


def build_driver(  # noqa: PLR0913, PLR0915
    *,
    step: Callable[..., Any],
    eval_step: Callable[..., Any] | None,
    callbacks: Chain,
    train_state: TrainState,
    feed: Feed,
    sets: Mapping[str, ResidentSet | HostSet],
    cadence: EvalSchedule,
    end: tuple[int | None, int | None],
    executor: str | None,
    steps_per_execution: int | None,
    context: Context,
    run: Run,
    probes: Mapping[str, Probe] | None = None,
    evaluators: Evaluators | None = None,
    host_metrics: Mapping[str, Callable[[], Any]] | None = None,
    keeper: Checkpointer | None = None,
    debug: bool = False,
    population: Population | None = None,
    placement: Placement = ONE_DEVICE,
) -> tuple[Driver, str]:
    """Traces the hooks, builds the program and returns the driver of a run.

    The order is given by what depends on what. The step must be traced before the executor can be chosen ("auto" looks
    for convolutions), and the executor before the strategy of a population (it is measured in that executor). The data
    layout depends on the executor. If the strategy is not `vmap`, the program is built a second time, since the
    strategy is part of every jitted function.

    Args:
        step: the training step.
        eval_step: the evaluation step, or None.
        callbacks: all callbacks.
        train_state: the initial state; for a population each array has a leading member axis.
        feed: training batches.
        sets: prefix -> validation set.
        cadence: when to validate.
        end: epochs and steps after which the run is over; None for no limit.
        executor: "looped", "stepped", or None to choose.
        steps_per_execution: steps per dispatch; None to choose by measurement.
        context: for the writers.
        run: for host callbacks.
        probes: the user's probes; callbacks may add more.
        evaluators: metrics that the host computes at a validation.
        host_metrics: name -> function without arguments, read before each dispatch.
        keeper: writes checkpoints; None for a run without checkpoints.
        debug: whether to check for NaN at every step.
        population: configuration of a population; None for a single run.
        placement: shardings of a single run; for a population, the devices that members may be sharded over.

    Returns:
        The driver, and why its executor was chosen.
    """
    if population is None:
        feed.place(placement)
        placement.check_batch(feed.layout.batch_size)
    resident = {prefix: val_set for prefix, val_set in sets.items() if isinstance(val_set, ResidentSet)}
    host = {prefix: val_set for prefix, val_set in sets.items() if isinstance(val_set, HostSet)}
    evaluators = evaluators or Evaluators({})
    # `program`, `state` and `batch` are bound below; the function runs at the first dispatch at the earliest
    outside = HostMetrics(
        host_metrics, examples_per_step=feed.layout.batch_size, step_flops=lambda: program.flops(state, batch)
    )
    members = None if population is None else population.size
    settings = jax.tree.leaves(to_strong_types(callbacks))
    tree = jax.tree.structure(callbacks)
    axes = None if population is None else jax.tree.unflatten(tree, list(population.axes))
    batch_axis = 0 if feed.key is not None and jnp.ndim(feed.key) and feed.layout.shuffle else None
    all_probes = _all_probes(probes, callbacks)

    def with_callbacks(state: TrainState) -> tuple[TrainState, Any]:
        return _over(lambda numbers, state: _with_callbacks(state, jax.tree.unflatten(tree, numbers)), population)(
            settings, state
        )

    def build(size: int | None, over: Over = jax.vmap) -> tuple[Program, InitialBuffers]:
        """Returns the program for this many members, and its initial metric buffers."""
        program = Program(
            step=step,
            eval_step=eval_step,
            chain=callbacks,
            members=size,
            evals=[EvalSet(prefix, numbers.rows, numbers.batch_size) for prefix, numbers in resident.items()],
            host_prefixes=list(host),
            cadence=cadence,
            layout=feed.layout,
            host_values=evaluators.names,
            probes=all_probes,
            host_names=outside.names,
            batch_axis=batch_axis,
            chain_axes=axes,
            debug=debug,
            over=over,
            placement=alone,
        )
        rows = None if population is None else population.axes
        # shapes only: any rows of the right number serve
        numbers = [x if a is None else x[:size] for x, a in zip(settings, rows or [None] * len(settings), strict=True)]
        shapes = (state, states) if size == members else _resized((state, states), size)
        batch = example if batch_axis is None else _with_axis(example, size)
        return program, infer_shapes(program, shapes[0], shapes[1], numbers, batch, examples)

    # sharding of a single run; a population shards members instead
    alone = ONE_DEVICE if population is not None else placement
    state, states = alone.shapes(jax.eval_shape(with_callbacks, train_state))
    example = alone.shapes(feed.example)
    examples = {prefix: alone.shapes(val_set.example) for prefix, val_set in sets.items()}
    program, empty = build(members)
    outside.use(program.host_read, context)
    batch = example if batch_axis is None else _with_axis(example, members)
    run.traced_step = lambda: program.traced(state, batch)
    kind, why = ("stepped", "debug=True") if debug else choose(executor, program.jaxpr(state, batch))
    strategy = None
    if population is not None:
        # the members are sharded, not the batch: the placement of the strategy replaces the given one
        strategy, because = _strategy(population, step, train_state, feed, batch, batch_axis, kind, placement.mesh)
        placement = strategy.placement
        feed.place(placement)
        why = f"{why}; {because}"
        if strategy.over is not jax.vmap:
            program, empty = build(members, strategy.over)
    feed.choose(stacked=kind == "looped")
    program.layout = feed.layout
    inputs = Inputs(
        settings=settings,
        data=feed.data,
        key=feed.key,
        val={prefix: val_set.arrays for prefix, val_set in resident.items()},
        numbers=None,
    )

    def start(state: TrainState) -> LoopState:
        order = jax.eval_shape(program.layout.new_order, feed.key, 0)
        # zeros: the order is drawn when the epoch begins
        order = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), order)
        return copy_arrays(initial_state(*with_callbacks(state), empty, order))

    def executor_of(program: Program) -> Executor:
        program.layout = feed.layout
        return Looped(program, placement) if kind == "looped" else Stepped(program, placement)

    context.steps_per_epoch = None if feed.epoch_len == UNBOUNDED else feed.epoch_len
    inputs = alone.put_everywhere(inputs)
    live, group = DeviceState.of(alone.init_sharded(start, train_state)), None
    if population is not None and strategy is not None:
        chosen = strategy
        group = ActiveMembers(population, chosen, lambda size: executor_of(build(size, chosen.over)[0]))
        live, inputs = group.put(live, inputs)
    driver = Driver(
        executor=executor_of(program),
        live=live,
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
        members=group,
    )
    return driver, why


def _over(fn: Callable[[list[Any], TrainState], Any], population: Population | None) -> Callable[..., Any]:
    """Maps a function of numeric fields and a train state over the members, if there are any."""
    if population is None:
        return fn
    return jax.vmap(fn, in_axes=(list(population.axes), 0))


def _strategy(
    population: Population,
    step: Callable[..., Any],
    state: TrainState,
    feed: Feed,
    batch: Any,
    batch_axis: int | None,
    kind: str,
    mesh: Mesh | None,
) -> tuple[Strategy, str]:
    """Returns the strategy to map over members, and why it was chosen."""
    if population.strategy is not None:
        return known(population.strategy, population.size, kind, mesh), f"{population.strategy}, as requested"
    if feed.data is None:
        rows = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), batch)
    else:
        size = feed.layout.batch_size
        rows = jax.tree.map(lambda x, s: jnp.broadcast_to(x[:size], s.shape), feed.data, batch)
    return measured(step, state, rows, batch_axis, population.size, kind, mesh)


def _with_axis(shapes: Any, size: int | None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes)


def _resized(shapes: Any, size: int | None) -> Any:
    """Returns the shapes for another number of members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), shapes)


def _all_probes(given: Mapping[str, Probe] | None, callbacks: Chain) -> dict[str, Probe]:
    """Returns the probes of the user and of the callbacks. A name must denote one probe only."""
    probes = callbacks.probes()
    for name, probe in (given or {}).items():
        if probes.setdefault(name, probe) != probe:
            raise ValueError(f"metrics: {name!r} is also the name of a different probe, which a callback has.")
    return probes


def _with_callbacks(state: TrainState, callbacks: Chain) -> tuple[TrainState, Any]:
    """Returns the train state prepared for a new run (with slots for named weights), and the callbacks' states."""
    kept = {key: copy for key, copy in state.weights.items() if key not in callbacks.slots()}
    state = state.init_optimizer().replace(weights=kept, stop=jnp.zeros_like(state.stop))
    return callbacks.setup(state).with_slots(callbacks), callbacks.init()


def _place(end: tuple[int | None, int | None], feed: Feed, cadence: EvalSchedule) -> HostPosition:
    epochs, steps = end
    total = UNBOUNDED if steps is None else steps
    if epochs is not None and feed.epoch_len != UNBOUNDED:
        total = min(total, epochs * feed.epoch_len)
    return HostPosition(
        epoch_len=feed.epoch_len,
        end_step=UNBOUNDED if steps is None else steps,
        end_epoch=UNBOUNDED if epochs is None else epochs,
        total_steps=-1 if total == UNBOUNDED else total,
        eval_every=cadence.steps,
        full=feed.layout.full if feed.layout.remainder else UNBOUNDED,
    )
