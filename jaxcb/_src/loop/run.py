"""From what was asked for to a result: the one way through which every run and every population goes."""

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
    """What a run by itself hands back."""
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


def run_training(
    step: Callable[..., Any],
    eval_step: Callable[..., Any] | None,
    callbacks: Chain,
    train_state: TrainState,
    train_data: Any,
    asked: RunArguments,
    *,
    settings: Mapping[str, Any] | None = None,
    population: Population | None = None,
    result: Callable[[Driver, Path | None, Context], R] = result_of,
) -> R:
    """Trains.

    Args:
        step: the training step.
        eval_step: the evaluation step, or None.
        callbacks: the user's.
        train_state: the state to start from; a population's has a leading member axis.
        train_data: as `Loop.run` takes it.
        asked: all else.
        settings: what else is set, name -> number, text or boolean, for tables.
        population: where it is one.
        result: makes what is handed back of the driver, the run's directory and the context.

    Raises:
        ValueError: for arguments that do not fit together.
        DataError: for data that cannot be trained on.
        MissingMetricError: for a monitor that no step reports.
    """
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes())
        mesh = asked.mesh
        if mesh is None and group.is_multiprocess:  # each by itself would train the same model
            mesh = jax.make_mesh((jax.device_count(),), ("data",))
        placement = Placement.of(mesh, asked.sharding, train_state) if population is None else Placement.devices(mesh)
        run_dir, kept = asked.run_dir, not asked.fast_dev_run
        if not kept:
            run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcb-"))
        directory = _directory(asked.owner, run_dir, callbacks)
        if directory is not None and kept:
            stack.enter_context(lock_run_dir(directory))
        run = Run(directory)
        context = Context(directory, run, asked.verbose, asked.epochs, trial=not kept, processes=group)
        stack.enter_context(debugging(asked.debug, context.say))
        callbacks = _all_callbacks(callbacks, asked.verbose)
        start, executor = (
            ResumePlan(RunRecord(run=group.broadcast_from_primary(lambda: RunRecord().run))),
            asked.executor,
        )
        order = asked.order if population is None else asked.order | {"seed": list(population.seeds)}
        config = request_facts(callbacks, asked.epochs, asked.steps, order, placement.layout_text())
        arguments = {"epochs": asked.epochs, "steps": asked.steps, **order}
        arguments |= {"drop_remainder": asked.drop_remainder, "eval_every": asked.eval_every}
        run.callbacks = config["callbacks"]
        run.settings = settings_of(arguments, callbacks, settings or {})
        if directory is not None and kept:
            start = find_start(
                directory,
                callbacks=callbacks,
                config=config,
                resume=asked.resume or run_dir is None,  # then a `BackupAndRestore` names the directory, which resumes
                overwrite=asked.overwrite,
                say=context.say,
                warn=context.warn,
                on_save_error=asked.on_save_error,
                processes=group,
            )
        context.record, context.resumed_files, context.inherits = start.record, start.files, start.inherits
        feed = make_feed(
            train_data,
            epochs=asked.epochs,
            steps=asked.steps,
            steps_per_epoch=asked.steps_per_epoch,
            batch_size=asked.batch_size,
            shuffle=asked.shuffle,
            seed=asked.seed if population is None else population.seeds,
            train_remainder=not asked.drop_remainder,
            steps_per_execution=asked.fixed_steps,
            resident=asked.resident,
            placement=placement,
            controls=train_state.controls,
            start=start.feed(group),
            say=context.say,
            processes=group,
        )
        try:
            sets = validation_sets(
                asked.validation_data,
                asked.validation_batch_size or asked.batch_size,
                asked.validation_steps,
                like=feed.example,
                resident=asked.resident,
                placement=placement,
                processes=group,
                say=context.say,
            )
            if sets and eval_step is None:
                raise ValueError(
                    f"{asked.owner}: validation_data was given, but there is no eval_step: pass "
                    "Loop(train_step, eval_step)."
                )
            if start.saved is not None and executor is None:
                executor = start.saved.facts["executor"]  # another one agrees to rounding only
            if start.saved is not None and population is not None and population.strategy is None:
                population = population._replace(strategy=start.saved.facts["strategy"])
            if group.is_multiprocess and population is not None and population.strategy is None:
                population = population._replace(strategy="shard")  # measured, each might choose another one
            driver, why = build_driver(
                step=step,
                eval_step=eval_step,
                callbacks=callbacks,
                train_state=train_state,
                feed=feed,
                sets=sets,
                cadence=asked.cadence,
                end=(asked.epochs, asked.steps),
                executor=executor,
                steps_per_execution=asked.fixed_steps,
                context=context,
                run=run,
                probes=asked.probes,
                evaluators=Evaluators(asked.evaluators),
                host_metrics=asked.host_metrics,
                keeper=start.keeper,
                debug=asked.debug,
                population=population,
                placement=placement,
            )
            del train_state  # the run has copied it: where nobody else holds its arrays, they are freed now
            if start.saved is not None:
                why = "as the run began"
                assert start.keeper is not None
                carry = driver.carry()
                loaded = start.keeper.restore(start.saved, named_leaves(carry), finished=start.completed)
                driver.resume(with_leaves(carry, loaded), start.saved.facts, anew=start.stop_cleared)
        except BaseException:
            feed.close()
            raise
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
    """The run's directory; a `BackupAndRestore` names one where nobody else does."""
    name = "run_dir"
    if run_dir is None:
        run_dir = next((c.backup_dir for c in callbacks.callbacks if isinstance(c, BackupAndRestore)), None)
        owner, name = "BackupAndRestore", "backup_dir"
    # absolute, as a callback may change the working directory
    directory = None if run_dir is None else local_path(owner, name, run_dir)
    if directory is not None:
        _orbax.check_place(directory)
    return directory


def _all_callbacks(callbacks: Chain, verbose: Literal[0, 1, 2] | None) -> Chain:
    """The user's callbacks, then the history and the progress display, where they are not among them."""
    kinds = {type(c) for c in callbacks.callbacks}
    extra: list[Callback] = []
    if History not in kinds:
        extra.append(History())
    if ProgressBar not in kinds and verbose != 0:
        extra.append(ProgressBar(verbose))
    return chain(callbacks, *extra)


def _train(driver: Driver, why: str, context: Context) -> None:
    """Runs a driver, between its first word and its last."""
    context.say(f"jaxcb: {driver.executor.name} executor ({why}); the first step compiles the run.")
    if driver.executor.program.scales_final_updates:
        context.say(
            "jaxcb: the optimizer was handed over ready-made, so callbacks scale its final updates. That is exact "
            "where the rate is the last factor (not for adafactor, lars, schedule-free); optimizer=optax.adam with "
            "learning_rate=... always is."
        )
    started = time.monotonic()
    driver.train()
    place = driver.place
    context.say(f"jaxcb: {place.epoch} epochs, {place.step} steps in {time.monotonic() - started:.1f} s.")


def _leave(signum: int, result: Any, steps: int) -> None:
    """Ends a run that a signal has ended: the process for SIGTERM, the call for Ctrl-C; a notebook gets the result."""
    if signum == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    remember(result)
    if not _in_notebook():
        interrupt = KeyboardInterrupt(f"after {steps} steps; jaxcb._src.loop.result.last_result() is what they came to")
        interrupt.result = result  # pyright: ignore[reportAttributeAccessIssue]
        raise interrupt


def _in_notebook() -> bool:
    shell = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"
