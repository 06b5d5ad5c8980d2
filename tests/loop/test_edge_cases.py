"""Runs that end where nobody expects it: in their last moments, in a writer, beside another process."""

import contextlib
import os
import signal
from typing import Any

import jax.numpy as jnp
import pytest
from checkpointing import test_resume
from checkpointing.test_resume import EXECUTORS, Cut, callbacks, latest_save, same

import jaxcb as jc
from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.loop.host.device_run import DeviceRun
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.results import Results
from jaxcb._src.writers.csv import CSVWriter


def run(*given: Any, **changes: Any) -> Any:
    return test_resume.run(*given, **changes)


class AtTheEnd(jc.Callback):
    """Writes a row at the end of training, into a file of its own."""

    def on_train_end(self, state, metrics):
        return state, jc.actions.LogCSV({"end": metrics.step}, {"end": jnp.asarray(True)}, path="end.csv")


def own():
    stop = jc.EarlyStopping(patience=2, min_delta=0.5, restore_best_weights=True)  # in some epochs
    return [stop, *callbacks(every=6)[1:], AtTheEnd()]


@contextlib.contextmanager
def failing(monkeypatch, where, what, error, *, at=1, killed=False):
    """Has a method raise an error at its n-th call, and the run with it; a killed process can do nothing any more."""
    calls = []
    kept = getattr(where, what)

    def raising(self, *given, **named):
        calls.append(1)
        if len(calls) == at:
            raise error
        return kept(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(where, what, raising)
        if killed:
            patched.setattr(Driver, "_save_on_error", lambda *_: None)
        with pytest.raises(type(error)):
            yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never cut short, by executor and epochs."""
    found = {}

    def find(executor, epochs):
        if (executor, epochs) not in found:
            directory = tmp_path_factory.mktemp(executor)
            found[executor, epochs] = run(directory, executor, epochs=epochs, callbacks=own()), directory
        return found[executor, epochs]

    return find


def ends_as(whole, directory, executor, epochs):
    """Goes on with a run, which must end as the whole one."""
    one, its = whole(executor, epochs)
    two = run(directory, executor, epochs=epochs, callbacks=own())
    same(one, two, its, directory)
    assert (its / "end.csv").read_bytes() == (directory / "end.csv").read_bytes()


pytestmark = pytest.mark.long

CASES = [("looped", 30, True), ("stepped", 3, False)]  # 30 are stopped before


@pytest.mark.parametrize(("executor", "epochs", "killed"), CASES)
def test_ended_between_the_last_save_and_the_result(tmp_path, monkeypatch, whole, executor, epochs, killed):
    with failing(monkeypatch, Checkpointer, "save_result", Cut(), killed=killed):
        run(tmp_path, executor, epochs=epochs, callbacks=own())
    ends_as(whole, tmp_path, executor, epochs)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_last_save_knows_where_the_training_ended(tmp_path, executor):
    """Also where something is still under way behind the last step."""
    run(tmp_path, executor, epochs=2, callbacks=[], steps_per_execution=3)
    saved = latest_save(tmp_path)
    assert (saved.step, saved.facts["step"], saved.facts["epoch"], saved.facts["cursor"]) == (10, 10, 2, 0)
    assert saved.facts["over"]


def test_killed_at_the_end_of_the_epochs_that_were_added(tmp_path, monkeypatch):
    stops = [jc.EarlyStopping(patience=2, min_delta=0.5)]
    one = run(tmp_path / "one", epochs=30, callbacks=stops)
    assert one.stopped_epoch < 29
    run(tmp_path / "two", epochs=2, callbacks=stops)
    with failing(monkeypatch, Checkpointer, "save_result", Cut(), killed=True):
        run(tmp_path / "two", epochs=30, callbacks=stops)
    two = run(tmp_path / "two", epochs=30, callbacks=stops, verbose=2)  # how much is said is no change
    same(one, two, tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("executor", "at"), [("looped", 1), ("stepped", 4), ("looped", 7)])
def test_a_writer_that_fails_for_a_while_loses_no_row(tmp_path, monkeypatch, whole, executor, at):
    """The seventh row is one of the end of training, whose state is the training's no more."""
    with failing(monkeypatch, CSVWriter, "write", OSError("no room"), at=at):
        run(tmp_path, executor, epochs=3, callbacks=own())
    ends_as(whole, tmp_path, executor, 3)


@pytest.mark.parametrize(
    ("executor", "cls", "what"),
    [("looped", Results, "read"), ("stepped", Results, "read"), ("looped", DeviceRun, "inputs_of")],
)
def test_a_second_ctrl_c_comes_anywhere(tmp_path, monkeypatch, whole, executor, cls, what):
    with failing(monkeypatch, cls, what, KeyboardInterrupt(), at=4):
        run(tmp_path, executor, epochs=3, callbacks=own())
    ends_as(whole, tmp_path, executor, 3)


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_at_the_end_is_heard_when_the_result_is_saved(tmp_path, signum, error):
    def tell(logs):
        os.kill(os.getpid(), signum)

    told = [jc.LambdaCallback(on_train_end=tell)]
    with pytest.raises(error) as caught:
        run(tmp_path, epochs=2, callbacks=told)
    assert getattr(caught.value, "code", 143) == 143
    result = run(tmp_path, epochs=2, callbacks=told)  # which would raise again
    assert int(result.state.step) == 10


def test_a_directory_is_of_one_run_at_a_time(tmp_path):
    def another(epoch, logs):
        run(tmp_path, callbacks=[])

    with pytest.raises(RuntimeError, match="is in use by another run") as caught:
        run(tmp_path, epochs=3, callbacks=[jc.LambdaCallback(on_epoch_end=another)])
    assert str(tmp_path) in str(caught.value)
    assert int(run(tmp_path, epochs=3, callbacks=[jc.LambdaCallback()]).state.step) == 15


def test_a_callback_may_change_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def leave(epoch, logs):
        os.chdir(tmp_path / "elsewhere")

    more = [*callbacks(), jc.ModelCheckpoint("exports/{epoch}", save_at_end=True)]
    run("runs/a", callbacks=[jc.LambdaCallback(on_epoch_begin=leave), *more], epochs=2)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    run(tmp_path / "whole", callbacks=more, epochs=2)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "runs" / "a" / path.name).exists(), path
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "runs" / "a" / path.name).read_bytes()
