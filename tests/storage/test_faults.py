"""Small inputs that once lost files, or were taken for what they are not: one of each kind."""

# ruff: noqa: PT017 - an input may be refused, and then the error says why

import contextlib
import json
import os
import re
import shutil
import signal
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5]])


def squares(p, batch):
    x, y = batch
    return jnp.mean((x @ p["w"] - y) ** 2)


def fit(epochs=2, loss=squares, **how):
    how = {"optimizer": optax.adam, "learning_rate": 0.1, "batch_size": 16, "verbose": 0} | how
    return jc.fit({"w": jnp.zeros((3, 1))}, loss, (X, Y), epochs=epochs, **how)


def stop_at(epoch):
    """Interrupts the run at an epoch's end, as Ctrl-C does."""
    return jc.LambdaCallback(on_epoch_end=lambda e, logs: e == epoch and os.kill(os.getpid(), signal.SIGINT), name="k")


def idle():
    return jc.LambdaCallback(on_epoch_end=lambda e, logs: None, name="k")


def interrupted(run_dir, *callbacks):
    with pytest.raises(KeyboardInterrupt):
        fit(6, run_dir=run_dir, callbacks=[*callbacks, stop_at(2)])


@pytest.fixture(autouse=True)
def _ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_resume_leaves_other_runs_event_files_alone(tmp_path):
    def board():
        return jc.TensorBoard(tmp_path / "logs", write_graph=False)

    interrupted(tmp_path / "a", board())
    mine = set((tmp_path / "logs/train").iterdir())
    fit(4, run_dir=tmp_path / "b", callbacks=[board()])
    foreign = tmp_path / "logs/train/events.out.tfevents.9999999999.other"
    foreign.write_text("x")
    others = set((tmp_path / "logs/train").iterdir()) - mine
    fit(6, run_dir=tmp_path / "a", resume=True, callbacks=[board(), idle()])
    assert all(p.exists() for p in others)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("logger", ["CSVLogger", "JSONLogger"])
def test_a_resume_leaves_other_runs_rows_alone_or_is_refused(tmp_path, logger):
    path = tmp_path / "all"

    def log():
        return getattr(jc.callbacks, logger)(path, append=True)

    interrupted(tmp_path / "a", log())
    fit(5, run_dir=tmp_path / "b", callbacks=[log()], seed=1)
    before = path.read_text().splitlines()
    try:
        fit(6, run_dir=tmp_path / "a", resume=True, callbacks=[log(), idle()])
    except ValueError as error:
        assert "all" in str(error)
    after = path.read_text().splitlines()
    assert set(before) <= set(after), set(before) - set(after)


@pytest.mark.parametrize("name", ["exp[1]", "lr=[0.1]", "a{b}c", "star*", "what?"])
def test_a_run_can_be_resumed_whatever_its_folder_is_called(tmp_path, name):
    fit(3, run_dir=tmp_path / name)
    assert len(fit(5, run_dir=tmp_path / name, resume=True).history["loss"]) == 5


def forge(run_dir, change):
    for path in run_dir.glob("checkpoints/step_*/manifest.json"):
        body = re.fullmatch(rb'\{"checksum": "([0-9a-f]{8})", "manifest": (.*)\}\n', path.read_bytes(), re.S)[2]
        manifest = json.loads(body)
        change(manifest)
        body = json.dumps(manifest).encode()
        path.write_bytes(b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body))


def test_a_checkpoint_cannot_ask_for_the_removal_of_what_lies_elsewhere(tmp_path):
    def save():
        return jc.ModelCheckpoint("w/{epoch}", monitor="loss", save_weights_only=True, max_to_keep=1)

    fit(2, run_dir=tmp_path / "victim", callbacks=[jc.ModelCheckpoint("mine")])
    interrupted(tmp_path / "a", save())

    def point_at_the_victim(manifest):
        for name, kept in manifest["facts"]["writers"].items():
            if "heckpoint" in name:
                for key in kept:
                    kept[key] = [["../victim/mine", None], [str(tmp_path / "victim/mine"), None], *kept[key]]

    forge(tmp_path / "a", point_at_the_victim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ValueError, OSError):
            fit(6, run_dir=tmp_path / "a", resume=True, callbacks=[save(), idle()])
    assert (tmp_path / "victim/mine").exists()


def test_overwrite_removes_what_a_run_made_and_nothing_else(tmp_path):
    foreign = tmp_path / "checkpoints/step_000000100/thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    table = tmp_path / "history.csv"
    table.write_text("mine")
    try:
        fit(2, run_dir=tmp_path, checkpointing=jc.Checkpointing(overwrite=True))
    except (ValueError, OSError) as error:
        assert str(tmp_path) in str(error)
    assert foreign.exists()
    assert table.read_text() == "mine"


def test_a_resume_does_not_begin_anew_where_the_checkpoints_are_gone(tmp_path):
    fit(3, run_dir=tmp_path, seed=1)
    rows = (tmp_path / "history.csv").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    try:
        fit(5, run_dir=tmp_path, resume=True, seed=2)
    except (ValueError, OSError) as error:
        assert "checkpoints" in str(error)
    assert (tmp_path / "history.csv").read_text().startswith(rows)


def test_a_finished_run_does_not_answer_for_another_request(tmp_path):
    first = fit(3, run_dir=tmp_path, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            second = fit(3, run_dir=tmp_path, seed=1, resume=True)
        except ValueError as error:
            assert "seed" in str(error)
            return
    said = any("seed" in str(w.message) for w in caught)
    assert said or list(first.history["loss"]) != list(second.history["loss"])


def test_a_history_that_was_cut_is_noticed(tmp_path):
    whole = fit(3, run_dir=tmp_path).history["loss"]
    path = tmp_path / "history.csv"
    path.write_bytes(path.read_bytes()[:-5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read = fit(3, run_dir=tmp_path, resume=True).history["loss"]
        except ValueError as error:
            assert "history.csv" in str(error)
            return
    assert any("history.csv" in str(w.message) for w in caught) or list(read) == list(whole)


def test_all_of_a_run_stays_where_it_began(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    away = jc.LambdaCallback(on_epoch_end=lambda e, logs: os.chdir(tmp_path / "two"))
    fit(3, callbacks=[jc.ModelCheckpoint("{epoch}", monitor="loss"), jc.CSVLogger("log.csv"), away])
    assert not list((tmp_path / "two").iterdir())


@pytest.mark.parametrize("address", ["hf://bucket/run", "s3:/bucket/run"])
def test_an_address_is_not_taken_for_a_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):
        fit(1, run_dir=address)
    assert not list(tmp_path.iterdir())


def test_a_callback_that_is_gone_is_said_whatever_the_verbosity(tmp_path):
    fit(1, run_dir=tmp_path, callbacks=[jc.EarlyStopping("loss", patience=9), jc.ReduceLROnPlateau("loss")])
    with pytest.warns(match="EarlyStopping"):
        fit(2, run_dir=tmp_path, resume=True, callbacks=[jc.ReduceLROnPlateau("loss")])


def test_a_metric_added_to_a_logged_run_has_a_cure_that_is_one(tmp_path):
    fit(2, run_dir=tmp_path, callbacks=[jc.CSVLogger("log.csv")])
    try:
        fit(4, run_dir=tmp_path, resume=True, validation_data=None, callbacks=[jc.CSVLogger("log.csv", separator=";")])
    except ValueError as error:
        assert "append=False" not in str(error)


def test_a_record_with_an_odd_name_can_be_read_back(tmp_path):
    fit(2, lambda p, b: (squares(p, b), {"a\nb": squares(p, b)}), run_dir=tmp_path)
    jc.replay(jc.EarlyStopping("loss", patience=2), tmp_path / "history.csv")
