"""`fit`, `evaluate` and `predict`: training, measuring and using a model."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, as_chain
from jaxcb._src.data import inputs as _data
from jaxcb._src.data.inputs import is_no_split, split_off, with_weights
from jaxcb._src.data.sources import BATCH_SIZE, sequential_source
from jaxcb._src.data.spec import rows_in
from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import Checkpointing, Execution, RunConfig, name_of
from jaxcb._src.loop.host.stages import Stage, stages_of
from jaxcb._src.loop.result import Result
from jaxcb._src.loop.run import run_training
from jaxcb._src.models.adapt import adapt
from jaxcb._src.models.trainable import Filter, variable_types
from jaxcb._src.sharding.arrays import common_device, with_automatic_axes
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.training.optimizer_groups import group_name
from jaxcb._src.training.probes import Evaluator, HostMetric, Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import EvalStep, Step
from jaxcb._src.training.training_config import Optimizer, Rate, TrainingConfig
from jaxcb._src.utils.errors import DataError, check_int, check_seed, shown
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.kept_programs import KeptFunction, KeptProgram, kept_program
from jaxcb._src.utils.program_key import key_of, tree_key
from jaxcb._src.utils.pytree import on_device


def fit(  # noqa: PLR0913
    model: Any,
    loss_fn: Callable[..., Any],
    train_data: Any,
    *,
    optimizer: Optimizer | Mapping[Filter, Optimizer] | None = None,
    learning_rate: Rate | Mapping[Filter, Rate] | None = None,
    trainable: Filter | Mapping[int, Filter] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    validation_data: Any = None,
    validation_split: float = 0.0,
    validation_freq: int | Sequence[int] = 1,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    controls: Mapping[str, float] | None = None,
    metrics: Mapping[Any, Probe | Evaluator | HostMetric] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    resume: bool = False,
    verbose: Literal[0, 1, 2] | None = None,
    execution: Execution = Execution(),
    checkpointing: Checkpointing = Checkpointing(),
) -> Result:
    """Trains a model.

    Args:
        model: a Flax NNX module, `jc.linen(module, sample_input)`, an Equinox module, or any pytree of floating
            arrays. An NNX module is updated at the end, and `result.model is model`. Or a `Result` or `TrainState`, to
            continue from: with its step, keys and the state of its optimizer. Epochs and the run's history begin again.
        loss_fn: `loss_fn(model, batch)` returns a scalar `loss`, `(loss, {name: value})` or `jc.Out`. It gets `key`,
            `train`, `controls`, `state` and `sample_weight` (float32 (rows,)) if it has parameters of these names.
        train_data: a pytree of arrays with a common leading axis, such as `(x, y)`, kept on the device; an iterable of
            batches (a list is one), such as a data loader or a grain dataset; a Hugging Face dataset; or a function
            `(epoch, controls)` that returns the data of an epoch.
        optimizer: an optax factory such as `optax.adam`, together with `learning_rate`: then callbacks can scale, set
            and read the rate. Or a ready-made optimizer, of which only the final updates are scaled. None for that of
            the `Result` or `TrainState` to continue from. Or a dict of groups of parameters to these, such as
            `{"backbone/**": optax.sgd, "head/**": optax.adam}`: patterns as in `trainable`, of which exactly one
            matches each parameter. Each rate then has the name of its group, as in `learning_rate/head`.
        learning_rate: a constant or an optax schedule (number of updates -> rate); or a dict of the groups to these.
        trainable: which parameters are trained: a pattern of paths such as `head/**`, a type of NNX Variables such as
            `nnx.LoRAParam`, a predicate of (path, array), `jc.models.AllBut(...)`, or a sequence of these. The others
            are read-only: they have no gradients and no optimizer state, and are neither copied nor saved. A dict of
            epochs (from 0) to these, such as `{0: "head/**", 5: "**"}`, trains more from an epoch on, in another
            program. None trains all; or, of a `Result` or `TrainState`, what it has trained.
        epochs: number of epochs to train.
        steps: number of updates to do; with `epochs`, whichever comes first.
        steps_per_epoch: steps of an epoch. None is one pass over the data.
        batch_size: rows of a batch, for arrays. None is 32.
        shuffle: whether arrays get a new order in each epoch, drawn from `seed` and the epoch.
        validation_data: as `train_data`, or a dict of named sets.
        validation_split: the last fraction of the rows of arrays to validate on, as in Keras.
        validation_freq: validate every n-th epoch, or after the listed (1-based) epochs.
        validation_steps: at most that many validation batches.
        validation_batch_size: rows of a validation batch. None is `batch_size`.
        callbacks: callbacks in the order in which their actions apply.
        sample_weight: a number per row, for data of arrays and a loss function with a parameter `sample_weight`. In
            a stream, and in validation data, the weights are the batch's key of that name: `{"x": x, "y": y,
            "sample_weight": w}`. No place in a tuple is taken for weights.
        class_weight: label -> weight, for a loss function with a parameter `sample_weight`. The labels are the second
            array of a batch, or its key `label`, `labels`, `y`, `target` or `targets`: integers of shape (rows,) or
            (rows, 1), or one-hot rows. A label that is not listed has weight 1. Validation is not weighted by it.
        controls: name -> number: scalars that `SetControl` changes and that the loss function may take.
        metrics: name -> a further metric, made with `jc.probe(fn, every=...)` for a function of the training step, with
            `jc.probes.evaluator(fn)` for a function of the model at each validation (the key may be a tuple of names,
            for as many results), or with `jc.probes.host_metric(fn)` for a function without arguments, called between
            dispatches.
        seed: of the order of the data and of the keys of the loss function.
        run_dir: directory of the run's files, or its address in a bucket, such as `s3://bucket/run`. It always has a
            `history.csv`, and the run is saved there at least every 60 seconds and at its end.
        resume: whether a run in `run_dir` is resumed: it ends as if it had never been interrupted. A finished one
            returns its result at once. If there is none, a new run begins.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line an epoch. None is the bar on a terminal, and lines
            elsewhere.
        execution: how the run is executed: executor, devices, debugging; see `Execution`.
        checkpointing: how the run is saved; see `Checkpointing`.

    Returns:
        A `Result`: `model`, `params`, `state`, `history`, `stop_reason`, `stopped_epoch`, `callback_states`.

    Raises:
        TypeError: for a model, loss function, optimizer or argument of an unsupported type.
        ValueError: for arguments out of range, and for those that do not fit together.
        DataError: for data that cannot be trained on.
        MissingMetricError: for a monitor that is never reported; it lists the names that exist.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> def loss_fn(params, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ params["w"] - y) ** 2)
        >>> result = jc.fit({"w": jnp.zeros((1, 1))}, loss_fn, (x, 3 * x), optimizer=optax.adam,
        ...                 learning_rate=0.1, epochs=100, callbacks=[jc.EarlyStopping("loss", patience=20)], verbose=0)
        >>> round(float(result.params["w"][0, 0]), 1)
        3.0

    Source: `keras.Model.fit`.
    """
    train_data = with_weights("fit", train_data, sample_weight)
    if not is_no_split(validation_split):
        train_data, validation_data = split_off("fit", train_data, validation_data, validation_split)
    config = RunConfig.of(
        "fit",
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
    )
    training = TrainingConfig(config.seed, optimizer, learning_rate, as_chain(callbacks), controls=controls or {})
    stages: tuple[Stage, ...] = ()
    types = variable_types(tuple(trainable.values()) if isinstance(trainable, Mapping) else trainable)
    if isinstance(trainable, Mapping):
        trainable, stages = stages_of(trainable, training)
    training = training.with_trainable(trainable, staged=bool(stages))
    given, adapter = [_first_state(model, training, types, copy=execution.copy)], model
    if not isinstance(model, Result | TrainState):
        adapter = given[0].adapter
    settings = {
        "model": type(getattr(model, "module", model)).__name__,
        "loss_fn": name_of(loss_fn),
        **_named("optimizer", optimizer),
        **_named("learning_rate", learning_rate),
    }
    if adapter is not model:
        adapter.release()
    del model  # the run has its own arrays; if the caller has no reference to these, they are freed before step 0
    functions = RunFunctions(
        Step(loss_fn, class_weight=class_weight), EvalStep(loss_fn, class_weight=class_weight), training.callbacks
    )
    return run_training(functions, given.pop(), train_data, config, settings=settings, stages=stages)


def evaluate(
    model: Any,
    loss_fn: Callable[..., Any],
    data: Any,
    *,
    batch_size: int = BATCH_SIZE,
    sample_weight: Any = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharding: Any = None,
) -> dict[str, float]:
    """Computes a model's loss and metrics over a data set, each batch weighted by its rows.

    Args:
        model: as for `fit`.
        loss_fn: as for `fit`; run in its evaluation mode.
        data: a pytree of arrays, or an iterable of batches.
        batch_size: rows of a batch, for arrays.
        sample_weight: as for `fit`.
        seed: of the key that a loss function may ask for.
        mesh: the devices, as for `Execution`.
        sharding: of the model, as for `Execution`.

    Returns:
        name -> float.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.evaluate({"w": jnp.ones(())}, lambda p, x: jnp.mean((p["w"] - x) ** 2), jnp.zeros(5), batch_size=2)
        {'loss': 1.0}
    """
    data = with_weights("evaluate", data, sample_weight)
    seed = check_seed("evaluate", seed)
    state, placement = _inference_state(model, seed, mesh, sharding)
    step = EvalStep(loss_fn)
    leaves, tree = jax.tree.flatten(state)
    kept = _kept_program("evaluate", step, state, placement)

    def measure(leaves: list[Any], batch: Any) -> Any:
        return placement.with_mesh(step)(jax.tree.unflatten(tree, leaves), placement.split(batch))

    def add(window: MetricAccumulator, leaves: list[Any], batch: Any) -> MetricAccumulator:
        return window.add(measure(leaves, batch), rows_in(batch))

    add_batch = _kept_function("add", add, kept, placement)
    window = None
    with placement.instead_of_a_set_mesh():
        for batch in _batches(data, batch_size, "evaluate", state, placement):
            if window is None:
                # the first batch alone decides the shapes of the sums, as a mean does not depend on the rows
                shapes = kept.fact(tree_key(batch), functools.partial(_empty_window, measure, leaves, batch))
                window = placement.put_everywhere(jax.tree.map(lambda s: on_device(np.zeros(s.shape, s.dtype)), shapes))
            window = placement.block_if_needed(add_batch(window, leaves, batch))
        assert window is not None
        means = jax.device_get(_kept_function("means", MetricAccumulator.means, kept, placement)(window))
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in means.items()}


def _empty_window(measure: Callable[..., Any], leaves: list[Any], batch: Any) -> Any:
    """Returns the shapes of the sums of a batch's metrics."""
    metrics = eval_shape(measure, leaves, batch)
    return jax.eval_shape(lambda: MetricAccumulator.empty(metrics))


def predict(
    model: Any,
    x: Any,
    *,
    batch_size: int = BATCH_SIZE,
    fn: Callable[[Any, Any], Any] | None = None,
    mesh: Mesh | None = None,
    sharding: Any = None,
) -> Any:
    """Runs a model over rows, in its evaluation mode.

    Args:
        model: as for `fit`.
        x: an array, or a pytree of arrays with a common leading axis.
        batch_size: rows of a batch.
        fn: `fn(model, batch)`; calls the model on the batch where None (Equinox models a row at a time).
        mesh: the devices, as for `Execution`.
        sharding: of the model, as for `Execution`.

    Returns:
        The outputs for all rows, as numpy arrays in the form that the model returns.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.predict({"w": jnp.array(2.0)}, jnp.arange(3.0), fn=lambda p, x: p["w"] * x).tolist()
        [0.0, 2.0, 4.0]
    """
    if fn is not None and not callable(fn):
        raise TypeError(f"predict: fn must be a function (model, batch), got {shown(fn)}.")
    state, placement = _inference_state(model, 0, mesh, sharding)
    leaves, tree = jax.tree.flatten(state)

    def run(leaves: list[Any], batch: Any) -> Any:
        state, batch = jax.tree.unflatten(tree, leaves), placement.split(batch)
        model = state.model()
        return fn(model, batch) if fn is not None else state.adapter.call(model, batch, state.model_state)

    kept = _kept_program("predict", fn, state, placement)
    run_batch = _kept_function("run", placement.with_mesh(run), kept, placement)
    out = []
    with placement.instead_of_a_set_mesh():
        for batch in _batches(x, batch_size, "predict", state, placement):
            out.append(jax.device_get(run_batch(leaves, batch)))
            rows = rows_in(batch)
            for leaf in jax.tree.leaves(out[-1]):
                if np.shape(leaf)[:1] != (rows,):
                    raise ValueError(
                        f"predict: the output for {rows} rows has shape {np.shape(leaf)}, expected {rows} rows."
                    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


def _named(setting: str, value: Any) -> dict[str, Any]:
    """Returns a setting for tables of runs; of a dict of groups one for each."""
    if not isinstance(value, Mapping):
        return {setting: name_of(value)}
    return {f"{setting}/{group_name(given)}": name_of(x) for given, x in value.items()}


def _first_state(model: Any, training: TrainingConfig, types: tuple[type, ...], *, copy: bool) -> TrainState:
    """Returns the train state that a run begins with: that of a new model, or of an earlier run.

    Args:
        model: as in `fit`.
        training: what is trained at first, and how.
        types: types of NNX Variables that are trained besides `nnx.Param`.
        copy: whether an NNX module stays as it is.
    """
    if not isinstance(model, Result | TrainState):
        return training.train_state(adapt(model, copy=copy, trained=types))
    begun = model.state if isinstance(model, Result) else model
    adapter = begun.adapter
    if copy and getattr(adapter, "in_place", False):
        adapter = adapt(adapter.model, copy=True)
    return training.continued(begun, adapter)


def _kept_program(owner: str, fn: Any, state: TrainState, placement: Placement) -> KeptProgram:
    """Returns the kept program of a function that is called with a model."""
    devices = (placement, placement.devices_key)
    return kept_program(lambda: (owner, key_of(fn), tree_key(state), key_of(devices, mutable=True)))


def _kept_function(name: str, fn: Callable[..., Any], kept: KeptProgram, placement: Placement) -> KeptFunction:
    """Returns a compiled function of arrays and one batch, which may have another shape in each call."""
    return KeptFunction(
        name,
        fn,
        kept,
        options=lambda: {"out_shardings": placement.everywhere},
        devices=placement.devices_key,
        varies=lambda *args: tree_key(args[-1]),
    )


def _inference_state(model: Any, seed: int, mesh: Mesh | None, sharding: Any) -> tuple[TrainState, Placement]:
    adapter = adapt(model)
    params, model_state, rngs = adapter.split()
    state = TrainState.create(params=params, model_state=model_state, rngs=rngs, adapter=adapter, seed=seed)
    placement = Placement.of(mesh, sharding, state)
    return placement.put_state(jax.tree.map(with_automatic_axes, state)), placement


def _batches(data: Any, batch_size: int, owner: str, state: TrainState, placement: Placement) -> Iterator[Any]:
    """Gives batches on the device.

    Raises:
        ValueError: without a mesh, for arrays on other devices than the model.
    """
    size = check_int(owner, "batch_size", batch_size, least=1, concrete=True)
    if _data.are_arrays(data):
        if placement.mesh is None:
            given = {"model": state.params, "data": data}
            common_device(owner, given, "Pass mesh=mesh, which places them", one=False)
        arrays, rows = _data.as_arrays(data, "data")
        for start in range(0, rows, size):
            batch = jax.tree.map(lambda x, i=start: on_device(x[i : i + size]), arrays)
            yield placement.put_everywhere(batch)
        return
    number = 0
    for number, batch in enumerate(sequential_source(data, "data", size, placement).iterate(0, {}), 1):
        arrays, _ = _data.as_arrays(batch, f"batch {number} of data")
        yield placement.put_batch(_data.copied(arrays))
    if number == 0:
        raise DataError(f"data ({type(data).__name__}) is empty: it gave no batch.")
