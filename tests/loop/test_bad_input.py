"""What users get wrong: each is refused before the first step, with a message that names the cure."""

import itertools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit as fit_runs
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc

X, Y = make_data(8)


@pytest.fixture(autouse=True)
def never_runs(monkeypatch):
    """All of this is found out before anything is compiled."""

    def train(self):
        raise AssertionError("the run began")

    monkeypatch.setattr("jaxcb._src.loop.host.driver.Driver.train", train)


def fit(**changes):
    given = {"data": (X, Y), "batch_size": None, "epochs": 1, "callbacks": [], "validation_data": None} | changes
    return fit_runs(given.pop("executor", "looped"), **given)


def refused(error, message, **changes):
    with pytest.raises(error, match=message) as caught:
        fit(**changes)
    return caught.value


def reports(**metrics):
    return lambda params, batch: (params["b"] ** 2, {k: jnp.float32(v) for k, v in metrics.items()})


def hook(name="Mine", **hooks):
    return jc.make_callback(name=name, **hooks)


# Data

DATA = {
    "no rows": ((X[:0], Y[:0]), "train_data is empty: its arrays have 0 rows"),
    "no batches": ([], r"train_data \(list\) is empty: it gave no batch"),
    "nothing": (None, "train_data is a NoneType, expected a pytree of arrays"),
    "a number": (3, "train_data is a int, expected a pytree of arrays"),
    "unequal arrays": ((X, Y[:5]), r"different numbers of rows \(0: 8, 1: 5\)"),
    "unequal named arrays": ({"image": X, "label": Y[:5]}, r"\(image: 8, label: 5\); they must be equal"),
    "a scalar array": ((X, np.float32(1)), "1 is a scalar; every array needs a leading axis"),
    "a scalar beside arrays": ({"x": X, "weight": 2.0}, "weight is a scalar"),
    "objects": ((np.array([object()] * 4, object),), "0 has dtype object, which no device can hold"),
    "texts": ({"x": X, "name": np.array(["a"] * 8)}, "name has dtype <U1"),
    "dates": ((np.array(["2020-01-01"] * 4, "datetime64[D]"),), "dtype datetime64"),
    "lists of numbers": (([[1.0, 2.0]], [[3.0]]), "is a scalar; every array needs a leading axis"),
    "endless": (itertools.cycle([(X, Y)]), "endless stream, so an epoch of it never ends: pass steps_per_epoch="),
    "endless count": (itertools.count(), "endless stream"),
    "scalars for batches": ([1.0, 2.0], "the first batch of train_data: the array is a scalar"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_trained_on(case):
    data, message = DATA[case]
    refused(jc.errors.DataError, message, data=data)


def test_a_generator_for_several_epochs():
    refused(
        jc.errors.DataError,
        "generator, which can be iterated only once, but epochs=2",
        data=(b for b in [(X, Y)]),
        epochs=2,
    )


def test_a_generator_that_is_used_up():
    used = (b for b in [(X, Y)])
    next(used)
    refused(jc.errors.DataError, "train_data \\(generator\\) is empty", data=used)


def test_arrays_in_a_list():
    refused(jc.errors.DataError, r"A list is an iterable of batches; .*: \(x, y\)", data=[X, Y])


def test_a_shorter_epoch_over_the_same_rows_again_and_again():
    refused(
        jc.errors.DataError,
        "shuffle=False would train on the first rows only",
        steps_per_epoch=1,
        batch_size=2,
        shuffle=False,
    )


def test_a_batch_size_for_batches():
    refused(
        jc.errors.DataError,
        "batch_size=4 was given, but train_data is a list.*Leave batch_size out",
        data=[(X, Y)],
        batch_size=4,
    )


def test_more_steps_an_epoch_than_there_are_batches():
    refused(
        jc.errors.DataError,
        "steps_per_epoch=9, but one pass over 8 rows has 4 batches of 2",
        batch_size=2,
        steps_per_epoch=9,
    )


VALIDATION = {
    "no rows": ((X[:0], Y[:0]), "is empty: its arrays have 0 rows"),
    "no batches": ([], "is empty: it gave no batch"),
    "an empty dict": ({}, "validation_data is an empty dict"),
    "a generator": ((b for b in [(X, Y)]), "generator, which is exhausted after one validation"),
    "a number": (3, r"validation_data \(val\) is a int"),
    "one of several": ({"near": (X, Y), "far": (X, Y[:3])}, r"validation_data \(val_far\): the arrays have different"),
    "objects": ((X, np.array([None] * 8, object)), "dtype object"),
}


@pytest.mark.parametrize("case", VALIDATION)
def test_validation_data_that_cannot_be_used(case):
    data, message = VALIDATION[case]
    refused(jc.errors.DataError, message, validation_data=data)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"validation_data": (X, Y)}, ValueError, "were both given"),
        ({"validation_split": 1.0}, ValueError, "strictly between 0.0 and 1.0"),
        ({"validation_split": -0.5}, ValueError, "strictly between"),
        ({"validation_split": 0.01, "data": (X[:1], Y[:1])}, jc.errors.DataError, "leaves nothing to train"),
        ({"data": [(X, Y)]}, jc.errors.DataError, "validation_split needs arrays, got a list"),
        ({"data": (X, Y[:3])}, jc.errors.DataError, "different numbers of rows"),
    ],
)
def test_a_validation_split_that_cannot_be_made(changes, error, message):
    refused(error, message, **({"validation_split": 0.5} | changes))


# Lengths and options


def test_nothing_says_how_long():
    refused(ValueError, "fit: epochs and steps are both None; pass at least one of them", epochs=None)


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), True, "3"], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "epochs",
        "steps",
        "steps_per_epoch",
        "batch_size",
        "eval_every",
        "validation_freq",
        "validation_steps",
        "validation_batch_size",
        "steps_per_execution",
    ],
)
def test_counts_are_whole_numbers_from_one_on(name, value):
    owner = "Execution" if name in ("eval_every", "steps_per_execution") else "fit"
    refused(ValueError, f"{owner}: {name} must be a whole number of at least 1", **{name: value})


def test_validation_freq_lists_epochs_from_one_on():
    refused(
        ValueError, "each epoch of validation_freq must be a whole number of at least 1, got 0", validation_freq=[2, 0]
    )


@pytest.mark.parametrize("seed", [None, 1.5, -1, "x"])
def test_the_seed_is_a_whole_number(seed):
    refused(ValueError, "fit: seed must be a whole number", seed=seed)


@pytest.mark.parametrize(
    ("error", "name", "value", "message"),
    [
        (ValueError, "executor", "loopd", "Execution: executor must be one of None, 'looped', 'stepped', got 'loopd'"),
        (ValueError, "executor", "auto", "Execution: executor must be one of None, 'looped', 'stepped', got 'auto'"),
        (ValueError, "verbose", 3, "fit: verbose must be one of None, 0, 1, 2, got 3"),
        (ValueError, "verbose", "auto", "fit: verbose must be one of None, 0, 1, 2, got 'auto'"),
        (TypeError, "drop_remainder", "keep", "Execution: drop_remainder must be True or False, got 'keep'"),
        (TypeError, "shuffle", "epoch", "fit: shuffle must be True or False, got 'epoch'"),
        (TypeError, "resume", "auto", "fit: resume must be True or False, got 'auto'"),
        (TypeError, "debug", None, "Execution: debug must be True or False, got None"),
        (TypeError, "copy", 2, "Execution: copy must be True or False, got 2"),
        (TypeError, "mesh", 8, "Execution: mesh must be a jax.sharding.Mesh, .* got a int"),
        (ValueError, "sharding", "zero", "Execution: sharding must be 'fsdp', 'replicated', .* got 'zero'"),
        (ValueError, "fast_dev_run", -1, "Execution: fast_dev_run must be a whole number of at least 0, got -1"),
        (TypeError, "overwrite", "yes", "Checkpointing: overwrite must be True or False, got 'yes'"),
        (ValueError, "on_error", "ignore", "Checkpointing: on_error must be one of 'raise', 'warn', got 'ignore'"),
        (TypeError, "checkpointing", True, "fit: checkpointing must be a jc.Checkpointing, got a bool"),
        (TypeError, "metrics", ["norm"], "fit: metrics must be a mapping of names, got a list"),
    ],
)
def test_options_list_what_they_may_be(error, name, value, message):
    refused(error, message, **{name: value})


PROBE, HOST = jc.probes.grad_norm(), jc.probes.host_metric(lambda: 1)


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (
            {"f1": lambda model: 1},
            TypeError,
            r"metrics\['f1'\] is a function. Make it with jc.probe\(fn, every=...\) for",
        ),
        ({"f1": 3}, TypeError, r"metrics\['f1'\] is a int.*jc.probes.evaluator\(fn\).*jc.probes.host_metric\(fn\)"),
        ({"": PROBE}, TypeError, "a name in metrics must be a string that is not empty, got ''"),
        ({3: HOST}, TypeError, "a name in metrics must be a string that is not empty, got 3"),
        ({("a", "b"): HOST}, TypeError, r"a name in metrics must be a string.*got \('a', 'b'\)"),
        (
            {"a": HOST, ("b", "a"): jc.probes.evaluator(lambda model: (1, 2))},
            ValueError,
            "metrics has more than one result of the name 'a'",
        ),
    ],
)
def test_metrics_that_are_none(metrics, error, message):
    refused(error, f"fit: {message}", metrics=metrics)


def test_errors_name_the_function_that_was_called():
    loop, state = jc.Loop(jc.Step(loss_fn)), jc.TrainState.create(params=make_params(), tx=optax.sgd(0.1))
    over = {"seed": [0]}
    with pytest.raises(ValueError, match=r"^Loop.run: epochs must be a whole number"):
        loop.run(state, (X, Y), epochs=0)
    with pytest.raises(TypeError, match=r"^Loop.run: resume must be True or False, got 'auto'"):
        loop.run(state, (X, Y), epochs=1, resume="auto")
    with pytest.raises(ValueError, match=r"^Loop.run does not take Execution\(copy=True\)"):
        loop.run(state, (X, Y), epochs=1, execution=jc.Execution(copy=True))
    with pytest.raises(ValueError, match=r"^sweep: verbose must be one of None, 0, 1, 2, got 3"):
        jc.sweep(make_params, loss_fn, (X, Y), over=over, optimizer=optax.sgd(0.1), epochs=1, verbose=3)
    with pytest.raises(ValueError, match=r"^sweep: validation_split must lie strictly between"):
        jc.sweep(make_params, loss_fn, (X, Y), over=over, optimizer=optax.sgd(0.1), epochs=1, validation_split=2.0)
    for execution in (jc.Execution(debug=True), jc.Execution(sharding="fsdp"), jc.Execution(resident=False)):
        with pytest.raises(ValueError, match=r"^sweep does not take Execution\((debug|sharding|resident)="):
            jc.sweep(make_params, loss_fn, (X, Y), over=over, optimizer=optax.sgd(0.1), epochs=1, execution=execution)
    metrics = {"norm": jc.probes.evaluator(lambda model: 1)}
    with pytest.raises(ValueError, match=r"^sweep: metrics has an evaluator, 'norm', which needs the model of one run"):
        jc.sweep(make_params, loss_fn, (X, Y), over=over, optimizer=optax.sgd(0.1), epochs=1, metrics=metrics)
    with pytest.raises(TypeError, match=r"^fit: execution must be a jc.Execution, got a dict"):
        jc.fit(make_params(), loss_fn, (X, Y), optimizer=optax.sgd(0.1), epochs=1, execution={})  # pyright: ignore
    with pytest.raises(ValueError, match=r"^lr_find: strategy must be one of None, 'vmap', 'map', 'shard', got 'auto'"):
        jc.lr_find(make_params, loss_fn, (X, Y), optimizer=optax.sgd, strategy="auto")


# Optimizer and loss


def test_a_rate_for_a_ready_made_optimizer():
    refused(
        ValueError,
        "learning_rate was given together with a ready-made optimizer.*optimizer=optax.adam",
        optimizer=optax.adam(1e-3),
    )


def test_a_factory_without_a_rate():
    refused(ValueError, "optimizer is a factory, so it needs a learning rate", learning_rate=None)


@pytest.mark.parametrize("optimizer", ["adam", None, 0.1])
def test_what_is_no_optimizer(optimizer):
    refused(TypeError, "optimizer must be an optax optimizer or a factory such as optax.adam", optimizer=optimizer)


@pytest.mark.parametrize(
    "callback",
    [
        jc.ReduceLROnPlateau("loss", min_lr=1e-4),
        jc.LearningRateScheduler(lambda epoch: 0.1),
        jc.LearningRateScheduler(lambda epoch, lr: lr * 0.5),
        jc.LearningRateScheduler(optax.linear_schedule(1.0, 0.0, 9), by="step"),
    ],
    ids=["floor", "epoch", "epoch and rate", "step"],
)
def test_callbacks_that_need_the_rate_refuse_a_ready_made_optimizer(callback):
    refused(
        (ValueError, LookupError),
        rf"{type(callback).__name__}.*ready-made optimizer hides its learning rate.*"
        r"fit\(optimizer=optax.adam, learning_rate=",
        optimizer=optax.adam(1e-3),
        learning_rate=None,
        callbacks=[callback],
    )


def test_a_loss_that_is_no_function():
    refused(TypeError, r"loss_fn must be a function of \(model, batch\), got int", loss_fn=3)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p, b: p["w"], ValueError, r"loss of shape \(3, 1\), expected a scalar"),
        (lambda p, b: 3, ValueError, "dtype int32, expected a floating-point one"),
        (lambda p, b: None, TypeError, "`return` missing"),
        (lambda p, b: (p["b"], [p["b"]]), TypeError, "metrics as list, expected a dict"),
    ],
    ids=["rows", "integer", "nothing", "list"],
)
def test_what_a_loss_should_not_return(loss, error, message):
    refused(error, message, loss_fn=loss)


@pytest.mark.parametrize("name", ["learning_rate", "base_learning_rate", "lr_scale", "epoch", "step"])
def test_names_that_the_run_reports_by_itself_are_taken(name):
    refused(ValueError, f"the metric name '{name}' is reserved", loss_fn=reports(**{name: 1}))


def test_a_training_metric_with_a_validations_name():
    refused(
        ValueError,
        "'val_loss' is the name of a validation's metric",
        loss_fn=reports(val_loss=1),
        validation_data=(X, Y),
    )


# Monitors


def test_an_unknown_monitor_lists_what_there_is_and_guesses():
    error = refused(
        jc.errors.MissingMetricError,
        "there is no metric 'val_los' here",
        callbacks=[jc.EarlyStopping("val_los", mode="min")],
        validation_data=(X, Y),
    )
    assert "EarlyStopping.on_e" in str(error)
    assert "base_learning_rate, learning_rate, loss, mae, val_loss, val_mae" in str(error)
    assert "Did you mean 'val_loss'?" in str(error)


def test_a_validation_monitor_without_validation():
    refused(
        jc.errors.MissingMetricError,
        "no metric 'val_loss' here. Metrics here: .*loss, mae",
        callbacks=[jc.EarlyStopping()],
    )


def test_a_monitor_that_is_no_scalar():
    def loss(params, batch):
        return params["b"], {"val_like_loss": jnp.zeros(3)}

    refused(
        TypeError, r"has shape \(3,\), expected a scalar", loss_fn=loss, callbacks=[jc.EarlyStopping("val_like_loss")]
    )


# Callbacks


class KerasLike:
    def set_model(self, model):
        pass

    def on_epoch_end(self, epoch, logs=None):
        pass


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([jc.EarlyStopping], "got the class EarlyStopping. Call it to make an instance"),
        (jc.EarlyStopping, "got the class EarlyStopping. Call it to make an instance"),
        ([KerasLike()], "got a KerasLike.*jc.HostCallback"),
        (KerasLike(), "got a KerasLike"),
        ([None], "got a NoneType"),
        ("EarlyStopping", "got a str"),
        ([lambda epoch, logs: None], "got a function"),
    ],
    ids=["class", "bare class", "Keras", "bare Keras", "None", "text", "function"],
)
def test_what_is_no_callback(callbacks, message):
    refused(TypeError, f"expected a jaxcb callback, {message}", callbacks=callbacks)


def test_two_callbacks_of_one_name():
    same = [jc.TerminateOnNaN(name="guard"), jc.EarlyStopping("loss", name="guard")]
    refused(ValueError, "2 callbacks are named 'guard'; give each its own name=", callbacks=same)


def test_a_hook_that_fails_is_named():
    def fails(state, metrics):
        raise KeyError("mine")

    error = refused(KeyError, "mine", callbacks=[hook("Fragile", on_eval_end=fails)], validation_data=(X, Y))
    assert any("Fragile.on_eval_end" in note for note in error.__notes__)


def test_a_python_if_on_a_metric():
    def decides(state, metrics):
        return (state, jc.actions.Stop()) if metrics["loss"] < 1 else (state, None)

    refused(
        TypeError,
        r"Mine.on_epoch_end uses a traced value in a Python `if`.*jnp.where",
        callbacks=[hook(on_epoch_end=decides)],
    )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda s, m: None, r"Mine.on_epoch_end returned NoneType, expected \(state, actions\)"),
        (lambda s, m: (s, "stop"), "Mine.on_epoch_end: expected None, an action"),
        (lambda s, m: ({"n": 1}, None), "Mine.on_epoch_end changed the structure"),
        (lambda s, m: (s, jc.actions.Stop(jnp.ones(3) > 0)), r"when= of its Stop is bool\[3\]"),
    ],
    ids=["nothing", "text", "state", "vector"],
)
def test_a_hook_that_returns_the_wrong_thing(returned, message):
    refused(jc.errors.CallbackError, message, callbacks=[hook(on_epoch_end=returned)])


def test_a_control_that_was_not_declared():
    sets = hook(on_epoch_end=lambda s, m: (s, jc.actions.SetControl("bta", 1.0)))
    refused(ValueError, "Mine sets the control 'bta'.*Did you mean 'beta'", callbacks=[sets], controls={"beta": 1.0})


class Odd(jc.actions.LogAction):
    value: float


def test_an_action_that_nothing_performs():
    odd = hook("Strange", on_epoch_end=lambda s, m: (s, Odd(m["loss"])))
    refused(LookupError, r"Strange: no writer performs the action Odd.*@jc.writers.writer\(Odd\)", callbacks=[odd])


# Files


def test_a_directory_in_the_way_of_a_csv_file(tmp_path):
    (tmp_path / "log.csv").mkdir()
    refused(
        IsADirectoryError, "cannot write the CSV file: Is a directory", callbacks=[jc.CSVLogger(tmp_path / "log.csv")]
    )


def test_a_file_in_the_way_of_a_csv_files_directory(tmp_path):
    (tmp_path / "file").touch()
    refused(OSError, "cannot write the CSV file", callbacks=[jc.CSVLogger(tmp_path / "file" / "log.csv")])


@pytest.mark.parametrize("second", ["log.csv", "sub/../log.csv"])
def test_two_loggers_on_one_path(tmp_path, second):
    loggers = [jc.CSVLogger(tmp_path / "log.csv"), jc.CSVLogger(f"{tmp_path}/{second}")]
    refused(
        ValueError,
        "CSVLogger and CSVLogger_2 both write .*log.csv; give one of them another filename",
        callbacks=loggers,
    )


def test_a_logger_on_the_runs_own_history(tmp_path):
    refused(
        ValueError,
        "CSVLogger.*the run's history.*history.csv|the run's history.*CSVLogger",
        run_dir=tmp_path,
        callbacks=[jc.CSVLogger("history.csv")],
    )


def test_an_appended_csv_file_with_another_header(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,step,accuracy\n0,1,0.5\n")
    refused(
        ValueError,
        r"log.csv, read with the separator .*, has the columns \['epoch', 'step', 'accuracy'\], but this run writes",
        callbacks=[jc.CSVLogger(path, append=True)],
    )
    assert path.read_text() == "epoch,step,accuracy\n0,1,0.5\n"


def test_a_refused_run_touches_no_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("mine\n")
    refused(
        LookupError, "no metric", callbacks=[jc.CSVLogger(path), jc.CSVLogger(tmp_path / "new.csv"), jc.EarlyStopping()]
    )
    assert path.read_text() == "mine\n"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_a_directory_that_holds_a_run(tmp_path, monkeypatch):
    monkeypatch.undo()  # this one runs
    fit(run_dir=tmp_path)
    refused(FileExistsError, r"already holds a run.*resume=True.*Checkpointing\(overwrite=True\)", run_dir=tmp_path)


def test_a_directory_that_holds_a_file_of_that_name(tmp_path):
    (tmp_path / "history.csv").write_text("step,epoch\n")
    refused(FileExistsError, r"history\.csv is in the way.*another run_dir", run_dir=tmp_path)


def test_a_file_in_place_of_a_run_dir(tmp_path):
    (tmp_path / "file").touch()
    refused(OSError, "file", run_dir=tmp_path / "file")


# Loop


STATE = jc.TrainState.create(params=make_params(), tx=optax.sgd(0.1))

STEPS = {
    "only the state": (lambda s, b: s, r"returned TrainState, expected \(train_state, metrics\)"),
    "nothing": (lambda s, b: None, r"returned NoneType, expected \(train_state, metrics\)"),
    "in the wrong order": (lambda s, b: ({"loss": jnp.zeros(())}, s), "metrics as TrainState, expected a dict"),
    "a bare loss": (lambda s, b: (s, jnp.zeros(())), "expected a dict of names to arrays"),
    "three": (lambda s, b: (s, {}, {}), r"returned tuple, expected \(train_state, metrics\)"),
    "nested metrics": (lambda s, b: (s, {"a": {"b": jnp.zeros(())}}), "the metric 'a' as dict"),
    "params in place of the state": (lambda s, b: (s.params, {}), "returned dict first, expected the new TrainState"),
    "another structure": (lambda s, b: (s.replace(params={}), {}), "train_step.*leaf .params"),
    "another shape": (lambda s, b: (s.replace(params={"w": jnp.zeros(3), "b": jnp.zeros(())}), {}), r"w.*shape \(3,\)"),
}


@pytest.mark.parametrize("case", STEPS)
def test_what_a_train_step_should_not_return(case):
    step, message = STEPS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        jc.Loop(step).run(STATE, (X, Y), epochs=1, verbose=0)


def test_what_is_no_train_step_and_no_train_state():
    with pytest.raises(TypeError, match=r"train_step must be a function of \(train_state, batch\), got int"):
        jc.Loop(3)
    with pytest.raises(TypeError, match=r"Loop.run: train_state must be a TrainState.*got a dict"):
        jc.Loop(jc.Step(loss_fn)).run(make_params(), (X, Y), epochs=1)


def test_validation_without_an_eval_step():
    loop = jc.Loop(jc.Step(loss_fn))
    with pytest.raises(ValueError, match=r"there is no eval_step: pass Loop\(train_step, eval_step\)"):
        loop.run(STATE, (X, Y), epochs=1, validation_data=(X, Y), verbose=0)


def test_an_eval_step_that_returns_nothing():
    loop = jc.Loop(jc.Step(loss_fn), lambda state, batch: None)
    with pytest.raises(TypeError, match="eval_step returned metrics as NoneType"):
        loop.run(STATE, (X, Y), epochs=1, validation_data=(X, Y), verbose=0)


def test_the_error_of_a_refused_run_leaves_no_thread():
    refused(LookupError, "no metric", data=[(X, Y)], callbacks=[jc.EarlyStopping()])
    assert not [t for t in threading.enumerate() if t.name == "jaxcb-data"]


class Keeps(jc.actions.LogAction):
    key: Any


def test_a_random_key_in_an_action_names_the_callback():
    keeping = jc.make_callback(
        init=tuple, on_epoch_end=lambda state, metrics: (state, Keeps(jax.random.key(0))), name="keeping"
    )
    with pytest.raises(TypeError, match=r"keeping: Keeps in on_epoch_end holds a PRNG key.*key_data"):
        fit(callbacks=[keeping], epochs=1)
