"""`Loop`: the compiled loop around a training step that the user writes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jaxcb._src.callbacks.model_checkpoint import ModelCheckpoint
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, Chain, as_chain
from jaxcb._src.data.resident import NO_DATA
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import Checkpointing, Execution, RunConfig
from jaxcb._src.loop.result import Result
from jaxcb._src.loop.run import run_training
from jaxcb._src.training.any_state import NO_WEIGHTS, AnyState
from jaxcb._src.training.probes import Evaluator, HostMetric, Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import EvalStep, Step
from jaxcb._src.utils.errors import takes


def _check_arguments(name: str, fn: Callable[..., Any], given: tuple[str, ...]) -> None:
    """Checks that a function takes what a run calls it with.

    Raises:
        TypeError: if not.
    """
    if not takes(fn, *given):
        with_data, cure = ("without data", "or pass train_data=") if len(given) == 1 else ("with data", "or pass none")
        raise TypeError(
            f"Loop.run: {with_data}, a run calls {name}({', '.join(given)}), but it has the arguments "
            f"{inspect.signature(fn)}. Write it with these, {cure}."
        )


def _check_weights(callbacks: Chain, form: AnyState) -> None:
    """Checks that callbacks which copy weights find some.

    Raises:
        ValueError: if nothing says which part of the state they are.
    """
    if form.holders:
        return
    for name, callback in callbacks.items():
        if callback.slots() or isinstance(callback, ModelCheckpoint):
            raise ValueError(f"{name} {NO_WEIGHTS}")


class Loop:
    """A compiled training loop around your own step, with callbacks.

    Args:
        train_step: `(train_state, batch) -> (train_state, metrics)`, pure; metrics is a dict of names to
            arrays. `Step(loss_fn)` is one that also serves `on_before_update`. For a run without data,
            `(state) -> (state, metrics)`; the loss function of a `Step` then gets None for its batch.
        eval_step: `(train_state, batch) -> metrics`, for validation; `(state) -> metrics` without data.
        callbacks: callbacks in the order in which their actions apply.

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

        Without data, such as in reinforcement learning, the step draws what it needs from the key of the train state:

        >>> def explore(state):
        ...     noise = jax.random.normal(state.step_key())
        ...     loss, grads = jax.value_and_grad(lambda p: (p - 3.0 + 0.1 * noise) ** 2)(state.params)
        ...     return state.apply_gradients(grads), {"loss": loss}
        >>> state = jc.TrainState.create(params=jnp.zeros(()), tx=optax.sgd(0.1))
        >>> result = jc.Loop(explore).run(state, steps=40, steps_per_epoch=10, verbose=0)
        >>> result.history["loss"].shape, bool(result.history["loss"][-1] < 0.1)
        ((4,), True)

        Its state may be any pytree, such as that of a sampler:

        >>> def walk(state):
        ...     key, own = jax.random.split(state["key"])
        ...     at = 0.5 * state["at"] + jax.random.normal(own)
        ...     return {"key": key, "at": at}, {"square": at**2}
        >>> start = {"key": jax.random.key(0), "at": jnp.zeros(())}
        >>> result = jc.Loop(walk).run(start, steps=2000, verbose=0)
        >>> sorted(result.model), abs(float(result.history["square"][0]) - 4 / 3) < 0.1
        (['at', 'key'], True)
    """

    def __init__(
        self,
        train_step: Callable[..., tuple[TrainState, Mapping[str, Any]]],
        eval_step: Callable[..., Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    ) -> None:
        if not callable(train_step):
            raise TypeError(f"train_step must be a function of (train_state, batch), got {type(train_step).__name__}.")
        if eval_step is not None and not callable(eval_step):
            raise TypeError(f"eval_step must be a function of (train_state, batch), got {type(eval_step).__name__}.")
        self.train_step, self.eval_step = train_step, eval_step
        self.callbacks = as_chain(callbacks)

    def run(  # noqa: PLR0913
        self,
        train_state: Any,
        train_data: Any = None,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        validation_data: Any = None,
        validation_freq: int | Sequence[int] = 1,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        metrics: Mapping[Any, Probe | Evaluator | HostMetric] | None = None,
        seed: int = 0,
        run_dir: str | Path | None = None,
        resume: bool = False,
        verbose: Literal[0, 1, 2] | None = None,
        execution: Execution = Execution(),
        checkpointing: Checkpointing = Checkpointing(),
    ) -> Result:
        """Trains.

        Args:
            train_state: the `TrainState` to start from; its arrays stay valid. Without data, any pytree: callbacks act
                on the `TrainState` within it, or on the fields `params` and `opt_state` of the objects that have both,
                such as Flax's `TrainState`. Without those, they can stop the run, but copy no weights and change no
                learning rate. `result.model` is then the state at the end, in this form.
            train_data: as for `fit`, without the function: a pytree of arrays with a common leading axis, kept on the
                device; or an iterable of batches (a list is one), which is iterated again in each epoch. None if the
                step takes no batch.
            epochs: number of epochs to train.
            steps: number of updates to do; with `epochs`, whichever comes first.
            steps_per_epoch: as for `fit`. Without data, None makes one epoch of all `steps`.
            batch_size: rows of a batch, for arrays. None is 32.
            shuffle: whether arrays get a new order in each epoch, drawn from `seed` and the epoch.
            validation_data: as for `fit`. Without training data, None calls `eval_step` with the train state alone.
            validation_freq: validate every n-th epoch, or after the listed (1-based) epochs.
            validation_steps: at most that many validation batches.
            validation_batch_size: rows of a validation batch. None is `batch_size`.
            metrics: as for `fit`; for a probe, `train_step` must be a `Step`.
            seed: as for `fit`; of the order of the data alone, because the train state has a key of its own.
            run_dir: directory of the run's files, or its address in a bucket, such as `s3://bucket/run`. It always has
                a `history.csv`, and the run is saved there at least every 60 seconds and at its end.
            resume: whether a run in `run_dir` is resumed: it ends as if it had never been interrupted. A finished one
                returns its result at once. If there is none, a new run begins.
            verbose: 0 for silence, 1 for a progress bar, 2 for a line an epoch. None is the bar on a terminal, and
                lines elsewhere.
            execution: as for `fit`, without `copy`.
            checkpointing: how the run is saved; see `Checkpointing`.

        Returns:
            A `Result`.

        Raises:
            TypeError: for an argument of an unsupported type.
            ValueError: for arguments out of range, and for those that do not fit together.
            DataError: for data that cannot be trained on.
            MissingMetricError: for a monitor that is never reported.
        """
        data, alone = ("train_state", "batch"), ("state",)
        of_state = train_data is None and validation_data is None
        if not isinstance(self.train_step, Step):
            _check_arguments("train_step", self.train_step, alone if train_data is None else data)
        if self.eval_step is not None and not isinstance(self.eval_step, EvalStep):
            _check_arguments("eval_step", self.eval_step, alone if of_state else data)
        form = AnyState(train_state)
        if not form.is_train_state and (train_data is not None or isinstance(self.train_step, Step)):
            raise TypeError(
                f"Loop.run: train_state must be a TrainState, such as jc.TrainState.create(params=..., tx=...), got a "
                f"{type(train_state).__name__}. A step of your own without data takes any pytree."
            )
        _check_weights(self.callbacks, form)
        config = RunConfig.of(
            "Loop.run",
            epochs=epochs,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            shuffle=shuffle,
            validation_data=validation_data,
            validation_freq=validation_freq,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            metrics=metrics,
            seed=seed,
            run_dir=run_dir,
            resume=resume,
            verbose=verbose,
            execution=execution,
            checkpointing=checkpointing,
            unsupported=("copy",),
        )
        step, eval_step = self.train_step, self.eval_step
        start = [form.start(train_state)]
        del train_state  # see `run_training`
        if train_data is None:
            train_data = NO_DATA
            step = step if isinstance(step, Step) else form.adapted(step, form.merge(start[0]))
            if eval_step is not None:
                with_batch = not of_state or isinstance(eval_step, EvalStep)
                eval_step = form.adapted_eval(eval_step, with_batch=with_batch)
                config = replace(config, validation=replace(config.validation, of_state=of_state))
        functions = RunFunctions(step, eval_step, self.callbacks)
        result = run_training(functions, start.pop(), train_data, config)
        return result if form.is_train_state else replace(result, model=form.merge(result.state))
