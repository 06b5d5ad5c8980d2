"""Entry point shared by `fit`, `Loop.run` and `sweep`."""

import builtins
import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from jaxcb._src.callbacks.backup_and_restore import BackupAndRestore
from jaxcb._src.callbacks.history import History
from jaxcb._src.callbacks.progress_bar import ProgressBar
from jaxcb._src.checkpointing.lock import lock_run_dir
from jaxcb._src.checkpointing.resume import ResumePlan, find_start, request_facts
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import Chain, chain
from jaxcb._src.data.pipeline import make_feed
from jaxcb._src.data.validation import validation_sets
from jaxcb._src.distributed.processes import processes
from jaxcb._src.loop.build import build_driver
from jaxcb._src.loop.compiled.program import debugging
from jaxcb._src.loop.compiled.state import named_leaves, with_leaves
from jaxcb._src.loop.config import RunArguments, settings_of
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.host_metrics import Evaluators
from jaxcb._src.loop.host.population import Population
from jaxcb._src.loop.host.stops import TERMINATED
from jaxcb._src.loop.result import Result, delivered, remember
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.history import HistoryWriter
from jaxcb._src.writers.run_handle import Run

R = TypeVar("R")


def result_of(driver: Driver, directory: Path | None, context: Context) -> Result:
    """Returns the result of a single run."""
    carry = driver.carry()
    reason = driver.stop_reason()
    if reason and driver.interrupted is None:
        context.say(f"jaxcb: stopped in epoch {driver.stops[0].epoch + 1}: {reason}")
    return Result(
        state=carry.train,
        model=delivered(carry.train),
        history=driver.writer(HistoryWriter).history,
        stop_reason=reason,
        stopped_epoch=driver.stops[0].epoch if driver.stops else None,
        callback_states=carry.callbacks,
        executor=driver.executor.name,
        run_dir=None if context.trial else directory,
        files=() if context.trial else tuple(context.files),
    )


def run_training(  # noqa: C901, PLR0913, PLR0915
    step: Callable[..., Any],
    eval_step: Callable[..., Any] | None,
    callbacks: Chain,
    train_state: TrainState,
    train_data: Any,
    args: RunArguments,
    *,
    settings: Mapping[str, Any] | None = None,
    population: Population | None = None,
    result: Callable[[Driver, Path | None, Context], R] = result_of,
) -> R:
    """Trains.

    Resources are opened in the order in which they must be released: process group, temporary directory and lock on the
    `ExitStack`; the feed, which owns a thread, is closed by the driver from the point at which the driver exists, and
    by the `except` branch before that.

    Args:
        step: the training step.
        eval_step: the evaluation step, or None.
        callbacks: the user's callbacks.
        train_state: the initial state; for a population with a leading member axis.
        train_data: as in `Loop.run`.
        args: all other arguments.
        settings: further hyperparameters, name -> number, text or boolean, for tables.
        population: configuration of a population; None for a single run.
        result: makes the return value from the driver, the run directory and the context.

    Raises:
        ValueError: for arguments that contradict each other.
        DataError: for invalid training data.
        MissingMetricError: for a monitored metric that no step reports.
    """
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes())
        mesh = args.mesh
        if mesh is None and group.is_multiprocess:  # otherwise each process would train its own copy of the model
            mesh = jax.make_mesh((jax.device_count(),), ("data",))
        placement = Placement.of(mesh, args.sharding, train_state) if population is None else Placement.devices(mesh)
        # a trial run (`fast_dev_run`) writes to a temporary directory and never resumes
        run_dir, kept = args.run_dir, not args.fast_dev_run
        if not kept:
            run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcb-"))
        directory = _directory(args.owner, run_dir, callbacks)
        if directory is not None and kept:
            stack.enter_context(lock_run_dir(directory))
        run = Run(directory)
        context = Context(directory, run, args.verbose, args.epochs, trial=not kept, processes=group)
        stack.enter_context(debugging(args.debug, context.say))
        callbacks = _all_callbacks(callbacks, args.verbose)
        # all processes need one run id, since checkpoints are named by it
        start, executor = (
            ResumePlan(RunRecord(run=group.broadcast_from_primary(lambda: RunRecord().run))),
            args.executor,
        )
        order = args.order if population is None else args.order | {"seed": list(population.seeds)}
        config = request_facts(callbacks, args.epochs, args.steps, order, placement.layout_text())
        arguments = {"epochs": args.epochs, "steps": args.steps, **order}
        arguments |= {"drop_remainder": args.drop_remainder, "eval_every": args.eval_every}
        run.callbacks = config["callbacks"]
        run.settings = settings_of(arguments, callbacks, settings or {})
        if directory is not None and kept:
            start = find_start(
                directory,
                callbacks=callbacks,
                config=config,
                resume=args.resume or run_dir is None,  # then a `BackupAndRestore` names the directory, which resumes
                overwrite=args.overwrite,
                say=context.say,
                warn=context.warn,
                on_save_error=args.on_save_error,
                processes=group,
            )
        context.record, context.resumed_files, context.inherits = start.record, start.files, start.inherits
        feed = make_feed(
            train_data,
            epochs=args.epochs,
            steps=args.steps,
            steps_per_epoch=args.steps_per_epoch,
            batch_size=args.batch_size,
            shuffle=args.shuffle,
            seed=args.seed if population is None else population.seeds,
            train_remainder=not args.drop_remainder,
            steps_per_execution=args.fixed_steps,
            resident=args.resident,
            placement=placement,
            controls=train_state.controls,
            start=start.feed(group),
            say=context.say,
            processes=group,
        )
        try:
            sets = validation_sets(
                args.validation_data,
                args.validation_batch_size or args.batch_size,
                args.validation_steps,
                like=feed.example,
                resident=args.resident,
                placement=placement,
                processes=group,
                say=context.say,
            )
            if sets and eval_step is None:
                raise ValueError(
                    f"{args.owner}: validation_data was given, but there is no eval_step: pass "
                    "Loop(train_step, eval_step)."
                )
            if start.saved is not None and executor is None:
                executor = start.saved.facts["executor"]  # the other executor agrees only up to rounding
            if start.saved is not None and population is not None and population.strategy is None:
                population = population._replace(strategy=start.saved.facts["strategy"])
            if group.is_multiprocess and population is not None and population.strategy is None:
                # a measurement could choose differently on each process
                population = population._replace(strategy="shard")
            driver, why = build_driver(
                step=step,
                eval_step=eval_step,
                callbacks=callbacks,
                train_state=train_state,
                feed=feed,
                sets=sets,
                cadence=args.cadence,
                end=(args.epochs, args.steps),
                executor=executor,
                steps_per_execution=args.fixed_steps,
                context=context,
                run=run,
                probes=args.probes,
                evaluators=Evaluators(args.evaluators),
                host_metrics=args.host_metrics,
                keeper=start.keeper,
                debug=args.debug,
                population=population,
                placement=placement,
            )
            # the driver has copied it; drop the reference, so that the arrays are freed if the caller holds none
            del train_state
            if start.saved is not None:
                why = "as the run began"
                assert start.keeper is not None
                carry = driver.carry()
                loaded = start.keeper.restore(start.saved, named_leaves(carry), finished=start.completed)
                driver.resume(with_leaves(carry, loaded), start.saved.facts, clear_stopped=start.stop_cleared)
        except BaseException:
            feed.close()
            raise
        # a completed run is not trained again: its result is loaded and returned
        if start.completed:
            driver.close()
        else:
            if group.is_primary:
                start.begin()
            _train(driver, why, context)
        found = result(driver, directory, context)
        if driver.interrupted is not None:
            _leave(driver.interrupted, found, int(np.max(driver.carry().train.step)))
        return found


def _directory(owner: str, run_dir: str | Path | None, callbacks: Chain) -> Path | None:
    """Returns the run directory; that of a `BackupAndRestore` if no other is given."""
    name = "run_dir"
    if run_dir is None:
        run_dir = next((c.backup_dir for c in callbacks.callbacks if isinstance(c, BackupAndRestore)), None)
        owner, name = "BackupAndRestore", "backup_dir"
    # absolute, since a callback may change the working directory
    directory = None if run_dir is None else local_path(owner, name, run_dir)
    if directory is not None:
        _orbax.check_place(directory)
    return directory


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
    kept = driver.executor.kept.is_reused
    compiles = "its programs are those of an earlier run" if kept else "the first step compiles the run"
    context.say(f"jaxcb: {driver.executor.name} executor ({why}); {compiles}.")
    if driver.executor.program.shapes.scales_final_updates:
        context.say(
            "jaxcb: the optimizer was passed as an instance, so callbacks scale its final updates. This is exact if "
            "the learning rate is the last factor (not for adafactor, lars, schedule-free). optimizer=optax.adam with "
            "learning_rate=... is always exact."
        )
    started = time.monotonic()
    driver.train()
    place = driver.place
    context.say(f"jaxcb: {place.epoch} epochs, {place.step} steps in {time.monotonic() - started:.1f} s.")


def _leave(signum: int, result: Any, steps: int) -> None:
    """Ends a run after a signal.

    SIGTERM exits the process. Ctrl-C raises KeyboardInterrupt with the result attached; a notebook gets the result.
    """
    if signum == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    remember(result)
    if not _in_notebook():
        interrupt = KeyboardInterrupt(f"stopped after {steps} steps; jc.last_result() returns the result so far")
        interrupt.result = result  # pyright: ignore[reportAttributeAccessIssue]
        raise interrupt


def _in_notebook() -> bool:
    shell = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"
