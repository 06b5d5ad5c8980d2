"""ModelCheckpoint in runs: what is saved when, and that the files hold what their names say."""

import csv
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import ROWS, fit, make_data
from orbax.checkpoint import v1 as ocp

import jaxcb as jc

NAN = float("nan")
STEPS_PER_EPOCH = -(-ROWS // 16)


# By example


def names(callback, source):
    """The names under which a recorded run would have been saved."""
    replayed = jc.replay(callback, source)
    return [jc.actions.fill(a, epoch=e) for e, actions in enumerate(replayed.actions) for a in actions]


def test_keras_examples_by_replay():
    losses = {"val_loss": [0.5, 0.7, 0.2, 0.2]}
    template = "{epoch:02d}-{val_loss:.2f}"
    assert names(jc.ModelCheckpoint(template), losses) == ["01-0.50", "02-0.70", "03-0.20", "04-0.20"]
    assert names(jc.ModelCheckpoint(template, save_best_only=True), losses) == ["01-0.50", "03-0.20"]
    assert names(jc.ModelCheckpoint(template, save_best_only=True, mode="max"), losses) == ["01-0.50", "02-0.70"]
    threshold = jc.ModelCheckpoint(template, save_best_only=True, initial_value_threshold=0.4)
    assert names(threshold, losses) == ["03-0.20"]
    assert names(jc.ModelCheckpoint(template, every_n_epochs=2), losses) == ["02-0.70", "04-0.20"]


def test_nan_is_never_the_best():
    found = names(jc.ModelCheckpoint("{epoch}", save_best_only=True), {"val_loss": [NAN, 0.5, NAN, 0.4, NAN]})
    assert found == ["2", "4"]


def test_the_monitor_may_be_a_function_of_metrics():
    gap = jc.ModelCheckpoint("{epoch}", lambda m: m["val_loss"] - m["loss"], mode="min", save_best_only=True)
    assert names(gap, {"loss": [1.0, 0.1, 0.1], "val_loss": [1.5, 1.0, 0.2]}) == ["1", "3"]


def test_without_a_use_for_it_a_missing_monitor_is_no_error():
    assert names(jc.ModelCheckpoint("{epoch}"), {"loss": [1.0, 2.0]}) == ["1", "2"]
    for needs in ({"save_best_only": True}, {"keep_best": 1}):
        with pytest.raises(jc.errors.MissingMetricError, match=r"'val_loss'.*Metrics here: .*loss"):
            names(jc.ModelCheckpoint("{epoch}", **needs), {"loss": [1.0, 2.0]})


def test_a_missing_monitor_is_found_before_the_first_step_also_where_saves_are_due_by_steps(tmp_path):
    steps = []
    watch = jc.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    for cadence in ({"save_freq": 2}, {"every_minutes": 1.0}, {}):
        save = jc.ModelCheckpoint("saves/{step}", "val_acc", save_best_only=True, **cadence)
        with pytest.raises(jc.errors.MissingMetricError, match=r"'val_acc'.*val_loss"):
            fit(callbacks=[save, watch], run_dir=tmp_path, epochs=1, overwrite=True)
    assert steps == []
    assert not (tmp_path / "saves").exists()


def test_what_is_saved_is_printed(capsys, tmp_path):
    save = jc.ModelCheckpoint("{epoch:02d}", "loss", save_best_only=True, mode="max", verbose=1)
    result = fit(callbacks=[save], run_dir=tmp_path, epochs=2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    first = result.history["loss"][0]
    assert said == [
        f"Epoch 1: loss is {first:.5f}, the first value, saving to 01",
        f"Epoch 2: loss did not improve from {first:.5f}",
    ]


# Real saves


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b):
    """The same structure and the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def captures(into, hook="on_epoch_end"):
    keep = jc.actions.Call(lambda run: into.append(run.state))
    return jc.make_callback(**{hook: lambda state, metrics: (state, keep)})


def weights(state):
    return {"params": state.params, "model_state": state.model_state}


def directories(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir())


RISING = {"learning_rate": 0.6}  # so large a rate that the validation loss goes up and down


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("executor", "async_"), [("looped", True), ("stepped", False)])
def test_the_best_file_holds_the_weights_of_the_best_epoch(executor, async_, tmp_path):
    states = []
    save = jc.ModelCheckpoint("saves/best", save_best_only=True, save_weights_only=True, async_=async_)
    result = fit(executor, callbacks=[save, captures(states)], run_dir=tmp_path, epochs=7, **RISING)
    losses = result.history["val_loss"]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1  # the last one is another, so that this test can fail
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(ocp.load(str(tmp_path / "saves" / "best"), like(weights(states[best]))), weights(states[best]))
    assert ocp.metadata(str(tmp_path / "saves" / "best")).custom_metadata["epoch"] == best
    assert directories(tmp_path / "saves") == ["best"]
    assert tmp_path / "saves" / "best" in result.files


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_saves_by_steps_hold_the_weights_of_their_step(executor, tmp_path):
    states = []
    save = jc.ModelCheckpoint("saves/{epoch}-{batch}-{step}-{val_loss:.3f}", save_freq=3)
    watch = captures(states, "on_batch_end")
    result = fit(executor, callbacks=[save, watch], run_dir=tmp_path, epochs=2)
    known = [NAN, result.history["val_loss"][0], result.history["val_loss"][0]]
    wanted = [f"1-3-3-{known[0]:.3f}", f"2-1-6-{known[1]:.3f}", f"2-4-9-{known[2]:.3f}"]
    assert directories(tmp_path / "saves") == wanted
    for step, name in zip((3, 6, 9), wanted, strict=True):
        equal(ocp.load(str(tmp_path / "saves" / name), like(states[step - 1])), states[step - 1])


def test_best_only_by_steps_where_keras_crashes(tmp_path):
    states = []
    save = jc.ModelCheckpoint("saves/{step}", save_best_only=True, save_freq=STEPS_PER_EPOCH)
    result = fit(callbacks=[save, captures(states)], run_dir=tmp_path, epochs=6, **RISING)
    losses, best, wanted = result.history["val_loss"], math.inf, []
    for epoch, loss in enumerate(losses):
        if loss < best:
            best, wanted = loss, [*wanted, str((epoch + 1) * STEPS_PER_EPOCH)]
    assert directories(tmp_path / "saves") == sorted(wanted)
    for name in wanted:  # a validation at the due step is the one that is compared
        state = states[int(name) // STEPS_PER_EPOCH - 1]
        equal(ocp.load(str(tmp_path / "saves" / name), like(state)), state)


def test_a_validation_in_an_epochs_middle_counts(tmp_path):
    save = jc.ModelCheckpoint("saves/{step}", save_best_only=True)
    fit(callbacks=[save], run_dir=tmp_path, epochs=2, eval_every=2)
    best, wanted = math.inf, []
    with (tmp_path / "history.csv").open() as file:
        for row in csv.DictReader(file):
            if row["val_loss"] != "NA" and float(row["val_loss"]) < best:
                best, wanted = float(row["val_loss"]), [*wanted, row["step"]]
    assert len(wanted) > 1
    assert directories(tmp_path / "saves") == sorted(wanted)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("async_", [False, True])
def test_the_latest_and_the_best_stay_together(async_, tmp_path):
    (tmp_path / "saves" / "99").mkdir(parents=True)
    (tmp_path / "saves" / "99" / "mine").touch()
    values = iter([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0])
    save = jc.ModelCheckpoint("saves/{epoch}", "value", mode="min", max_to_keep=2, keep_best=2, async_=async_)
    result = fit(
        callbacks=[save],
        run_dir=tmp_path,
        epochs=7,
        metrics={"value": jc.probes.evaluator(lambda _: next(values))},
        **RISING,
    )
    wanted = {"6", "7", "2", "4", "99"}
    assert set(directories(tmp_path / "saves")) == wanted
    assert {p.name for p in result.files if p.parent.name == "saves"} == wanted - {"99"}


def test_what_a_run_ends_with(tmp_path):
    stop = jc.EarlyStopping(patience=9, restore_best_weights=True)
    save = jc.ModelCheckpoint("saves/{epoch}-{step}", every_n_epochs=4, save_at_end=True, save_weights_only=True)
    result = fit(callbacks=[save, stop], run_dir=tmp_path, epochs=6, **RISING)
    steps = [4 * STEPS_PER_EPOCH, 6 * STEPS_PER_EPOCH]
    assert directories(tmp_path / "saves") == [f"4-{steps[0]}", f"6-{steps[1]}"]
    equal(ocp.load(str(tmp_path / "saves" / f"6-{steps[1]}"), like(weights(result.state))), weights(result.state))


def test_saves_by_the_clock(tmp_path):
    now = jc.fit(
        jnp.zeros(2),
        lambda p, x: jnp.mean((x @ p - 1.0) ** 2),
        np.ones((8, 2), np.float32),
        optimizer=optax.sgd,
        learning_rate=0.1,
        batch_size=4,
        epochs=2,
        callbacks=[
            jc.ModelCheckpoint("saves/{step}", every_minutes=0),
            jc.ModelCheckpoint("saves/never", every_minutes=60),
        ],
        run_dir=tmp_path,
        verbose=0,
    )
    assert directories(tmp_path / "saves") == ["1", "2", "3", "4"]
    assert int(now.state.step) == 4


def test_nothing_stays_of_a_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = jc.ModelCheckpoint("a/{epoch}", async_=True)
    result = fit(callbacks=[inside, jc.ModelCheckpoint(tmp_path / "b")], epochs=2, fast_dev_run=2)
    assert list(tmp_path.iterdir()) == []
    assert result.files == ()


def test_two_that_save_to_one_path_are_refused(tmp_path):
    steps = []
    watch = jc.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    both = [jc.ModelCheckpoint("{epoch}"), jc.ModelCheckpoint("{epoch}", save_freq=2), watch]
    with pytest.raises(ValueError, match=r"ModelCheckpoint(_2)? and ModelCheckpoint(_2)? both save to"):
        fit(callbacks=both, run_dir=tmp_path)
    nested = [jc.ModelCheckpoint("all"), jc.ModelCheckpoint("all/{epoch}"), watch]
    with pytest.raises(ValueError, match=r"is within the checkpoint .*all"):
        fit(callbacks=nested, run_dir=tmp_path, overwrite=True)
    for own in ("checkpoints", "checkpoints/{epoch}", "result/{epoch}"):
        with pytest.raises(ValueError, match="below run_dir is where the run saves the checkpoints"):
            fit(callbacks=[jc.ModelCheckpoint(own), watch], run_dir=tmp_path, overwrite=True)
    meet = [jc.ModelCheckpoint("{epoch}"), jc.ModelCheckpoint("{val_loss:.0f}")]
    assert steps == []
    with pytest.raises(ValueError, match="both write"):
        fit(callbacks=meet, run_dir=tmp_path, overwrite=True, data=make_data(20), learning_rate=0.0, epochs=9)


def test_training_does_not_notice(tmp_path):
    plain = fit(callbacks=[], epochs=3)
    save = jc.ModelCheckpoint("{step}", save_freq=2, async_=True, keep_best=1)
    saved = fit(callbacks=[save], epochs=3, run_dir=tmp_path)
    equal(plain.params, saved.params)
    np.testing.assert_array_equal(plain.history["val_loss"], saved.history["val_loss"])
