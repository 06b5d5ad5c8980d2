"""What enters a run comes out as what it was: numbers, weights, modes; nothing is dropped without a word."""

import json
import warnings

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from hypothesis import given, settings

import jaxcb as jc

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5]])


def weights():
    return {"w": jnp.zeros((3, 1))}


def squares(p, batch):
    x, y = batch
    return jnp.mean((x @ p["w"] - y) ** 2)


def fit(epochs=2, loss=squares, data=(X, Y), model=None, **how):
    how = {"optimizer": optax.adam, "learning_rate": 0.1, "batch_size": 16, "verbose": 0} | how
    how = {k: v for k, v in how.items() if v is not None}
    return jc.fit(weights() if model is None else model, loss, data, epochs=epochs, **how)


# Means


@settings(max_examples=6)
@given(
    rows=st.integers(1, 70),
    batch=st.sampled_from([7, 16]),
    kind=st.sampled_from(["constant", "integers", "halves"]),
    executor=st.sampled_from(["looped", "stepped"]),
)
def test_means_of_constants_integers_and_halves_are_exact(rows, batch, kind, executor):
    random = np.random.default_rng(rows)
    values = {
        "constant": np.full(rows, 0.1, np.float32),
        "integers": np.full(rows, random.integers(-999, 999), np.float32),
        "halves": np.full(rows, random.integers(-999, 999) / 2, np.float32),
    }[kind]
    data = (np.zeros(70, np.float32)[:rows], values)
    loss = lambda p, b: (p["w"] * 0.0, {"value": b[1][0]})  # noqa: E731
    result = fit(
        1, loss, data, {"w": jnp.zeros(())}, batch_size=batch, validation_data=data,
        execution=jc.Execution(executor=executor),
    )  # fmt: skip
    for found in (result.history["value"], result.history["val_value"]):
        assert found[0] == values[0]
    assert jc.evaluate(result.model, loss, data, batch_size=batch)["value"] == values[0]


def test_the_mean_of_a_constant_is_reached_in_each_member():
    ones = np.ones((41, 1), np.float32)
    loss = lambda p, b: (p["w"] * 0.0, {"accuracy": jnp.float32(0.7)})  # noqa: E731
    result = jc.sweep(
        lambda seed: {"w": jnp.zeros(())}, loss, ones, over={"seed": [0, 1, 2]}, optimizer=optax.sgd(0.1),
        epochs=1, validation_data=ones, verbose=0,
    )  # fmt: skip
    assert (result.history["accuracy"] == np.float32(0.7)).all()
    assert (result.history["val_accuracy"] == np.float32(0.7)).all()


# Weights of rows


def weighed(p, b, sample_weight):
    error = ((b[0] @ p["w"])[:, 0] - b[1][:, 0]) ** 2
    return jnp.sum(error * sample_weight) / jnp.sum(sample_weight), {"weight": sample_weight.sum()}


def test_weights_of_rows_follow_their_rows_and_the_split():
    own = np.arange(64, dtype=np.float32)
    result = fit(1, weighed, sample_weight=own, validation_split=0.25, batch_size=48)
    assert result.history["weight"][0] == own[:48].sum()
    assert result.history["val_weight"][0] == own[48:].sum()
    keyed = fit(1, lambda p, b, sample_weight: weighed(p, (b["x"], b["y"]), sample_weight),
                {"x": X, "y": Y, "sample_weight": own}, batch_size=64)  # fmt: skip
    assert keyed.history["weight"][0] == own.sum()
    assert jc.evaluate(result.model, weighed, (X, Y), sample_weight=own)["weight"] > 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sample_weight": np.ones(63)}, "different numbers of rows"),
        ({"sample_weight": np.ones((64, 1))}, r"shape \(16, 1\), expected \(16,\)"),
        ({"sample_weight": np.ones(64), "loss": squares}, "loss_fn does not use it"),
        ({"data": [(X, Y)], "sample_weight": np.ones(64), "batch_size": None}, "into its batches"),
        ({"data": (X, Y, np.ones(64))}, "a third array is data"),
    ],
)
def test_weights_that_would_be_guessed_are_refused(how, words):
    with pytest.raises(ValueError, match=words):
        fit(1, **({"loss": weighed} | how))


# What a step reports


def test_arrays_are_recorded_in_the_history_in_lines_and_on_request_in_columns(tmp_path):
    loss = lambda p, b: (squares(p, b), {"each": jnp.mean(b[0], 0), "one": b[0][0, :1], "deep": {"a": b[0][0, 0]}})  # noqa: E731
    loggers = [jc.callbacks.JSONLogger("log.jsonl"), jc.CSVLogger("log.csv", arrays=True), jc.CSVLogger("plain.csv")]
    how = {"run_dir": tmp_path, "callbacks": loggers, "shuffle": False, "loss": loss}
    result = fit(2, **how)
    history = result.history
    assert history["each"].shape == (2, 3)
    assert history["one"].shape == (2, 1)
    assert "deep/a" in history
    np.testing.assert_allclose(history["each"][0], X.mean(0), rtol=1e-4, atol=1e-6)
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "each[0],each[1],each[2]" in header
    assert "each" not in (tmp_path / "plain.csv").read_text()
    assert '"each": [' in (tmp_path / "log.jsonl").read_text()
    assert set(history.columns()) >= {"step", "epoch", "each[2]", "one[0]", "loss"}
    longer = fit(3, **how, resume=True)
    np.testing.assert_array_equal(longer.history["each"][:2], history["each"])
    assert longer.history["each"].shape == (3, 3)
    stop = jc.EarlyStopping("loss", patience=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert jc.replay([stop], rows).stopped_epoch == jc.replay([stop], tmp_path).stopped_epoch
    assert jc.replay([stop], result.history).stopped_epoch is None


def test_arrays_of_members_are_recorded():
    loss = lambda p, b: (squares(p, b), {"each": jnp.mean(b[0], 0)})  # noqa: E731
    result = jc.sweep(
        lambda seed: weights(), loss, (X, Y), over={"seed": [0, 1]}, optimizer=optax.sgd(0.1), epochs=2, verbose=0
    )
    assert result.history["each"].shape == (2, 2, 3)
    assert result.member(1).history["each"].shape == (2, 3)
    assert "each" not in result.table()


def test_a_large_array_is_in_memory_alone_and_says_so(tmp_path):
    loss = lambda p, b: (squares(p, b), {"large": jnp.zeros(1025)})  # noqa: E731
    with pytest.warns(RuntimeWarning, match="'large' has 1025 numbers"):
        result = fit(1, loss, run_dir=tmp_path)
    assert result.history["large"].shape == (1, 1025)


def test_imaginary_parts_of_probes_are_not_dropped():
    with pytest.raises(TypeError, match="it returned 'z' of dtype complex64"):
        fit(1, metrics={"z": jc.probe(lambda look: look.params["w"].sum() * 1j)})


@pytest.mark.parametrize("kind", [jc.HostCallback, jc.LambdaCallback])
@pytest.mark.parametrize("name", ["gap", "loss"])
def test_what_a_ported_callback_sets_in_logs_is_refused(kind, name):
    if kind is jc.LambdaCallback:
        callback = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({name: 1.5}))
    else:

        class Gap(jc.HostCallback):
            def on_epoch_end(self, epoch, logs=None):
                logs[name] = 1.5

        callback = Gap()
    with pytest.raises(TypeError, match=rf"sets logs\['{name}'\], which nothing reads.*jc.probes.evaluator"):
        fit(1, callbacks=[callback])


# Integers of 64 bits


@pytest.mark.parametrize(("ids", "dtype"), [([2**31], np.int64), ([-(2**31) - 1], np.int64), ([2**32], np.uint64)])
@pytest.mark.parametrize("where", ["train", "validation", "stream", "evaluate", "predict"])
def test_long_integers_that_do_not_fit_are_refused(ids, dtype, where):
    long = (X[:1], np.asarray(ids, dtype))
    loss = lambda p, b: (jnp.mean((b[0] @ p["w"]) ** 2), {"id": b[1].max()})  # noqa: E731
    calls = {
        "train": lambda: fit(1, loss, long),
        "stream": lambda: fit(1, loss, [long], batch_size=None),
        "validation": lambda: fit(1, loss, (X[:1], np.zeros(1, np.int32)), validation_data=long),
        "evaluate": lambda: jc.evaluate(weights(), loss, long),
        "predict": lambda: jc.predict(weights(), long, fn=lambda p, b: b[1]),
    }
    with pytest.raises(jc.errors.DataError, match=f"{np.dtype(dtype)} and numbers from .*do not fit into"):
        calls[where]()


def test_long_integers_that_fit_are_taken():
    loss = lambda p, b: (jnp.mean((b[0] @ p["w"]) ** 2), {"id": b[1].max()})  # noqa: E731
    assert fit(1, loss, (X[:2], np.asarray([-(2**31), 2**31 - 1]))).history["id"][0] > 0


# Modes


class Frozen(nnx.Module):
    def __init__(self, rngs):
        self.backbone = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs))

    def __call__(self, x):
        return self.head(self.backbone(x))


class FrozenLinen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="backbone")(x)
        return nn.Dense(1, name="head")(nn.BatchNorm(use_running_average=not train, name="other")(x))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("until", [None, 1])
def test_freeze_keeps_the_statistics_of_what_it_freezes_and_no_others(until):
    net = Frozen(nnx.Rngs(0))
    before = np.asarray(net.backbone.mean[...])
    loss = lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2)  # noqa: E731
    fit(2, loss, (X + 3, Y), net, callbacks=[jc.callbacks.Freeze("backbone/**", until_epoch=until)])
    assert np.array_equal(before, np.asarray(net.backbone.mean[...])) == (until is None)
    assert not np.array_equal(before, np.asarray(nnx.state(net)["head"]["layers"][0]["mean"][...]))
    model = jc.linen(FrozenLinen(), X[:1])
    result = fit(2, loss, (X + 3, Y), model, callbacks=[jc.callbacks.Freeze("backbone/**", until_epoch=until)])
    kept = result.state.model_state["batch_stats"]
    assert (not kept["backbone"]["mean"].any()) == (until is None)
    assert kept["other"]["var"].any()


def test_a_summary_counts_what_is_trained(capsys):
    callbacks = [jc.callbacks.ModelSummary(verbose=0), jc.callbacks.Freeze("backbone/**")]
    fit(1, lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2), (X, Y), Frozen(nnx.Rngs(0)), callbacks=callbacks)
    assert "28 parameters · 10 trained, 18 not" in capsys.readouterr().out


def test_a_best_only_checkpoint_beside_averages_holds_what_was_validated(tmp_path):
    for name, swap in (("a", False), ("b", True)):
        save = jc.ModelCheckpoint(tmp_path / name, save_best_only=True, save_weights_only=True)
        raw = jc.ModelCheckpoint(tmp_path / f"raw{name}", save_weights_only=True)
        callbacks = [jc.SwapEMAWeights(swap, decay=0.5), save, raw]
        result = fit(3, validation_data=(X, Y), callbacks=callbacks)
        best = jc.load(tmp_path / name, what="params")
        np.testing.assert_allclose(squares(best, (X, Y)), result.history.best("val_loss")["val_loss"], rtol=1e-5)
        last = jc.load(tmp_path / f"raw{name}", what="params")
        same = np.allclose(squares(last, (X, Y)), result.history["val_loss"][-1], rtol=1e-5)
        assert same == swap  # a checkpoint of each epoch has the averages if they stay in the model


def test_an_average_begins_and_warms_up():
    how = {"model": jnp.zeros(()), "loss": lambda w, b: jnp.mean(w * b), "data": jnp.ones(6), "optimizer": optax.sgd}
    how |= {"batch_size": 2, "learning_rate": 1.0}  # weights -1, -2, ... -6
    late = fit(2, **how, callbacks=[jc.SwapEMAWeights(decay=0.5, start_epoch=1)])
    assert float(late.params) == 0.5 * (0.5 * -4 + 0.5 * -5) + 0.5 * -6
    slow = fit(1, **how, callbacks=[jc.SwapEMAWeights(decay=0.9, warmup=10)])
    first = 2 / 11 * -1 + 9 / 11 * -2
    np.testing.assert_allclose(float(slow.params), 3 / 12 * first + 9 / 12 * -3, rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"data": (X[:32], Y[:32]), "validation_data": (X[:50], Y[:50])}])
def test_a_metric_of_another_shape_in_a_smaller_batch_is_named(how):
    def each_row(p, batch):
        return squares(p, batch), {"errors": jnp.abs(batch[0] @ p["w"] - batch[1])[:, 0]}

    with pytest.raises(ValueError, match=r"the metric 'errors' has shape \(2,\) in a batch of 2 rows, and \(16,\) in"):
        fit(1, each_row, **{"data": (X[:50], Y[:50])} | how)


# Said before the first step


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"validation_data": (X, Y), "validation_freq": 5}, "no validation comes in this run of 2 epochs"),
        ({"validation_data": (X, Y), "validation_freq": [7, 4]}, "the first one is that of epoch 4"),
        ({"metrics": {"norm": jc.probes.grad_norm(every=9)}}, "'norm' is measured every 9 steps, and this run has 8"),
        ({"callbacks": [jc.callbacks.GradientAccumulation(3)]}, "the gradients of the last 2 are not applied"),
        ({"validation_freq": 2}, "there is no validation, and so no use of validation_freq: pass validation_data="),
        ({"validation_steps": 3, "validation_batch_size": 9}, "no use of validation_steps, validation_batch_size"),
        ({"execution": jc.Execution(eval_every=3)}, "no use of eval_every"),
        (
            {"callbacks": [jc.ModelCheckpoint("x", every_n_epochs=3)]},
            "ModelCheckpoint does nothing in this run",
        ),
        ({"callbacks": [jc.ModelCheckpoint("x", save_freq=9)]}, r"it begins at step 9 \(save_freq=9\)"),
        ({"callbacks": [jc.SwapEMAWeights(start_epoch=2)]}, r"it begins at epoch 3 \(start_epoch=2\)"),
        (
            {"callbacks": [jc.EarlyStopping("loss", restore_best_weights=True), jc.SwapEMAWeights()]},
            "EarlyStopping restores its weights at the end of the run, and then SwapEMAWeights",
        ),
    ],
)
def test_what_never_comes_is_said(how, words):
    with pytest.warns(RuntimeWarning, match=words):
        fit(2, **how)


def test_an_accumulation_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="updates once in 16 steps, and this run has 8: it would train nothing"):
        fit(2, callbacks=[jc.callbacks.GradientAccumulation(16)])


def test_nothing_is_said_of_a_run_that_does_what_was_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema, stop = jc.SwapEMAWeights(), jc.EarlyStopping(patience=9, restore_best_weights=True)
        fit(2, validation_data=(X, Y), validation_freq=2, callbacks=[ema, stop, jc.callbacks.GradientAccumulation(4)])
        fit(2, callbacks=[jc.SwapEMAWeights(start_epoch=1, start_step=8)])


# Going on


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: r.state])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_run_goes_on_with_its_optimizer(wrap, accumulate):
    callbacks = [jc.callbacks.GradientAccumulation(2)] if accumulate else []
    how = {"shuffle": False, "callbacks": callbacks}
    once, first = fit(4, **how), fit(2, **how)
    on = fit(2, model=wrap(first), **how)
    assert int(on.state.step) == int(once.state.step) == 16
    np.testing.assert_allclose(on.params["w"], once.params["w"], rtol=1e-5)
    np.testing.assert_array_equal(first.params["w"], first.state.params["w"])  # its arrays stay valid
    if not accumulate:
        same = fit(2, model=wrap(first), optimizer=None, learning_rate=None, **how)
        np.testing.assert_array_equal(same.params["w"], on.params["w"])


def test_an_nnx_model_goes_on():
    net = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    loss = lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2)  # noqa: E731
    first = fit(1, loss, model=net)
    before = np.asarray(net.kernel[...])
    on = fit(1, loss, model=first)
    assert on.model is net
    assert not np.array_equal(before, np.asarray(net.kernel[...]))


def test_another_optimizer_is_refused():
    first = fit(1)
    with pytest.raises(ValueError, match="that of another optimizer: they differ at"):
        fit(1, model=first, optimizer=optax.sgd)
    with pytest.raises(ValueError, match="learning_rate was given without optimizer"):
        fit(1, model=first, optimizer=None)


# Results


def test_a_result_is_a_few_lines_and_says_that_it_does_not_pickle():
    import pickle

    result = fit(2, validation_data=(X, Y))
    assert len(repr(result).splitlines()) <= 8
    assert "val_loss=" in repr(result)
    assert result._repr_html_().startswith('<div class="jaxcb">')
    with pytest.raises(TypeError, match=r"a Result cannot be pickled.*run_dir="):
        pickle.dumps(result)
    assert result.history.best("val_loss")["epoch"] == 1
    assert pickle.loads(pickle.dumps(result.history)).best("loss") == result.history.best("loss")


def test_a_nan_of_a_validation_stops_the_run():
    data = (X, np.full_like(Y, np.nan))
    result = fit(3, validation_data=data, callbacks=[jc.TerminateOnNaN(monitor="val_loss")])
    assert result.stopped_epoch == 0
    assert result.stop_reason is not None
    assert "val_loss is nan" in result.stop_reason


def test_a_lambda_has_all_hooks_of_keras():
    seen = []
    names = ("on_batch_begin", "on_batch_end", "on_test_begin", "on_test_end", "on_train_begin", "on_epoch_end")
    note = {name: (lambda *args, name=name: seen.append(name)) for name in names}
    fit(1, validation_data=(X, Y), callbacks=[jc.LambdaCallback(**note, on_predict_end=lambda logs: None)])
    assert seen == ["on_train_begin", *["on_batch_begin", "on_batch_end"] * 4, *names[2:4], "on_epoch_end"]
    with pytest.raises(TypeError, match="A validation is a single event here"):
        jc.LambdaCallback(on_test_batch_end=print)
    with pytest.raises(TypeError, match="two names of one hook"):
        jc.LambdaCallback(on_batch_end=print, on_train_batch_end=print)


def test_a_text_is_made_by_a_function_of_the_values(tmp_path):
    seen = []

    class Samples(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Text("sample", lambda values: seen.append(values) or "text", values={"n": 3})

    fit(1, run_dir=tmp_path, callbacks=[Samples()])
    assert seen[0]["n"] == 3
    assert seen[0]["epoch"] == 1
    assert seen[0]["loss"] > 0


def test_patience_in_steps_watches_a_steps_own_value_and_a_validation_as_before():
    values = np.float32([0.1, 0.2, 0.4] + [0.5] * 27)[:, None]
    loss = lambda p, b: (-p["w"], {"accuracy": b.mean()})  # noqa: E731
    how = {"loss": loss, "data": values, "model": {"w": jnp.zeros(())}, "shuffle": False, "batch_size": 1}
    for monitor in ("accuracy", lambda m: m["accuracy"] * 2):
        stop = jc.EarlyStopping(monitor, mode="max", patience=3, patience_in="steps")
        assert int(fit(1, **how, callbacks=[stop]).state.step) == 7
    stop = jc.EarlyStopping("val_accuracy", patience=30, patience_in="steps")
    result = fit(4, **how, validation_data=values, callbacks=[stop])
    assert int(result.state.step) == 60


class ForPmap(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, axis_name="devices")(x))


@pytest.mark.parametrize("where", ["module", "loss"])
def test_an_axis_of_pmap_is_refused_with_what_to_drop(where):
    model = jc.linen(ForPmap(), X[:1]) if where == "module" else weights()
    by_hand = lambda p, b: jax.lax.pmean(squares(p, b), "devices")  # noqa: E731
    loss = (lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2)) if where == "module" else by_hand
    with pytest.raises(ValueError, match=r"reduces over the axis 'devices'.*Drop axis_name='devices'.*BatchNorm"):
        fit(1, loss, model=model)
