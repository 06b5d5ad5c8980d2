"""Entry point shared by `fit`, `Loop.run` and `sweep`."""

import builtins
import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from jaxcb._src.callbacks.backup_and_restore import BackupAndRestore
from jaxcb._src.callbacks.freeze import Freeze
from jaxcb._src.callbacks.gradient_accumulation import GradientAccumulation
from jaxcb._src.callbacks.history import History
from jaxcb._src.callbacks.progress_bar import ProgressBar
from jaxcb._src.checkpointing.bucket_run import RunPlace, bucket_run
from jaxcb._src.checkpointing.lock import lock_run_dir
from jaxcb._src.checkpointing.request import data_facts, further_facts, request_facts
from jaxcb._src.checkpointing.resume import ResumePlan, find_start
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import Chain, chain
from jaxcb._src.data.inputs import are_arrays
from jaxcb._src.data.pipeline import plan_data
from jaxcb._src.data.validation import validation_sets
from jaxcb._src.distributed.processes import Processes, processes
from jaxcb._src.inspection.what_ran import what_ran
from jaxcb._src.loop.build import RunData, build_driver
from jaxcb._src.loop.compiled.program import debugging
from jaxcb._src.loop.compiled.state import named_leaves, with_leaves
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import RunConfig, settings_of
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.population import Population
from jaxcb._src.loop.host.stages import Stage
from jaxcb._src.loop.host.stops import TERMINATED
from jaxcb._src.loop.result import Deciding, Result, delivered, remember
from jaxcb._src.sharding.arrays import common_device, with_automatic_axes
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.training.accumulation import accumulations
from jaxcb._src.training.loss import unweighted
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.address import Address, parse_address
from jaxcb._src.utils.kept_programs import seconds_compiling
from jaxcb._src.utils.local_path import local_path, local_path_or_address
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.history import HistoryWriter
from jaxcb._src.writers.run_handle import Run

R = TypeVar("R")
_WORTH_SAYING = 0.05  # seconds of compiling


def result_of(driver: Driver, directory: Path | None, context: Context, callbacks: Chain) -> Result:
    """Returns the result of a single run."""
    carry = driver.carry()
    reason = driver.stop_reason()
    if reason and driver.interrupted is None:
        context.say(f"jaxcb: stopped in epoch {driver.results.stops[0].epoch + 1}: {reason}")
    return Result(
        state=carry.train,
        model=delivered(carry.train),
        history=driver.writer(HistoryWriter).history,
        stop_reason=reason,
        stopped_epoch=driver.results.stops[0].epoch if driver.results.stops else None,
        callback_states=carry.callbacks,
        executor=driver.device.executor.name,
        run_dir=None if context.trial else directory,
        files=() if context.trial else tuple(context.files),
        what_ran=tuple(context.record.processes),
        _deliveries=driver.deliveries(),
        _deciding=Deciding(callbacks, context.run.settings, tuple(driver.results.stops)),
    )


def run_training(
    functions: RunFunctions,
    train_state: TrainState,
    train_data: Any,
    config: RunConfig,
    *,
    settings: Mapping[str, Any] | None = None,
    population: Population | None = None,
    result: Callable[[Driver, Path | None, Context, Chain], R] = result_of,
    stages: Sequence[Stage] = (),
) -> R:
    """Trains.

    Resources are opened in the order in which they must be released: process group, temporary directory and lock on the
    `ExitStack`; the feed, whose thread begins with the first step, is closed by the driver.

    Args:
        functions: steps and callbacks of the user.
        train_state: the initial state; for a population with a leading member axis.
        train_data: as in `Loop.run`.
        config: all other arguments.
        settings: further hyperparameters, name -> number, text or boolean, for tables.
        population: configuration of a population; None for a single run.
        result: makes the return value from the driver, the run directory, the context and the callbacks.
        stages: all stages of the run but the first.

    Raises:
        ValueError: for arguments that contradict each other.
        DataError: for invalid training data.
        MissingMetricError: for a monitored metric that no step reports.
    """
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes())
        placement = _placement(config, group, train_state, population)
        if placement.mesh is None:
            _use_their_device(stack, config.owner, train_state, train_data, config.validation.data)
        stack.enter_context(placement.instead_of_a_set_mesh())
        train_state = jax.tree.map(with_automatic_axes, train_state)
        context, place = _open(stack, config, functions.callbacks, group)
        functions = functions._replace(callbacks=_all_callbacks(functions.callbacks, config.verbose))
        if population is not None:
            config = replace(config, data=replace(config.data, seed=list(population.seeds)))
        request = _request(config, functions.callbacks, context, placement, train_state, train_data)
        frozen_axis = None if population is None else population.frozen_axis
        start = _find_start(config, functions.callbacks, context, request, settings or {}, frozen_axis)
        _say_trained(train_state, context)
        if start.keeper is not None and place is not None and place.primary is not None:
            start.keeper.mirror(place.primary)
        data, from_step = request["request"].get("train_data"), 0 if start.saved is None else start.saved.step
        context.run.describe_process(lambda: what_ran(data or data_facts(train_data)) | {"from_step": from_step})
        given = [train_state]
        del train_state  # the driver copies it: without a reference here its arrays are freed if the caller has none
        driver, why = _build(functions, given, train_data, config, start, context, placement, population, stages)
        if context.run_dir is not None and not start.completed:
            _ = context.run.what_ran  # for the run's record
        context.run.describe_process(what_ran)  # so that the run does not keep the data
        if start.saved is not None:
            why = "as the run began"
            _restore(driver, start)
        # a completed run is not trained again: its result is loaded and returned
        if start.completed:
            driver.close()
        else:
            if group.is_primary:
                _tell_of_checkpoints(functions.callbacks, start, context)
                start.begin()
                _begin_record(context, place)
            _train(driver, why, context)
            _say_unapplied(driver, functions.callbacks, context)
        found = result(driver, context.run_dir, context, functions.callbacks)
        if driver.interrupted is not None:
            steps = int(np.max(driver.carry().train.step))
            _leave(driver.interrupted, found, f"stopped after {steps} steps; {_saved_at(config, context)}", context)
        return found


def _begin_record(context: Context, place: RunPlace | None) -> None:
    """Notes in the run's record what runs, and copies the record to the run's bucket if it has one."""
    if context.run_dir is not None and not context.trial:
        context.record.note_process(context.run.what_ran)
    if place is not None and place.primary is not None:
        place.primary.announce()


def _placement(config: RunConfig, group: Processes, state: TrainState, population: Population | None) -> Placement:
    """Returns the devices and shardings of a run."""
    mesh = config.execution.mesh
    if mesh is None and group.is_multiprocess:  # otherwise each process would train its own copy of the model
        mesh = jax.make_mesh((jax.device_count(),), ("data",))
    return Placement.of(mesh, config.execution.sharding, state) if population is None else Placement.devices(mesh)


def _use_their_device(stack: contextlib.ExitStack, owner: str, *given: Any) -> None:
    """Makes the device that arrays are committed to the default one of a run without a mesh.

    Raises:
        ValueError: for arrays on several devices, and if a mesh is set. It says what to pass.
    """
    cure = "Pass execution=jc.Execution(mesh=mesh), which places what the run needs"
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        raise ValueError(
            f"{owner}: a mesh of {mesh.size} devices is set (jax.set_mesh), and the run has none. {cure}, or leave "
            "jax.set_mesh out."
        )
    state, *data = given
    arrays = {"train_state": state}
    for name, tree in zip(("train_data", "validation_data"), data, strict=True):
        if are_arrays(tree):
            arrays[name] = tree
    device = common_device(owner, arrays, cure)
    if device is not None and [device] != ONE_DEVICE.own_devices:
        stack.enter_context(jax.default_device(device))


def _open(
    stack: contextlib.ExitStack, config: RunConfig, callbacks: Chain, group: Processes
) -> tuple[Context, RunPlace | None]:
    """Locks the run directory, and returns the context of the writers, and the run's bucket if it has one."""
    # a trial run (`fast_dev_run`) writes to a temporary directory and never resumes
    run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcb-")) if config.is_trial else config.run_dir
    directory = _directory(config.owner, run_dir, callbacks)
    if directory is None:
        _refuse_without_files(config)
    place = config.place
    if not isinstance(directory, Address) and place is None and config.checkpointing.local_dir is not None:
        local_dir = str(config.checkpointing.local_dir)
        raise ValueError(
            f"{config.owner}: Checkpointing(local_dir={local_dir!r}) is for a run in a bucket, but run_dir is "
            f"{directory}. Leave it out, or pass an address such as 's3://bucket/run' as run_dir."
        )
    if isinstance(directory, Address):
        place = stack.enter_context(open_place(directory, config, group))
        directory = place.directory
    elif directory is not None and not config.is_trial and place is None:
        stack.enter_context(lock_run_dir(directory))
    run = Run(directory)
    context = Context(
        directory,
        run,
        config.verbose,
        config.data.epochs,
        trial=config.is_trial,
        processes=group,
        on_error=config.checkpointing.on_error,
    )
    context.locate(config.run_dir if isinstance(config.run_dir, Address) else place and place.address_of(directory))
    _refuse_other_buckets(callbacks, context)
    stack.enter_context(debugging(config.execution.debug, context.say))
    return context, place


def _refuse_other_buckets(callbacks: Chain, context: Context) -> None:
    """Refuses a `BackupAndRestore` in a bucket that is not the run's: a run is saved in one place.

    Raises:
        ValueError: it says what to pass.
    """
    for one in callbacks.callbacks:
        where = one.backup_dir if isinstance(one, BackupAndRestore) else None
        given = parse_address("BackupAndRestore", "backup_dir", where)
        if given is not None and (context.bucket is None or context.bucket.below(given) is None):
            raise ValueError(
                f"BackupAndRestore: backup_dir is {given}, but the run is saved in {context.bucket or context.run_dir} "
                f"alone. Pass run_dir='{given}', or give backup_dir the run's directory."
            )


def open_place(address: Address, config: RunConfig, group: Processes) -> contextlib.AbstractContextManager[RunPlace]:
    """Returns the context manager of a run in a bucket."""
    given = config.checkpointing.local_dir
    return bucket_run(
        address,
        local_dir=None if given is None else local_path("Checkpointing", "local_dir", given),
        may_exist=config.resume or config.checkpointing.overwrite or config.run_dir is None,
        on_error=config.checkpointing.on_error,
        processes=group,
        say=print if config.verbose != 0 else lambda text: None,
    )


def _request(
    config: RunConfig, callbacks: Chain, context: Context, placement: Placement, state: TrainState, train_data: Any
) -> dict[str, Any]:
    """Returns the facts of the request, which checkpoints contain and a resumed run compares."""
    data, execution, more = config.data, config.execution, {}
    if context.run_dir is not None and not config.is_trial:
        more = further_facts(
            state,
            train_data,
            config.validation.data,
            validation_freq=config.cadence.epochs,
            drop_remainder=data.drop_remainder,
            eval_every=execution.eval_every,
            executor=execution.executor,
            metrics=config.metrics.describe(),
        )
    return request_facts(
        callbacks, epochs=data.epochs, steps=data.steps, order=data.order, layout=placement.layout_text(), more=more
    )


def _find_start(
    config: RunConfig,
    callbacks: Chain,
    context: Context,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    frozen_axis: int | None,
) -> ResumePlan:
    """Decides from where the run starts, and describes the run to its writers."""
    group, run, data = context.processes, context.run, config.data
    arguments = {"epochs": data.epochs, "steps": data.steps, **data.order}
    arguments |= {"drop_remainder": data.drop_remainder, "eval_every": config.execution.eval_every}
    frozen = (c.where for c in callbacks.callbacks if isinstance(c, Freeze) and c.until_epoch is None)
    patterns = tuple(p for ps in frozen for p in ps)
    run.describe(facts["callbacks"], settings_of(arguments, callbacks, settings), patterns, frozen_axis)
    if context.run_dir is not None and not config.is_trial:
        start = find_start(
            context,
            callbacks=callbacks,
            config=facts,
            # without a `run_dir` a `BackupAndRestore` has named the directory, which resumes
            resume=config.resume or config.run_dir is None,
            overwrite=config.checkpointing.overwrite,
            on_save_error=config.checkpointing.on_error,
        )
    else:
        # all processes need one run id, since checkpoints are named by it
        start = ResumePlan(RunRecord(run=group.broadcast_from_primary(lambda: RunRecord().run)))
    where = None if start.saved is None else start.saved.path
    context.start_from(start.record, start.files, inherits=start.inherits, complete=start.completed, saved_in=where)
    return start


def _say_trained(state: TrainState, context: Context) -> None:
    """Says how many of the parameters the run trains, if these are not all."""
    if state.frozen is not None:
        trained, frozen = (sum(x.size for x in jax.tree.leaves(part)) for part in (state.params, state.frozen))
        if state.stop.ndim:  # of one member
            trained //= state.stop.size
            frozen //= state.stop.size if context.run.frozen_axis == 0 else 1
        share = trained / (trained + frozen)
        context.say(f"jaxcb: trains {trained:,} of {trained + frozen:,} parameters ({share:.2%}).")


def _tell_of_checkpoints(callbacks: Chain, start: ResumePlan, context: Context) -> None:
    """Registers the callbacks that are told of complete checkpoints."""
    for name, callback in callbacks.items():
        listener = callback.checkpoint_listener()
        if listener is not None:
            context.saved.listen(name, listener)
    if start.keeper is not None:
        start.keeper.tell(context.saved)


def _build(  # noqa: PLR0913
    functions: RunFunctions,
    given: list[TrainState],
    train_data: Any,
    config: RunConfig,
    start: ResumePlan,
    context: Context,
    placement: Placement,
    population: Population | None,
    stages: Sequence[Stage],
) -> tuple[Driver, str]:
    """Plans the data, and makes validation sets and driver. Empties `given`, the list with the train state."""
    group = context.processes
    common: dict[str, Any] = {"processes": group, "say": context.say}
    data = plan_data(
        train_data,
        replace(config.data, resumes=start.keeper is not None),
        warn=context.warn,
        # the members are sharded, not the rows: these wait until the strategy is known
        placement=placement if population is None else ONE_DEVICE,
        controls=given[0].controls,
        start=start.feed(group),
        **common,
    )
    sets = validation_sets(config.validation, like=unweighted(data.spec.example), placement=placement, **common)
    if sets and functions.eval_step is None:
        raise ValueError(
            f"{config.owner}: validation_data was given, but there is no eval_step: pass Loop(train_step, eval_step)."
        )
    if start.saved is not None:
        config, population = _as_saved(config, population, start.saved.facts)
    if group.is_multiprocess and population is not None and population.strategy is None:
        # a measurement could choose differently on each process
        population = population._replace(strategy="shard")
    begun = 0 if start.saved is None else start.saved.facts.get("stage", 0)
    for stage in stages[:begun]:
        given.append(stage.begin(given.pop()))
    return build_driver(
        functions,
        given.pop(),
        config,
        data=RunData(data, sets),
        context=context,
        keeper=start.keeper,
        population=population,
        placement=placement,
        stages=stages,
        begun=min(begun, len(stages)),
        trains=not start.completed,
    )


def _as_saved(
    config: RunConfig, population: Population | None, facts: Mapping[str, Any]
) -> tuple[RunConfig, Population | None]:
    """Returns the configuration with the executor and strategy that the run began with, unless others are given."""
    execution, block = config.execution, facts.get("block", 0)  # runs of earlier versions have no blocks
    if execution.executor is None and not execution.block:  # the other executor agrees only up to rounding
        execution = replace(execution, executor=facts["executor"])
    if facts["executor"] == "looped" and execution.executor in (None, "looped"):
        if execution.block is not None and execution.block != block:
            raise ValueError(
                f"{config.owner}: the run in {config.run_dir} began with block={block}, got Execution(block="
                f"{execution.block}). Leave block out to resume it as it began, or begin in another run_dir."
            )
        execution = replace(execution, block=block)
    config = replace(config, execution=execution)
    if population is not None and population.strategy is None:
        population = population._replace(strategy=facts["strategy"])
    return config, population


def _restore(driver: Driver, start: ResumePlan) -> None:
    """Restores the driver from the checkpoint of the plan."""
    assert start.keeper is not None
    assert start.saved is not None
    try:
        carry = driver.carry()
        loaded = start.keeper.restore(start.saved, named_leaves(carry), finished=start.completed)
        driver.resume(with_leaves(carry, loaded), start.saved.facts, clear_stopped=start.stop_cleared)
    except BaseException:
        driver.feed.close()
        raise


def _directory(owner: str, run_dir: str | Path | Address | None, callbacks: Chain) -> Path | Address | None:
    """Returns the run directory or its address; that of a `BackupAndRestore` if no other is given."""
    name = "run_dir"
    if run_dir is None:
        run_dir = next((c.backup_dir for c in callbacks.callbacks if isinstance(c, BackupAndRestore)), None)
        owner, name = "BackupAndRestore", "backup_dir"
    if run_dir is None or isinstance(run_dir, Address):
        return run_dir
    # absolute, since a callback may change the working directory
    directory = local_path_or_address(owner, name, run_dir)
    if isinstance(directory, Path):
        _orbax.check_place(directory)
    return directory


def _refuse_without_files(config: RunConfig) -> None:
    """Refuses arguments about a run's files where there are none.

    Raises:
        ValueError: it names them.
    """
    given = {
        "resume=True": config.resume,
        "Checkpointing(overwrite=True)": config.checkpointing.overwrite,
    }
    for what, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{config.owner}: {what} is about the files of a run, and this run has none: pass run_dir=, the "
                "directory of the run."
            )


def _all_callbacks(callbacks: Chain, verbose: Literal[0, 1, 2] | None) -> Chain:
    """Returns the callbacks with history and progress display appended, unless they are included."""
    kinds = {type(c) for c in callbacks.callbacks}
    extra: list[Callback] = []
    if History not in kinds:
        extra.append(History())
    if ProgressBar not in kinds and verbose != 0:
        extra.append(ProgressBar(verbose))
    return chain(callbacks, *extra)


def _train(driver: Driver, why: str, context: Context) -> None:
    """Runs the driver and prints start and summary lines."""
    kept = driver.device.executor.kept.is_reused
    compiles = "its programs are those of an earlier run" if kept else "the first step compiles the run"
    context.say(f"jaxcb: {driver.device.executor.name} executor ({why}); {compiles}.")
    if driver.device.executor.program.spec.scales_final_updates:
        context.say(
            "jaxcb: the optimizer was passed as an instance, so callbacks scale its final updates. This is exact if "
            "the learning rate is the last factor (not for adafactor, lars, schedule-free). optimizer=optax.adam with "
            "learning_rate=... is always exact."
        )
    started, compiled = time.monotonic(), seconds_compiling()
    driver.train()
    place = driver.device.place.at
    wasted = driver.results.wasted_steps
    masked = f", and {wasted} masked steps in blocks" if driver.device.program.block else ""
    building = min(seconds_compiling() - compiled, time.monotonic() - started)  # programs may be compiled at once
    built = f", {building:.1f} s of them compiling" if building > _WORTH_SAYING else ""
    seconds = time.monotonic() - started
    context.say(f"jaxcb: {place.epoch} epochs, {place.step} steps{masked} in {seconds:.1f} s{built}.")


def _say_unapplied(driver: Driver, callbacks: Chain, context: Context) -> None:
    """Says which gradients the end of the run has left unapplied, unless that was said before the first step."""
    if driver.interrupted is not None or not accumulations(driver.device.live.shapes().train.opt_state):
        return  # by its shapes, since the state of a population is put together from all its members
    waiting = max(int(np.max(several.mini_step)) for several in accumulations(driver.carry().train.opt_state))
    text = f"the gradients of the last {waiting} steps were accumulated for an update, and not applied."
    counted = [c for c in callbacks.callbacks if isinstance(c, GradientAccumulation) and not callable(c.steps)]
    if waiting and driver.results.stops:
        context.say(f"jaxcb: {text}")
    elif waiting and not (counted and driver.device.place.total_steps >= 0):
        context.warn(f"{text} Let the steps of the run be a multiple of those of an update.")


def _saved_at(config: RunConfig, context: Context) -> str:
    """Returns where an interrupted run was saved, and how to continue it."""
    if context.run_dir is None or context.trial:
        return "nothing was saved, because the run has no run_dir"
    how = "resume=True" if config.run_dir is not None else "the same backup_dir"
    return f"the run is saved in {context.run_dir}, and the same command with {how} continues it"


def _leave(signum: int, result: Any, text: str, context: Context) -> None:
    """Ends a run after a signal.

    SIGTERM exits the process. Ctrl-C raises KeyboardInterrupt with the result attached; a notebook gets the result.
    """
    if signum == signal.SIGTERM:
        context.say(f"jaxcb: {text}.")
        raise SystemExit(TERMINATED)
    remember(result)
    if _in_notebook():
        context.say(f"jaxcb: interrupted; {text}.")
    else:
        interrupt = KeyboardInterrupt(f"{text}; jc.last_result() returns the result so far")
        interrupt.result = result  # pyright: ignore[reportAttributeAccessIssue]
        raise interrupt


def _in_notebook() -> bool:
    shell = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"
