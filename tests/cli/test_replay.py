"""`jaxcb replay`: a row says what a run with these numbers really does, as far as it says anything."""

import csv
import io

import jax
import numpy as np
import pytest
from cli._runs import train
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.report.what_if import DIFFERS, ENDS, STOPS, values_of


def rows_of(said):
    return said.json["configurations"]


@pytest.mark.long
def test_a_row_is_what_a_run_with_these_numbers_does(call, folder, tmp_path):
    """Up to the record until which a row holds, a real run with its numbers is the recorded one, bit for bit."""
    settings = ["--set", "EarlyStopping.patience=2,4,9", "--set", "ReduceLROnPlateau.patience=2,3"]
    rows = rows_of(call("replay", folder / "stopped", *settings, "--json"))
    assert len(rows) == 6
    recorded = (folder / "stopped" / "history.csv").read_text().splitlines()
    for number, row in enumerate(rows):
        callbacks = [
            jc.EarlyStopping(patience=row["EarlyStopping.patience"], restore_best_weights=True),
            jc.ReduceLROnPlateau(patience=row["ReduceLROnPlateau.patience"], factor=0.5),
            jc.ModelCheckpoint("best", save_best_only=True, save_weights_only=True),
            jc.CSVLogger("log.csv"),
        ]
        real = train(tmp_path / str(number), callbacks=callbacks)
        lines = (tmp_path / str(number) / "history.csv").read_text().splitlines()
        held = row["holds_until_epoch"] + 2  # the header, and the epoch itself
        assert lines[:held] == recorded[:held]
        if row["outcome"] == STOPS:
            assert real.stopped_epoch == row["stopped_epoch"]
            assert row["epochs_saved"] == len(recorded) - 1 - len(real.history["val_loss"])
            assert np.float32(row["best_val_loss"]) == real.history["val_loss"].min()
        else:
            assert real.stopped_epoch is None or real.stopped_epoch > row["holds_until_epoch"]
            assert row["stopped_epoch"] is None
            assert row["epochs_saved"] is None
        if row["outcome"] == DIFFERS:
            assert lines[: held + 1] != recorded[: held + 1]
    outcomes = {row["outcome"] for row in rows}
    assert outcomes == {STOPS, ENDS, DIFFERS}


def test_a_callback_that_cannot_be_made_again_shows_in_the_recorded_rate(call, tmp_path):
    """The run's own cuts of the rate, by a class of its own, are not a difference."""

    class Halve(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.ScaleLearningRate(0.5, when=metrics.epoch == 2)

    train(tmp_path / "run", learning_rate=0.1, epochs=6, callbacks=[Halve()])
    (row,) = rows_of(call("replay", tmp_path / "run", "--callback", "EarlyStopping(patience=50)", "--json"))
    assert (row["outcome"], row["holds_until_epoch"]) == (DIFFERS, 2)  # it would not have cut the rate


def test_thousands_of_configurations_as_csv_table_and_picture(call, folder, tmp_path):
    out = tmp_path / "sub" / "what.png"
    sets = ["--set", "EarlyStopping.patience=1..40", "--set", "EarlyStopping.min_delta=0..0.24..0.01"]
    said = call("replay", folder / "finished", *sets, "--csv", tmp_path / "all.csv", "-o", out)
    assert said.code == 0
    assert "980 more configurations" in said.out
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = call("replay", folder / "finished", "--set", "EarlyStopping.patience=1,2", "--csv", "-").out
    assert [row["EarlyStopping.patience"] for row in csv.DictReader(io.StringIO(printed))] == ["1", "2"]


def test_the_grid_of_a_row_is_that_of_replay_itself(call, folder):
    """Beside `jc.replay(over=...)`, which claims a stop for each configuration, also beyond the record."""
    patiences = list(range(1, 12))
    rows = rows_of(call("replay", folder / "finished", "--set", "EarlyStopping.patience=1..11", "--json"))
    grid = jc.replay(
        [jc.EarlyStopping(), jc.ReduceLROnPlateau(patience=2, factor=0.5)],
        folder / "finished",
        over={"callbacks.EarlyStopping.patience": patiences},
    )
    for row, stopped in zip(rows, grid.stopped_epoch.tolist(), strict=True):
        if row["outcome"] == STOPS:
            assert row["stopped_epoch"] == stopped


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5), st.integers(0, 20), st.integers(1, 5))
def test_lists_and_ranges_of_values(listed, length, step):
    low = listed[0]
    text = ",".join(map(str, listed)) + f",{low}..{low + length}..{step}"
    assert values_of(text) == [*listed, *range(low, low + length + 1, step)]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "EarlyStoping.patience=1"], 3, "Did you mean 'EarlyStopping'?"),
        (["--set", "EarlyStopping.patiense=1"], 3, "Did you mean 'patience'?"),
        (["--set", "EarlyStopping.patience=-1"], 3, "whole number of at least 0"),
        (["--set", "EarlyStopping.monitor=1"], 3, "not a number that can be swept"),
        (["--set", "EarlyStopping.patience"], 2, "NAME.FIELD=VALUES"),
        (["--set", "EarlyStopping.patience=a..b"], 2, "is not a number"),
        (["--set", "EarlyStopping.patience=9..2"], 2, "is not a range"),
        (["--set", "EarlyStopping.min_delta=0.1..0.2"], 2, "needs a step"),
        (["--set", "EarlyStopping.patience=1..9999999999"], 2, "more than"),
        (["--callback", "EarlyStopping(monitor='val_los')"], 3, "'val_los'"),
        (["--callback", "EarlyStopping(monitor='val_los', mode='min')"], 3, "Did you mean 'val_loss'?"),
        (["--monitor", "val_los"], 3, "it has loss, mae, val_loss, val_mae. Did you mean 'val_loss'?"),
        (["--member", "0"], 3, "is a single run"),
    ],
)
def test_mistakes_are_named(call, folder, arguments, code, words):
    said = call("replay", folder / "stopped", *arguments)
    assert said.code == code, said
    assert words in said.err.replace("\n", " ")


def test_a_log_without_callbacks_says_what_to_pass(call, folder):
    said = call("replay", folder / "stopped" / "log.csv")
    assert said.code == 3
    assert "--callback" in said.err


@pytest.mark.long
@pytest.mark.slow
def test_a_keras_run_replays_as_keras_runs_again_with_these_callbacks(call, tmp_path):
    """The real Keras: its log without callbacks says where it stops, and first cuts its rate, with them."""
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 1)) + rng.normal(size=(64, 1))).astype(np.float32)
    log = tmp_path / "keras.csv"

    def fit(*callbacks):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(0.2), loss="mse")
        given = {"epochs": 25, "batch_size": 16, "validation_split": 0.5, "verbose": 0}
        with jax.numpy_rank_promotion("allow"):
            return model.fit(x, y, callbacks=list(callbacks), **given).history

    whole = fit(keras.callbacks.CSVLogger(str(log)))
    text = "EarlyStopping(monitor='val_loss', min_delta=0.01)"
    rows = rows_of(call("replay", log, "--callback", text, "--set", "EarlyStopping.patience=1,4", "--json"))
    for row in rows:
        again = fit(keras.callbacks.EarlyStopping("val_loss", patience=row["EarlyStopping.patience"], min_delta=0.01))
        assert row["outcome"] == STOPS
        assert row["stopped_epoch"] + 1 == len(again["val_loss"])
        assert again["val_loss"] == whole["val_loss"][: row["stopped_epoch"] + 1]
    (row,) = rows_of(call("replay", log, "--callback", "ReduceLROnPlateau(patience=3, min_delta=0.01)", "--json"))
    again = fit(keras.callbacks.ReduceLROnPlateau("val_loss", patience=3, min_delta=0.01))
    rates = np.asarray(again["learning_rate"])
    first = int(np.argmax(rates < rates[0]))  # the first epoch with another rate is the one after the decision
    assert row["outcome"] == DIFFERS
    assert row["holds_until_epoch"] == first - 1
    assert again["val_loss"][:first] == whole["val_loss"][:first]
    assert again["val_loss"][first] != whole["val_loss"][first]
