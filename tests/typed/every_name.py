# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false
# In JAX the types of `jnp.ones`, `jax.jit` and others are partly unknown, and optax is not marked as typed.
"""A user's script with every public name, for type checkers; it runs, too (`test_every_name.py`).

python tests/typed/every_name.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxcb as jc

Params = dict[str, jax.Array]


def loss_fn(params: Params, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    error = batch @ params["w"] - 1.0
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def make_params(seed: int = 0) -> Params:
    return {"w": jnp.full(2, 0.5)}


def rows() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)), jnp.float32)


def new_state() -> jc.TrainState:
    return jc.TrainState.create(params=make_params(), tx=jc.adjustable_lr(optax.sgd, learning_rate=0.1))


# Callbacks in a loop of one's own


class StopBelow(jc.Callback):
    """A callback of one's own, with a number and a name."""

    threshold: float
    monitor: str = jc.static(default="val_loss")

    def init(self) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> tuple[Any, jc.actions.Stop]:
        return state + 1, jc.actions.Stop(metrics[self.monitor] < self.threshold, "{val_loss:.3f} is low enough")


class StopWorst(jc.PopulationCallback):
    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> tuple[Any, jc.actions.Stop]:
        loss = jnp.where(jnp.asarray(metrics.alive), metrics["loss"], -jnp.inf)
        return state, jc.actions.Stop(loss == loss.max(), "highest loss of all members")


class StopsLate(jc.callbacks.StoppingCallback):
    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> tuple[Any, jc.actions.Stop]:
        return state, jc.actions.Stop(self.may_stop(metrics) & (metrics["loss"] < 0.0))


class Counter(jc.Struct):
    seen: jax.Array
    name: str = jc.static(default="counter")


class Watcher(jc.HostCallback):
    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        print(epoch, sorted(logs or {}))


def loop_by_hand() -> None:
    callbacks = jc.chain(StopBelow(0.6), jc.EarlyStopping(patience=2), jc.ReduceLROnPlateau(factor=0.5, patience=1))
    assert_type(callbacks, jc.callbacks.Chain)
    callback_state = callbacks.init()
    state = new_state()
    actions: Any = None
    for epoch, loss in enumerate([0.9, 0.5]):
        metrics = jc.Metrics({"val_loss": loss}, epoch=epoch, step=epoch + 1)
        callback_state, actions = callbacks.on_epoch_end(callback_state, metrics)
        state = jc.apply(actions, state)
        assert_type(state, jc.TrainState)
        if jc.stop_requested(actions):
            break
        print(jc.stop_reasons(actions), [action.owner for action in jc.fired(actions)])
    assert jc.actions.stop_requested(actions)
    stop = jc.actions.fired(actions)[0]
    assert_type(stop, jc.actions.Action)
    assert jc.actions.fill(stop)
    assert jc.actions.stop_reasons(actions)
    counter = Counter(jnp.zeros(()))
    assert_type(counter.replace(seen=jnp.ones(())), Counter)
    made = jc.make_callback(on_epoch_end=lambda state, m: (state, jc.actions.Stop(m["loss"] < 0.1)))
    assert_type(made, jc.Callback)
    assert set(made.hooks()) <= set(jc.callbacks.HOOKS)
    StopWorst().on_epoch_end((), jc.Metrics({"loss": jnp.ones(2)}, alive=jnp.ones(2, bool)))


def recorded(folder: Path) -> None:
    callbacks = jc.chain(jc.CSVLogger("by_hand.csv"), jc.History())
    state = callbacks.init()
    with jc.Recorder(folder / "by_hand", callbacks=callbacks, verbose=0) as recorder:
        state, actions = callbacks.on_epoch_end(state, jc.Metrics({"loss": 0.5}, step=1))
        recorder.perform(actions, step=1)
    assert recorder.files
    assert recorder.stop_reason is None


def inside_my_own_program() -> None:
    def distance(params: Params) -> jax.Array:
        return jnp.sum((params["w"] - 3.0) ** 2)

    def step(state: jc.TrainState) -> tuple[jc.TrainState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(distance)(state.params)
        return state.apply_gradients(grads), {"loss": loss}

    def train(state: jc.TrainState) -> Any:
        return jc.scan(jc.EarlyStopping("loss"), step, state, 4, steps_per_epoch=2).state.step

    assert jax.jit(train)(new_state()) == 4


# Training


def fitted(folder: Path) -> jc.Result:
    result = jc.fit(
        make_params(),
        loss_fn,
        rows(),
        optimizer=optax.adam,
        learning_rate=1e-2,
        epochs=2,
        batch_size=4,
        validation_split=0.25,
        verbose=0,
        run_dir=folder / "run",
        execution=jc.Execution(executor="looped", mesh=None, sharding=None, fast_dev_run=0),
        checkpointing=jc.Checkpointing(overwrite=True, on_error="warn"),
        metrics={
            "gradients": jc.probes.grad_norm(),
            "update": jc.probes.update_norm(every=2),
            "weights": jc.probes.param_norm(per_layer=True),
            "ratio": jc.probes.update_ratio(),
            "first": jc.probe(first_weight),
            "val_weight": jc.probes.evaluator(lambda params: float(params["w"][0])),
            "temperature": jc.probes.host_metric(lambda: 21.5),
        },
        callbacks=[
            jc.EarlyStopping("val_loss", mode="min", patience_in="epochs", threshold_mode="rel", patience=5),
            jc.ReduceLROnPlateau("val_loss", mode="auto", patience_in="steps", patience=50),
            jc.ModelCheckpoint("best", save_best_only=True, save_freq="epoch"),
            jc.BackupAndRestore(str(folder / "backup"), save_freq="epoch"),
            jc.CSVLogger("log.csv"),
            jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
            jc.LearningRateScheduler(halved, by="epoch"),
            jc.ProgressBar(verbose=0),
            jc.SwapEMAWeights(of="params"),
            jc.TerminateOnNaN(),
            jc.TensorBoard("logs", write_graph=False, update_freq="epoch"),
            jc.callbacks.JSONLogger("log.jsonl", every="epoch"),
            jc.callbacks.LearningRateMonitor(every=2),
            jc.callbacks.LogTo(lambda step, values: None),
            jc.callbacks.NormMonitor(every=2),
            jc.callbacks.Throughput(),
            jc.callbacks.Timer(duration=3600.0),
            jc.callbacks.Freeze("w", until_epoch=0),
            jc.callbacks.SpikeDetection("loss", action="skip"),
            jc.callbacks.TrackerLogger(Shelf()),
            StopsLate(min_epochs=2),
            Watcher(),
        ],
    )
    assert_type(result, jc.Result)
    assert_type(result.stop_reason, str | None)
    assert_type(result.files, tuple[Path, ...])
    assert result.history["loss"].shape == (2,)
    assert_type(jc.evaluate(result.model, loss_fn, rows()), dict[str, float])
    jc.predict({"w": result.params["w"]}, rows(), fn=lambda params, x: x @ params["w"])
    restored = jc.load(folder / "run" / "best", make_params())
    assert set(restored) == {"w"}
    assert jc.last_result() is None or isinstance(jc.last_result(), jc.Result)
    return result


def halved(epoch: int, rate: jax.Array) -> jax.Array:
    return rate / 2


def first_weight(look: jc.probes.StepView) -> Any:
    return look.params["w"][0]


def other_callbacks() -> None:
    """Those of services, of populations, and of what one small run does not need."""
    others: tuple[jc.Callback | jc.HostCallback, ...] = (
        jc.RemoteMonitor("http://localhost:9000", every="epoch"),
        jc.callbacks.GradientAccumulation({0: 1, 4: 2}),
        jc.callbacks.HTMLReport("report.html"),
        jc.callbacks.HubUpload("me/digits", kind="export"),
        jc.callbacks.MLflowLogger("experiment"),
        jc.callbacks.MedianStopping(),
        jc.callbacks.ModelSummary(verbose=0),
        jc.callbacks.PopulationBasedTraining(every=2),
        jc.callbacks.StochasticWeightAveraging(start_epoch=1),
        jc.callbacks.SuccessiveHalving(),
        jc.callbacks.TrackioLogger("project"),
        jc.callbacks.WandbLogger("project"),
    )
    assert len({type(callback) for callback in others}) == len(others)


def same_classes() -> None:
    """The namespace of callbacks has those of the top level, too."""
    pairs: tuple[tuple[type[object], type[object]], ...] = (
        (jc.callbacks.BackupAndRestore, jc.BackupAndRestore),
        (jc.callbacks.CSVLogger, jc.CSVLogger),
        (jc.callbacks.EarlyStopping, jc.EarlyStopping),
        (jc.callbacks.History, jc.History),
        (jc.callbacks.LambdaCallback, jc.LambdaCallback),
        (jc.callbacks.LearningRateScheduler, jc.LearningRateScheduler),
        (jc.callbacks.ModelCheckpoint, jc.ModelCheckpoint),
        (jc.callbacks.ProgressBar, jc.ProgressBar),
        (jc.callbacks.ReduceLROnPlateau, jc.ReduceLROnPlateau),
        (jc.callbacks.RemoteMonitor, jc.RemoteMonitor),
        (jc.callbacks.SwapEMAWeights, jc.SwapEMAWeights),
        (jc.callbacks.TensorBoard, jc.TensorBoard),
        (jc.callbacks.TerminateOnNaN, jc.TerminateOnNaN),
    )
    assert all(one is other for one, other in pairs)


def looped() -> None:
    def train_step(state: jc.TrainState, batch: jax.Array) -> tuple[jc.TrainState, dict[str, Any]]:
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
        seldom = jc.probes.reported(loss, when=state.step % 2 == 0)
        assert_type(seldom, jc.probes.Reported)
        return state.apply_gradients(grads), {"loss": loss, "seldom": seldom}

    loop = jc.Loop(train_step, callbacks=[jc.ReduceLROnPlateau("loss", patience=3)])
    assert_type(loop.run(new_state(), rows(), epochs=1, batch_size=8, verbose=0), jc.Result)
    ready = jc.Loop(jc.Step(loss_fn), jc.EvalStep(loss_fn))
    ready.run(new_state(), rows(), epochs=1, batch_size=8, validation_data=rows(), verbose=0)


# Models


def models() -> None:
    dense = jc.linen(nn.Dense(3), jnp.ones((1, 2)))
    assert_type(dense, jc.models.Linen)
    assert_type(jc.models.linen(nn.Dense(3), jnp.ones((1, 2))), jc.models.Linen)

    def linen_loss(model: jc.models.LinenModel, batch: jax.Array) -> jax.Array:
        return jnp.mean(model(batch) ** 2)

    result = jc.fit(dense, linen_loss, rows(), optimizer=optax.sgd(0.1), epochs=1, verbose=0)
    print(jc.model_summary(dense, linen_loss, rows()), result.stop_reason)

    def counted(params: Params, batch: jax.Array, state: dict[str, Any]) -> jc.Out:
        loss, metrics = loss_fn(params, batch)
        return jc.Out(loss, metrics=metrics, state={"seen": state["seen"] + 1})

    for model in (jc.with_state(make_params(), {"seen": 0}), jc.models.with_state(make_params(), {"seen": 0})):
        jc.fit(model, counted, rows(), optimizer=optax.sgd(0.1), epochs=1, verbose=0)
    adapter: jc.models.Adapter = jc.models.adapt(make_params())
    assert isinstance(adapter, jc.models.Pytree)
    some = jc.TrainState.create(params={"a": jnp.ones(1), "b": jnp.ones(1)}, trainable=jc.models.AllBut("b"))
    assert some.params["b"] is None or "b" not in some.params


# Sweeps and replays


def searched(history: Any) -> None:
    points = jc.search.grid({"seed": range(2)})
    jc.search.draws(2, {"a": jc.search.uniform(0, 1), "b": jc.search.integers(1, 3), "c": jc.search.log_uniform(1, 2)})
    found = jc.sweep(
        make_params,
        loss_fn,
        rows(),
        over=points,
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=1,
        strategy="vmap",
        validation_split=0.25,
        verbose=0,
    )
    assert_type(found, jc.search.SweepResult)
    assert_type(found.best("val_loss"), jc.Result)
    rates = jc.lr_find(make_params(), loss_fn, rows(), optimizer=optax.adam, rates=4, steps=4)
    assert_type(rates, jc.search.LRFind)
    replayed = jc.replay(jc.EarlyStopping("loss", patience=1), history)
    assert isinstance(replayed, jc.search.Replay)
    log = jc.logs.read_log({"loss": [1.0, 0.5]})
    assert_type(log, jc.logs.Records)

    def is_numbers(path: Path) -> bool:
        return path.suffix == ".numbers"

    @jc.logs.log_format("numbers, one a line", is_numbers)
    def read_numbers(path: Path) -> list[dict[str, float]]:
        return [{"loss": float(line)} for line in path.read_text().splitlines()]

    assert jc.logs.LogFormat("numbers", is_numbers, read_numbers).name == "numbers"
    batch = jc.search.largest_batch_size(
        make_params(), loss_fn, rows(), optimizer=optax.sgd(0.1), memory=10_000_000, resident=False
    )
    assert_type(batch, jc.search.LargestBatch)


# Actions


def actions(folder: Path) -> tuple[jc.actions.Action, ...]:
    """One of each that a callback may return."""
    values: dict[str, Any] = {"loss": 0.5}
    fresh: dict[str, Any] = {"loss": True}
    control: tuple[jc.actions.ControlAction, ...] = (
        jc.actions.Average("ema", 0.99),
        jc.actions.Exploit(jnp.zeros((), jnp.int32)),
        jc.actions.Restore("best"),
        jc.actions.ScaleHyperparameter("b1", 0.5),
        jc.actions.ScaleLearningRate(0.5, floor=1e-6),
        jc.actions.ScaleUpdates(0.0, where="embed/**"),
        jc.actions.SetAccumulation(2),
        jc.actions.SetControl("temperature", 0.5),
        jc.actions.SetLearningRate(0.1),
        jc.actions.SkipUpdate(when=False),
        jc.actions.Snapshot("best"),
        jc.actions.Stop(reason="enough"),
        jc.actions.Swap("ema"),
    )
    weights = [action for action in control if isinstance(action, jc.actions.WeightAction)]
    assert {action.slot for action in weights} == {"best", "ema"}
    host: tuple[jc.actions.HostAction, ...] = (
        jc.actions.Backup(),
        jc.actions.Call(lambda run: None),
        jc.actions.Checkpoint(str(folder / "model"), "model", mode="min"),
        jc.actions.Profile(True),
        jc.actions.Summarize(),
    )
    logs: tuple[jc.actions.LogAction, ...] = (
        jc.actions.JSONLine(values, fresh, "log.jsonl"),
        jc.actions.LogCSV(values, fresh, "log.csv"),
        jc.actions.LogHTTP(values, fresh, "http://localhost:9000"),
        jc.actions.LogHistory(values, fresh),
        jc.actions.LogProgress(values, fresh, verbose=2),
        jc.actions.LogToFunction(values, fresh, lambda step, values: None),
        jc.actions.LogTracker(values, fresh, Shelf()),
        jc.actions.MLflowLog(values, fresh),
        jc.actions.Print("loss {loss}"),
        jc.actions.TrackioLog(values, fresh, "project"),
        jc.actions.WandbLog(values, fresh),
        jc.actions.WriteReport("report.html"),
    )
    assert any(isinstance(action, jc.actions.ReportAction) for action in logs)
    board: tuple[jc.actions.TensorBoardAction, ...] = (
        jc.actions.Embedding("words", jnp.ones((2, 3))),
        jc.actions.Figure("figure", lambda values: None),
        jc.actions.Graph(),
        jc.actions.HParams(),
        jc.actions.Histogram("weights", jnp.ones(3)),
        jc.actions.Image("image", jnp.zeros((2, 2))),
        jc.actions.LogConfiguration(),
        jc.actions.Scalars(values),
        jc.actions.Text("text", "loss {loss}", by="epoch"),
    )
    assert any(isinstance(action, jc.actions.SeriesAction) for action in board)
    assert any(isinstance(action, jc.actions.LazyLogAction) for action in board)
    return (*control, *host, *logs, *board)


# Writers and trackers


class Beep(jc.actions.LogAction):
    times: int = jc.static(default=1)


@jc.writers.writer(Beep)
class Beeper(jc.writers.Writer):
    def __init__(self, context: jc.writers.Context) -> None:
        super().__init__(context)

    def write(self, record: Any) -> None:
        print("beep " * record.action.times)


class Shelf(jc.writers.Tracker):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def open(self, run: jc.writers.TrackedRun) -> str | None:
        return run.id

    def send(self, records: list[jc.writers.TrackedRecord]) -> None:
        if any(record.step < 0 for record in records):
            raise jc.writers.RefusedError("a step before the first one")
        self.steps += [record.step for record in records]


def written(path: Path) -> None:
    assert_type(jc.writers.writer_for(Beep), type[jc.writers.Writer])
    assert jc.writers.HTTPTracker("http://localhost:9000").timeout == 10.0
    saved = jc.writers.CheckpointSaved(path, step=1, epoch=1, kind="export")
    assert_type(saved.kind == "run", bool)
    assert jc.Run(path).run_dir == path


# The laws, the errors, several processes


def lawful() -> None:
    callback = jc.EarlyStopping(patience=1)
    driven = jc.testing.drive(callback, {"val_loss": [0.5, 0.75, 0.1]})
    assert_type(driven, jc.testing.Driven)
    assert_type(driven.at("on_eval_end")[0], jc.testing.HookCall)
    checks = (
        jc.testing.check_callback,
        jc.testing.check_causality,
        jc.testing.check_chain,
        jc.testing.check_chunks,
        jc.testing.check_fixed_form,
        jc.testing.check_one_meaning,
        jc.testing.check_purity,
        jc.testing.check_resume,
    )
    for check in checks:
        check(callback, max_examples=1)
    jc.testing.check_population(jc.callbacks.MedianStopping(), max_examples=1)
    assert len(jc.testing.LAWS) == 7
    assert len(jc.testing.builtin_examples()) > 20
    stream = jc.testing.Stream({"loss": (0.5,)}, (True,), (1,))
    assert_type(stream, jc.testing.Stream)
    assert jc.testing.streams(("loss",), max_size=2) is not None


def refused() -> None:
    kinds = (jc.errors.CallbackError, jc.errors.DataError, jc.errors.MissingMetricError, jc.errors.ProcessError)
    try:
        stopping = jc.EarlyStopping("val_los", mode="min")
        stopping.on_epoch_end(stopping.init(), jc.Metrics({"val_loss": 0.5}))
    except kinds as error:
        print(error)
    jc.distributed.initialize()
    held = jc.callbacks.NamedWeights(jnp.zeros((), bool), {"w": jnp.ones(2)})
    assert set(held.value) == {"w"}
    probes: tuple[object, ...] = (
        jc.probes.Probe(first_weight, every=2),
        jc.probes.Evaluator(lambda params: params["w"]),
        jc.probes.HostMetric(lambda: 21.5),
    )
    assert len(probes) == 3
    jc.clear_caches()


def main(folder: Path) -> None:
    loop_by_hand()
    recorded(folder)
    inside_my_own_program()
    result = fitted(folder)
    other_callbacks()
    same_classes()
    looped()
    models()
    searched(result.history)
    assert len(actions(folder)) == len({type(action) for action in actions(folder)})
    written(folder)
    lawful()
    refused()
    print("done with", jc.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
