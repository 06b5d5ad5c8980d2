"""`fit`, `evaluate` and `predict` with real models, against numpy and against what callbacks promise."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from loop._runs import fit, loss_fn, make_data, make_params

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
X, Y = make_data()
VAL = make_data(20, seed=1)


def same_bits(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# Models


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.hidden(x)))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.25, deterministic=not train)(nn.relu(x)))


def net_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


class KeepModels(jc.Callback):
    """Keeps the whole model of each epoch, as copies."""

    kept: dict = jc.static()

    def on_epoch_end(self, state, metrics):
        def keep(run):
            self.kept[run.epoch] = jax.tree.map(np.array, (run.state.params, run.state.model_state))

        return state, jc.actions.Call(keep)


def nnx_arrays(model):
    _, params, stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return jax.tree.map(np.asarray, (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_nnx_module_trains_in_place_and_ends_with_the_best_weights_and_statistics(executor):
    kept = {}
    model = Net(nnx.Rngs(0))
    before = nnx_arrays(model)
    result = fit(
        executor,
        model=model,
        loss_fn=net_loss,
        learning_rate=0.3,
        epochs=6,
        callbacks=[jc.EarlyStopping(patience=50, restore_best_weights=True), KeepModels(kept)],
    )
    assert result.model is model
    best = int(result.callback_states["EarlyStopping"].best_epoch)
    assert best == int(np.nanargmin(result.history["val_loss"]))
    assert same_bits((result.params, result.state.model_state), kept[best])
    assert not same_bits(kept[0], kept[5])
    assert not same_bits(nnx_arrays(model), before)
    # what is restored is what evaluate and predict see
    at_best = float(result.history["val_loss"][best])
    assert jc.evaluate(model, net_loss, VAL)["loss"] == pytest.approx(at_best, rel=1e-5)
    prediction = jc.predict(model, VAL[0], batch_size=8)
    assert np.mean((prediction - VAL[1]) ** 2) == pytest.approx(at_best, rel=1e-5)


def test_copy_leaves_the_callers_module_as_it_was():
    model = Net(nnx.Rngs(0))
    before = nnx_arrays(model)
    result = fit(model=model, loss_fn=net_loss, epochs=1, callbacks=[], validation_data=None, copy=True)
    assert result.model is not model
    assert same_bits(nnx_arrays(model), before)
    assert not same_bits(nnx_arrays(result.model), before)


def test_a_linen_module_trains_and_moves_its_statistics():
    model = jc.linen(LinenNet(), X[:1])
    start = model.split()
    result = fit(model=model, loss_fn=net_loss, learning_rate=0.1, epochs=8, callbacks=[])
    assert result.history["val_loss"][-1] < result.history["val_loss"][0]
    assert not same_bits(result.state.model_state, start[1])
    assert same_bits(model.split(), start)
    values = jc.evaluate(result.model, net_loss, VAL, batch_size=7)
    assert values["loss"] == pytest.approx(float(result.history["val_loss"][-1]), rel=1e-5)
    assert jc.predict(result.model, VAL[0]).shape == (20, 1)


# evaluate and predict


def test_evaluate_weighs_by_rows_and_predict_keeps_their_order():
    params = jax.tree.map(np.asarray, make_params())
    error = X @ params["w"] + params["b"] - Y
    values = jc.evaluate(params, loss_fn, (X, Y), batch_size=16)  # 4 of 16 and one of 6
    assert values == pytest.approx({"loss": (error**2).mean(), "mae": np.abs(error).mean()}, rel=1e-5)
    assert all(type(v) is float for v in values.values())
    stream = ((X[i : i + 30], Y[i : i + 30]) for i in range(0, 70, 30))
    assert jc.evaluate(params, loss_fn, stream) == pytest.approx(values, rel=1e-5)
    out = jc.predict(params, X, batch_size=16, fn=lambda p, x: {"y": x @ p["w"] + p["b"], "x": x})
    np.testing.assert_allclose(out["y"] - Y, error, atol=1e-6)
    np.testing.assert_array_equal(out["x"], X)
    assert isinstance(out["x"], np.ndarray)
    streamed = jc.predict(params, iter([X[:50], X[50:]]), fn=lambda p, x: x)
    np.testing.assert_array_equal(streamed, X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data \(list\) is empty"),
        (iter([]), "is empty"),
        (X[:0], "0 rows"),
        (3, "data is a int, expected a pytree of arrays"),
        (np.array(["a"]), "dtype <U1"),
    ],
    ids=["list", "iterator", "rows", "number", "texts"],
)
def test_evaluate_and_predict_say_what_is_wrong_with_data(data, message):
    with pytest.raises(jc.errors.DataError, match=message):
        jc.evaluate({"w": jnp.ones(())}, lambda p, b: p["w"], data)
    if not hasattr(data, "__next__"):
        with pytest.raises(jc.errors.DataError, match=message):
            jc.predict({"w": jnp.ones(())}, data, fn=lambda p, b: b)


def test_predict_wants_a_row_for_a_row():
    with pytest.raises(ValueError, match=r"the output for 32 rows has shape \(\), expected 32 rows"):
        jc.predict(make_params(), X, fn=lambda p, x: jnp.sum(x))
    with pytest.raises(TypeError, match="cannot be called on inputs"):
        jc.predict(make_params(), X)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        jc.predict(make_params(), X, batch_size=0, fn=lambda p, x: x)


# Callbacks in a run


@pytest.mark.parametrize("executor", EXECUTORS)
def test_terminate_on_nan_stops_at_the_very_step(executor):
    poisoned = X.copy()
    poisoned[40] = np.nan  # the third batch
    result = fit(
        executor,
        data=(poisoned, Y),
        shuffle=False,
        validation_data=None,
        callbacks=[jc.TerminateOnNaN()],
        steps_per_execution=5,
    )
    assert int(result.state.step) == 3
    assert result.stop_reason == "TerminateOnNaN: loss is nan at step 3"
    assert result.stopped_epoch == 0
    assert result.history.step.tolist() == [3]
    assert np.isnan(result.history["loss"][0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_plateau_multiplies_with_a_schedule_and_the_logged_rate_is_the_effective_one(executor):
    schedule = optax.exponential_decay(0.25, 1, 0.5)
    result = fit(
        executor,
        learning_rate=schedule,
        optimizer=optax.sgd,
        epochs=5,
        # nothing is an improvement of this size: a cut after each report but the first
        callbacks=[jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=1e6)],
    )
    last = np.array([4, 9, 14, 19, 24])  # updates before each epoch's last one
    np.testing.assert_allclose(result.history["base_learning_rate"], schedule(last), rtol=1e-6)
    # an epoch's end sees the rate of its last update: the cut comes after
    scale = np.array([1.0, 1.0, 0.5, 0.25, 0.125])
    np.testing.assert_allclose(result.history["learning_rate"], schedule(last) * scale, rtol=1e-6)
    rate = result.state.learning_rate
    assert float(rate.scale) == 0.0625
    assert float(rate.effective()) == pytest.approx(float(schedule(25)) * 0.0625)


@pytest.mark.parametrize(
    ("callback", "rates"),
    [
        (jc.LearningRateScheduler(lambda epoch: 0.5 if epoch < 2 else 0.125), [0.5, 0.5, 0.125]),
        (jc.LearningRateScheduler(lambda epoch, lr: lr * 0.5), [0.5, 0.25, 0.125]),
        (jc.LearningRateScheduler(optax.linear_schedule(1.0, 0.0, 20), by="step"), [0.8, 0.55, 0.3]),
    ],
    ids=["table", "lr", "step"],
)
def test_a_scheduler_sets_the_base_rate_of_updates(callback, rates):
    result = fit(learning_rate=1.0, optimizer=optax.sgd, epochs=3, callbacks=[callback], validation_data=None)
    np.testing.assert_allclose(result.history["learning_rate"], rates, rtol=1e-6)


def test_a_scheduler_and_a_plateau_multiply():
    callbacks = [
        jc.LearningRateScheduler(lambda epoch: 0.5 if epoch < 2 else 0.125),
        jc.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=1e6),
    ]
    result = fit(learning_rate=1.0, optimizer=optax.sgd, epochs=4, callbacks=callbacks, validation_data=None)
    np.testing.assert_allclose(result.history["learning_rate"], [0.5, 0.5, 0.0625, 0.03125], rtol=1e-6)
    np.testing.assert_allclose(result.history["base_learning_rate"], [0.5, 0.5, 0.125, 0.125], rtol=1e-6)


def test_a_ready_made_optimizer_is_scaled_at_its_updates():
    cut = jc.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=1e6)
    given = {"epochs": 4, "callbacks": [cut], "validation_data": None}
    ready = fit(optimizer=optax.sgd(0.1), learning_rate=None, **given)
    exact = fit(optimizer=optax.sgd, learning_rate=0.1, **given)
    assert ready.history["lr_scale"].tolist() == [1.0, 1.0, 0.5, 0.25]
    assert "learning_rate" not in ready.history
    np.testing.assert_allclose(ready.params["w"], exact.params["w"], rtol=1e-5)


def test_controls_are_set_by_callbacks_and_read_by_the_loss():
    class Anneal(jc.Callback):
        def on_epoch_begin(self, state, metrics):
            return state, jc.actions.SetControl("beta", 1.0 / (1.0 + metrics.epoch))

    def loss(params, batch, controls):
        return loss_fn(params, batch)[0], {"beta": controls["beta"]}

    result = fit(loss_fn=loss, controls={"beta": 7.0}, callbacks=[Anneal()], epochs=3)
    np.testing.assert_allclose(result.history["beta"], [1.0, 0.5, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(result.history["val_beta"], [1.0, 0.5, 1 / 3], rtol=1e-6)
    assert float(result.state.controls["beta"]) == pytest.approx(1 / 3)


def test_class_weights_weigh_training_and_not_validation():
    labels = (Y[:, 0] > 0).astype(np.int32)

    def loss(params, batch, sample_weight):
        x, y = batch
        error = (x @ params["w"])[:, 0] + params["b"] - y
        return jnp.mean(sample_weight * error**2)

    params = jax.tree.map(np.asarray, make_params())
    squares = ((X @ params["w"])[:, 0] + params["b"] - labels) ** 2
    result = fit(
        loss_fn=loss,
        data=(X, labels),
        validation_data=(X, labels),
        class_weight={0: 3.0},
        learning_rate=0.0,
        epochs=1,
        callbacks=[],
    )
    np.testing.assert_allclose(result.history["loss"], [(squares * np.where(labels == 0, 3.0, 1.0)).mean()], rtol=1e-5)
    np.testing.assert_allclose(result.history["val_loss"], [squares.mean()], rtol=1e-5)


# A run's surroundings


def test_the_seed_decides_order_and_keys_and_nothing_else_does():
    def loss(params, batch, key):
        return loss_fn(params, batch)[0] + 0.1 * params["b"] * jax.random.normal(key)

    given = {"loss_fn": loss, "epochs": 2, "callbacks": [], "validation_data": None}
    one, same, other = fit(seed=np.int64(1), **given), fit(seed=1, **given), fit(seed=2, **given)
    assert same_bits(one.params, same.params)
    assert not same_bits(one.params, other.params)


def test_a_run_leaves_the_callers_state_usable_and_can_be_gone_on_from():
    step = jc.Step(loss_fn)
    state = jc.TrainState.create(params=make_params(), tx=jc.adjustable_lr(optax.adam, learning_rate=0.05))
    loop = jc.Loop(step)
    first = loop.run(state, (X, Y), epochs=1, batch_size=16, verbose=0)
    assert int(state.step) == 0
    assert float(state.params["b"]) == 0.0
    again = loop.run(state, (X, Y), epochs=1, batch_size=16, verbose=0)
    assert same_bits(first.params, again.params)


def test_one_callback_value_serves_several_runs():
    callbacks = jc.chain(jc.EarlyStopping("loss", patience=1, min_delta=1e6))
    runs = [fit(callbacks=callbacks, validation_data=None) for _ in range(2)]
    assert [r.stopped_epoch for r in runs] == [1, 1]
    assert same_bits(runs[0].params, runs[1].params)


def test_vector_metrics_are_averaged_and_kept_out_of_tables(tmp_path):
    def loss(params, batch):
        x, _ = batch
        return loss_fn(params, batch)[0], {"per_feature": jnp.mean(x, 0)}

    seen = []
    watch = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["per_feature"]))
    result = fit(loss_fn=loss, epochs=1, callbacks=[watch, jc.CSVLogger(tmp_path / "log.csv")], validation_data=None)
    np.testing.assert_allclose(seen[0], X.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.history["per_feature"][0], X.mean(0), rtol=1e-4, atol=1e-6)
    assert "per_feature" not in (tmp_path / "log.csv").read_text()


def test_integer_and_boolean_metrics_are_averaged_as_numbers():
    def loss(params, batch):
        x, _ = batch
        return loss_fn(params, batch)[0], {
            "rows": jnp.int32(x.shape[0]),
            "large": x.shape[0] > 8,
            "half": x.shape[0] / 2,
        }

    result = fit(loss_fn=loss, epochs=1, callbacks=[jc.EarlyStopping("rows", mode="min")], validation_data=None)
    weights = np.array([16] * 4 + [6])
    assert result.history["rows"][0] == pytest.approx((weights * weights).sum() / 70)
    assert result.history["large"][0] == pytest.approx(64 / 70)
    assert result.history["half"][0] == pytest.approx((weights * weights / 2).sum() / 70)


def test_half_precision_parameters_stay_so():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())
    result = fit(model=params, epochs=2)
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    assert result.history["loss"].dtype == np.float32
    assert result.history["loss"][-1] < result.history["loss"][0]


@pytest.mark.parametrize(
    ("executor", "rows", "size", "steps"),
    [("looped", 1, 32, 1), ("looped", 3, 1, 3), ("looped", 32, 32, 1), ("looped", 33, 32, 2), ("stepped", 33, 32, 2)],
)
def test_odd_sizes_of_data_and_batch(executor, rows, size, steps):
    result = fit(executor, data=make_data(rows), batch_size=size, epochs=2, callbacks=[], validation_data=make_data(1))
    assert result.history.step.tolist() == [steps, 2 * steps]
    assert np.isfinite(result.history["val_loss"]).all()


@pytest.mark.parametrize("length", [{"epochs": 10**12}, {"epochs": None, "steps": 10**12}], ids=str)
def test_a_run_may_be_as_long_as_nobody_can_wait(length):
    stopping = jc.EarlyStopping("loss", patience=1, min_delta=1e6)
    result = fit(**length, steps_per_execution=10**12, validation_data=None, callbacks=[stopping])
    assert result.stopped_epoch == 1


def test_a_train_step_that_cannot_be_hashed():
    class TrainStep:
        __hash__ = None

        def __call__(self, state, batch):
            return state, {"loss": jnp.zeros(())}

    state = jc.TrainState.create(params=make_params())
    result = jc.Loop(TrainStep()).run(state, (X, Y), epochs=1, verbose=0)
    assert result.history["loss"].tolist() == [0.0]


def test_a_run_within_a_run():
    inner, alone = [], {"epochs": 2, "validation_data": None, "callbacks": []}
    outer = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: inner.append(fit(**alone)))
    result = fit(epochs=2, callbacks=[outer], validation_data=None)
    assert int(result.state.step) == 10
    assert same_bits(inner[0].params, inner[1].params)


def test_an_interrupt_leaves_no_thread_and_closes_the_files(tmp_path):
    def interrupt(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    callbacks = [jc.LambdaCallback(on_epoch_end=interrupt), jc.CSVLogger(tmp_path / "log.csv")]
    with pytest.raises(KeyboardInterrupt):
        fit(data=[(X, Y)], batch_size=None, callbacks=callbacks, validation_data=None)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert not [t for t in threading.enumerate() if t.name == "jaxcb-data"]
