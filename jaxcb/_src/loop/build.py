"""Builds a ready-to-run driver from validated arguments."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.pipeline import DataPlan, open_feed
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.data.resident import ResidentPlan
from jaxcb._src.data.spec import DataSpec
from jaxcb._src.data.validation import HostSet, ResidentSet
from jaxcb._src.loop.compiled.executor import Executor
from jaxcb._src.loop.compiled.member_map import Strategy, known, measured
from jaxcb._src.loop.compiled.position import HostPosition
from jaxcb._src.loop.compiled.program_spec import ProgramSpec
from jaxcb._src.loop.compiled.state import Inputs
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import MOST_STEPS_OF_A_BLOCK, Execution, RunConfig
from jaxcb._src.loop.host.device_run import DeviceRun, without_steps
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.forecast import warn_of_what_never_comes
from jaxcb._src.loop.host.host_metrics import Evaluators, HostMetrics, host_metric_names
from jaxcb._src.loop.host.population import ActiveMembers, Population
from jaxcb._src.loop.host.stages import Stage, Stages
from jaxcb._src.loop.programs import Reported, RunPrograms
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.training.probes import Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.xla import jaxpr_in
from jaxcb._src.writers.base import Context


def choose(jaxpr: Any, platform: str) -> tuple[str, str]:
    """Returns "looped" or "stepped", and why.

    XLA's CPU backend runs convolution gradients 10 to 33 times slower inside any loop or branch. No other measured
    operation is slower in a loop, and none on accelerators.

    Args:
        jaxpr: the traced step.
        platform: of the devices of the run.
    """
    if platform == "cpu" and _has_convolution(jaxpr):
        return "stepped", "the step has convolutions, whose gradients are slow in a compiled loop on the CPU"
    return "looped", f"{platform} runs this step well in a compiled loop"


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in equation.params.values():
            inner = value if isinstance(value, tuple | list) else (value,)
            if any(_has_convolution(v) for v in map(jaxpr_in, inner) if v is not None):
                return True
    return False


class RunData(NamedTuple):
    """The data of a run.

    Attributes:
        plan: the training data.
        sets: prefix -> validation set.
    """

    plan: DataPlan
    sets: Mapping[str, ResidentSet | HostSet]


def build_driver(  # noqa: PLR0913
    functions: RunFunctions,
    train_state: TrainState,
    config: RunConfig,
    *,
    data: RunData,
    context: Context,
    keeper: Checkpointer | None = None,
    population: Population | None = None,
    placement: Placement = ONE_DEVICE,
    stages: Sequence[Stage] = (),
    begun: int = 0,
    trains: bool = True,
) -> tuple[Driver, str]:
    """Traces the hooks, builds the program and returns the driver of a run.

    The order is given by what depends on what. The step must be traced before the executor can be chosen ("auto" looks
    for convolutions), and the executor before the strategy of a population (it is measured in that executor). The feed
    is made when both are known: the executor decides the form of its chunks, and the strategy their devices.

    Args:
        functions: steps and callbacks, with those that every run has.
        train_state: the initial state; for a population each array has a leading member axis.
        config: the configuration of the run.
        data: training and validation data.
        context: for the writers.
        keeper: writes checkpoints; None for a run without checkpoints.
        population: configuration of a population; None for a single run.
        placement: shardings of a single run; for a population, the devices that members may be sharded over.
        stages: all stages of the run but the first.
        begun: number of those that have begun; `train_state` is that of the last of them.
        trains: whether the run trains, so that its steps are compiled. A completed run does not.

    Returns:
        The driver, and why its executor was chosen.
    """
    plan, sets = data
    if population is None and plan.spec.example is not None:
        placement.check_batch(plan.spec.layout.batch_size)
    execution, metrics = config.execution, config.metrics
    evaluators = Evaluators(metrics.evaluators)
    # a population shards its members, not batch and train state
    alone = placement if population is None else ONE_DEVICE
    probes = _all_probes(metrics.probes, functions.callbacks)
    reported = Reported(config.cadence, probes, evaluators.names, host_metric_names(metrics.host_metrics))

    def programs_of(train_state: TrainState) -> RunPrograms:
        shapes = alone.shapes(train_state)
        new = RunPrograms(functions, shapes, plan.spec, sets, reported, population, alone, execution.debug)
        new.spec(new.members)
        context.run.describe_step(new.traced_step)
        if keeper is not None:
            keeper.describe(new.traced_facts())
        return new

    programs = programs_of(train_state)
    spec = programs.spec(programs.members)
    platform = placement.platform
    kind, why = _executor(execution, programs, spec, platform)
    block = _block(execution, programs, spec, platform) if kind == "looped" else None
    why = why if block is None else f"{why}; in blocks of {block} steps"
    strategy = None
    if population is not None:
        # the members are sharded, not the batch: the placement of the strategy replaces the given one
        find = functools.partial(_strategy, population, programs, plan, train_state, kind, placement.mesh)
        strategy, because = find() if population.strategy is not None else programs.kept.fact((kind, "strategy"), find)
        placement, why = strategy.placement, f"{why}; {because}"
    context.describe_data(None if plan.spec.epoch_len == UNBOUNDED else plan.spec.epoch_len)
    feed = open_feed(plan, placement, stacked=kind == "looped", processes=context.processes)
    inputs = Inputs(
        settings=programs.settings,
        data=feed.data,
        key=plan.spec.key,
        val={prefix: own.arrays for prefix, own in sets.items() if isinstance(own, ResidentSet)},
        numbers=None,
    )
    inputs = alone.put_everywhere(inputs)
    place = _place(config, plan.spec, programs.validation.predicates.validates)
    warn_of_what_never_comes(place, config, functions.callbacks, probes, spec, context)
    group, over = None, jax.vmap
    if population is not None and strategy is not None:
        over = strategy.over
        group = ActiveMembers(
            population, strategy, lambda size: programs.executor(kind, size, strategy.over, strategy.placement, block)
        )

    def executor_of(programs: RunPrograms) -> Executor:
        return programs.executor(kind, programs.members, over, placement, block)

    executor = executor_of(programs)
    if group is None:
        idle = without_steps(inputs, place, np.zeros(len(reported.host_names), np.float32))
        live = programs.start(train_state, functools.partial(executor.prepare, inputs=idle) if trains else None)
    else:  # it puts its members in an order and on devices of its own
        live, inputs = group.put(programs.start(train_state), inputs)
    left = Stages(stages, begun, lambda train_state: executor_of(programs_of(train_state)), context.say)
    device = DeviceRun(executor, live, inputs, place, left, group)
    host_sets = {prefix: own for prefix, own in sets.items() if isinstance(own, HostSet)}
    host_metrics = HostMetrics(
        metrics.host_metrics,
        read=spec.host_read,
        context=context,
        examples_per_step=plan.spec.layout.batch_size,
        step_flops=programs.flops,
        devices=placement.all_devices,
    )
    steps = execution.steps_per_execution
    return Driver(device, feed, host_sets, evaluators, host_metrics, context, steps, keeper), why


def _executor(execution: Execution, programs: RunPrograms, spec: ProgramSpec, platform: str) -> tuple[str, str]:
    """Returns "looped" or "stepped", and why.

    Raises:
        ValueError: for blocks of steps at which the host has to act.
    """
    if execution.debug:
        return "stepped", "debug=True"
    who = spec.acts_at_steps()
    if execution.block and who is not None:
        if execution.executor is not None:
            raise ValueError(
                f"Execution: executor={execution.executor!r} with block={execution.block} runs steps without the host, "
                f"but {who} acts at every step. Leave block out, or the executor, which then is 'stepped'."
            )
        return "stepped", f"{who} acts at every step, which blocks of steps do not allow"
    if execution.executor is not None:
        return execution.executor, "as requested"
    if execution.block is not None:
        return "looped", "as requested by block="
    return programs.kept.fact(("executor", platform), lambda: choose(programs.jaxpr(), platform))


def _block(execution: Execution, programs: RunPrograms, spec: ProgramSpec, platform: str) -> int | None:
    """Returns the steps of a block; None for a loop that ends at any step.

    A GPU waits for the host at each trip of a loop whose length is unknown. The size is a function of the request: it
    divides the steps between two epoch ends, validations or probes with few masked steps left over.
    """
    if execution.block == 0 or (execution.block is None and platform != "gpu"):
        return None
    if spec.acts_at_steps() is not None:
        return None
    capacity = programs.step_capacity(spec)
    if execution.block is not None:
        return min(execution.block, capacity)
    probes = (probe.every for probe in programs.reported.probes.values() if probe.every > 1)
    lengths = (programs.data.epoch_len, programs.reported.schedule.steps or UNBOUNDED, *probes)
    length = min(lengths)
    return min(-(-length // -(-length // MOST_STEPS_OF_A_BLOCK)), capacity)


def _strategy(
    population: Population, programs: RunPrograms, data: DataPlan, state: TrainState, kind: str, mesh: Mesh | None
) -> tuple[Strategy, str]:
    """Returns the strategy to map over members, and why it was chosen."""
    if population.strategy is not None:
        return known(population.strategy, population.size, kind, mesh), f"{population.strategy}, as requested"
    batch = programs.batch(population.size)
    if isinstance(data, ResidentPlan):
        size = data.spec.layout.batch_size
        rows = jax.tree.map(lambda x, s: jnp.broadcast_to(x[:size], s.shape), data.arrays, batch)
    else:
        rows = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), batch)
    step, axis = programs.functions.step, programs.batch_axis
    return measured(step, state, rows, axis, population.size, kind, mesh, population.frozen_axis)


def _all_probes(given: Mapping[str, Probe], callbacks: Chain) -> dict[str, Probe]:
    """Returns the probes of the user and of the callbacks. A name must denote one probe only."""
    probes = callbacks.probes()
    for name, probe in given.items():
        if probes.setdefault(name, probe) != probe:
            raise ValueError(f"metrics: {name!r} is also the name of a different probe, which a callback has.")
    return probes


def _place(config: RunConfig, data: DataSpec, validates: bool) -> HostPosition:
    epochs, steps = config.data.epochs, config.data.steps
    total = UNBOUNDED if steps is None else steps
    if epochs is not None and data.epoch_len != UNBOUNDED:
        total = min(total, epochs * data.epoch_len)
    return HostPosition(
        epoch_len=data.epoch_len,
        end_step=UNBOUNDED if steps is None else steps,
        end_epoch=UNBOUNDED if epochs is None else epochs,
        total_steps=-1 if total == UNBOUNDED else total,
        schedule=config.cadence if validates else None,
        full=data.layout.full if data.layout.remainder else UNBOUNDED,
    )
