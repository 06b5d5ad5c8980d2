"""`Loop`: the compiled loop around a step of the user's own."""

import builtins
import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcb._callback import Callback
from jaxcb._chain import AsCallback, Chain, chain
from jaxcb._check import one_of, whole
from jaxcb._probe import Probe
from jaxcb._train_state import TrainState
from jaxcb.callbacks import BackupAndRestore, History, ProgressBar
from jaxcb.loop._assemble import assemble
from jaxcb.loop._carry import FOREVER
from jaxcb.loop._debug import debugging
from jaxcb.loop._driver import Driver
from jaxcb.loop._evaluators import Evaluators
from jaxcb.loop._feeding import make_feed
from jaxcb.loop._lock import alone_in
from jaxcb.loop._positions import Cadence
from jaxcb.loop._result import Result, remember
from jaxcb.loop._resuming import Start, describe, find_start
from jaxcb.loop._run import Run
from jaxcb.loop._settings import settings_of
from jaxcb.loop._signals import TERMINATED
from jaxcb.loop._validation import validation_sets
from jaxcb.writers import Context
from jaxcb.writers.history import HistoryWriter


class Loop:
    """A compiled training loop around your own step, with callbacks.

    Args:
        train_step: `(train_state, batch) -> (train_state, metrics)`, pure; metrics is a dict of names to
            arrays. `Step(loss_fn)` is one that also serves `on_before_update`.
        eval_step: `(train_state, batch) -> metrics`, for validation.
        callbacks: callbacks in the order in which their actions apply.

    Attributes:
        settings: what else is set, name -> number, text or boolean; TensorBoard shows it. `fit` fills it.

    Example:
        >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
        >>> def train_step(state, batch):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.mean((batch @ p - 1.0) ** 2))(state.params)
        ...     return state.apply_gradients(grads), {"loss": loss}
        >>> state = jc.TrainState.create(params=jnp.zeros(2), tx=optax.sgd(0.1))
        >>> loop = jc.Loop(train_step, callbacks=[jc.TerminateOnNaN()])
        >>> result = loop.run(state, jnp.ones((8, 2)), epochs=5, batch_size=4, verbose=0)
        >>> int(result.state.step), result.history["loss"].shape
        (10, (5,))
    """

    def __init__(
        self,
        train_step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
        eval_step: Callable[[TrainState, Any], Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    ) -> None:
        if not callable(train_step):
            raise TypeError(f"train_step must be a function of (train_state, batch), got {type(train_step).__name__}.")
        self.train_step, self.eval_step = train_step, eval_step
        self.settings: dict[str, Any] = {}
        given = () if callbacks is None else callbacks
        self.callbacks = chain(*given) if isinstance(given, Iterable) else chain(given)

    def run(
        self,
        train_state: TrainState,
        train_data: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        remainder: str = "train",
        validation_data: Any = None,
        validation_freq: int | Sequence[int] = 1,
        eval_every: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        probes: Mapping[str, Probe] | None = None,
        evaluators: Mapping[Any, Callable[[Any], Any]] | None = None,
        host_metrics: Mapping[str, Callable[[], Any]] | None = None,
        seed: int = 0,
        run_dir: str | Path | None = None,
        resume: bool | str = False,
        overwrite: bool = False,
        on_save_error: str = "raise",
        steps_per_execution: int | str = "auto",
        executor: str = "auto",
        verbose: int | str = "auto",
        debug: bool = False,
        fast_dev_run: int | bool = False,
    ) -> Result:
        """Trains.

        Args:
            train_state: the state to start from; its arrays stay valid.
            train_data: a pytree of arrays with a common leading axis, kept on the device; or an iterable of
                batches (a list is one), walked anew each epoch.
            epochs: how many epochs to train.
            steps: how many updates to do; with `epochs`, whichever comes first.
            steps_per_epoch: steps of an epoch; one pass over the data where None.
            batch_size: rows of a batch, for arrays; 32 where None.
            shuffle: whether arrays get a new order each epoch, drawn from `seed` and the epoch.
            remainder: "train" on a smaller last batch, or "drop" it.
            validation_data: as `train_data`, or a dict of named sets.
            validation_freq: validate every n-th epoch, or after the listed (1-based) epochs.
            eval_every: validate every n steps instead, and at the end.
            validation_steps: at most that many validation batches.
            validation_batch_size: rows of a validation batch; `batch_size` where None.
            probes: name -> `probe(fn, every=...)`: looks inside the step, for which the train_step must be a `Step`.
            evaluators: name -> `fn(model)`, run by the host at each validation; a tuple of names for as many results.
            host_metrics: name -> function of nothing that returns a number, read between two calls of the compiled
                loop.
            seed: of the data's order.
            run_dir: where the run's files go. The run is saved there at least every 60 seconds, and at its end.
            resume: "auto" goes on with the run that is in `run_dir`, where there is one: it then ends as if it had
                never been cut short. A run that has come to its end returns its result at once.
            overwrite: whether a run that is in `run_dir` may be replaced.
            on_save_error: "raise" or "warn" where the run cannot be saved.
            steps_per_execution: steps of one call of the compiled loop; "auto" measures.
            executor: "auto", "looped" or "stepped".
            verbose: "auto" for a bar on a terminal and lines elsewhere, 0, 1 for the bar, 2 for lines.
            debug: run step by step without compiling, so that pdb and print work, and stop at the first NaN, naming
                step and leaf. The functions are first called once with shapes alone.
            fast_dev_run: try everything on that many batches (True for one), and leave no files.

        Returns:
            A `Result`.

        Raises:
            ValueError: for arguments that do not fit together.
            DataError: for data that cannot be trained on.
            MissingMetricError: for a monitor that no step reports.
        """
        if not isinstance(train_state, TrainState):
            raise TypeError(
                f"Loop.run takes a TrainState, such as jc.TrainState.create(params=..., tx=...), got a "
                f"{type(train_state).__name__}."
            )
        if epochs is None and steps is None:
            raise ValueError("nothing says how long to train: pass epochs= or steps=.")
        epochs, steps = _count("epochs", epochs), _count("steps", steps)
        steps_per_epoch = _count("steps_per_epoch", steps_per_epoch)
        batch_size = _count("batch_size", batch_size)
        validation_batch_size = _count("validation_batch_size", validation_batch_size)
        validation_steps = _count("validation_steps", validation_steps)
        cadence = Cadence(_frequency(validation_freq), _count("eval_every", eval_every))
        fixed = None if steps_per_execution == "auto" else _count("steps_per_execution", steps_per_execution)
        one_of("fit", "on_save_error", on_save_error, ("raise", "warn"))
        one_of("fit", "remainder", remainder, ("train", "drop"))
        one_of("fit", "verbose", verbose, ("auto", 0, 1, 2))
        seed = whole("fit", "seed", seed)
        with contextlib.ExitStack() as stack:
            if fast_dev_run:
                batches = whole("fit", "fast_dev_run", int(fast_dev_run), least=1)
                epochs, steps, validation_steps, cadence = 1, batches, batches, Cadence(1, None)
                run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcb-"))
            directory = self._directory(run_dir)
            if directory is not None and not fast_dev_run:
                stack.enter_context(alone_in(directory))
            run = Run(directory)
            context = Context(directory, run, verbose, epochs, trial=bool(fast_dev_run))
            stack.enter_context(debugging(debug, context.say))
            callbacks = self._all_callbacks(verbose)
            start = Start()
            order = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch, "shuffle": shuffle, "seed": seed}
            config = describe(callbacks, epochs, steps, order)
            arguments = {"epochs": epochs, "steps": steps, **order, "remainder": remainder, "eval_every": eval_every}
            run.callbacks = config["callbacks"]
            run.settings = settings_of(arguments, callbacks, self.settings)
            if directory is not None and not fast_dev_run:
                start = find_start(
                    directory,
                    callbacks=callbacks,
                    config=config,
                    resume=resume or (run_dir is None and "auto"),
                    overwrite=overwrite,
                    say=context.say,
                    warn=context.warn,
                    on_save_error=on_save_error,
                )
            context.resumed_files = start.files
            feed = make_feed(
                train_data,
                epochs=epochs,
                steps=steps,
                steps_per_epoch=steps_per_epoch,
                batch_size=batch_size,
                shuffle=shuffle,
                seed=seed,
                train_remainder=remainder == "train",
                steps_per_execution=fixed,
                controls=train_state.controls,
                start=start.feed,
                say=context.say,
            )
            try:
                sets = validation_sets(
                    validation_data, validation_batch_size or batch_size, validation_steps, like=feed.example
                )
                if sets and self.eval_step is None:
                    raise ValueError(
                        "validation_data was given, but there is no eval_step: pass Loop(train_step, eval_step)."
                    )
                if start.saved is not None and executor == "auto":
                    executor = start.saved.facts["executor"]  # another one agrees to rounding only
                driver, why = assemble(
                    step=self.train_step,
                    eval_step=self.eval_step,
                    callbacks=callbacks,
                    train_state=train_state,
                    feed=feed,
                    sets=sets,
                    cadence=cadence,
                    end=(epochs, steps),
                    executor=executor,
                    steps_per_execution=fixed,
                    context=context,
                    run=run,
                    probes=probes,
                    evaluators=Evaluators(evaluators),
                    host_metrics=host_metrics,
                    keeper=start.keeper,
                    debug=debug,
                )
                if start.saved is not None:
                    why = "as the run began"
                    assert start.keeper is not None
                    carry = start.keeper.restore(start.saved, driver.live.carry(), finished=start.finished)
                    driver.resume(carry, start.saved.facts, anew=start.released)
            except BaseException:
                feed.close()
                raise
            if start.finished:
                driver.close()
            else:
                start.clear()
                _train(driver, why, context)
            result = _result(driver, directory, context)
            if driver.interrupted is not None:
                _leave(driver.interrupted, result)
            return result

    def _directory(self, run_dir: str | Path | None) -> Path | None:
        """The run's directory; a `BackupAndRestore` names one where nobody else does."""
        if run_dir is None:
            run_dir = next((c.backup_dir for c in self.callbacks.callbacks if isinstance(c, BackupAndRestore)), None)
        # absolute, as a callback may change the working directory
        return None if run_dir is None else Path(run_dir).expanduser().absolute()

    def _all_callbacks(self, verbose: int | str) -> Chain:
        """The user's callbacks, then the history and the progress display, where they are not among them."""
        kinds = {type(c) for c in self.callbacks.callbacks}
        extra: list[Callback] = []
        if History not in kinds:
            extra.append(History())
        if ProgressBar not in kinds and verbose != 0:
            extra.append(ProgressBar(verbose))
        return chain(self.callbacks, *extra)


def _train(driver: Driver, why: str, context: Context) -> None:
    """Runs a driver, between its first word and its last."""
    context.say(f"jaxcb: {driver.executor.name} executor ({why}); the first step compiles the run.")
    if driver.executor.program.scales_ready_made:
        context.say(
            "jaxcb: the optimizer was handed over ready-made, so callbacks scale its final updates. That is exact "
            "where the rate is the last factor (not for adafactor, lars, schedule-free); optimizer=optax.adam with "
            "learning_rate=... always is."
        )
    started = time.monotonic()
    driver.train()
    place = driver.place
    context.say(f"jaxcb: {place.epoch} epochs, {place.step} steps in {time.monotonic() - started:.1f} s.")


def _count(name: str, value: Any) -> int | None:
    """A count as the device holds it: one that is larger is for ever."""
    return None if value is None else min(whole("fit", name, value, least=1), FOREVER)


def _frequency(freq: Any) -> int | tuple[int, ...]:
    if isinstance(freq, Iterable) and not isinstance(freq, str):
        return tuple(whole("fit", "each epoch of validation_freq", epoch, least=1) for epoch in freq)
    return whole("fit", "validation_freq", freq, least=1)


def _leave(signum: int, result: Result) -> None:
    """Ends a run that a signal has ended: the process for SIGTERM, the call for Ctrl-C; a notebook gets the result."""
    if signum == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    remember(result)
    if not _in_notebook():
        interrupt = KeyboardInterrupt(f"after {int(result.state.step)} steps; jaxcb.last_result() is what they came to")
        interrupt.result = result  # pyright: ignore[reportAttributeAccessIssue]
        raise interrupt


def _in_notebook() -> bool:
    shell = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"


def _result(driver: Driver, directory: Path | None, context: Context) -> Result:
    carry = driver.live.carry()
    state = carry.train
    model = (
        state.params if state.adapter is None else state.adapter.deliver(state.params, state.model_state, state.rngs)
    )
    reason = "; ".join(f"{s.owner}: {s.reason}" if s.owner else s.reason for s in driver.stops) or None
    if driver.interrupted is not None:
        reason = "interrupted"
    elif reason:
        context.say(f"jaxcb: stopped in epoch {driver.stops[0].epoch + 1}: {reason}")
    history = driver.writer(HistoryWriter)
    return Result(
        state=state,
        model=model,
        history=history.history,
        stop_reason=reason,
        stopped_epoch=driver.stops[0].epoch if driver.stops else None,
        callback_states=carry.callbacks,
        executor=driver.executor.name,
        run_dir=None if context.trial else directory,
        files=() if context.trial else tuple(context.files),
    )
