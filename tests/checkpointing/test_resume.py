"""Resume: a run that was cut short ends as if it had not been."""

import csv
import functools
import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _patience import PATIENCE, until
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import _runs

import jaxcb as jc
from jaxcb._src.checkpointing.store import Store
from jaxcb._src.loop.host.stops import Signals
from jaxcb._src.storage.ownership import RunRecord

EXECUTORS = ("looped", "stepped")


class Cut(Exception):
    """Ends a run as a crash would: nothing is saved on the way out."""


class CutAt(jc.Callback):
    """Cuts the run after a step."""

    at: int = jc.static(default=0)

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Call(_cut, when=metrics.step == self.at)


def _cut(run):
    raise Cut


def callbacks(every=3):
    return [
        jc.EarlyStopping(patience=2, min_delta=0.02, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05),
        jc.SwapEMAWeights(decay=0.9),
        jc.CSVLogger("log.csv"),
        jc.CSVLogger("other.csv", append=True, name="other"),
        jc.callbacks.JSONLogger("log.jsonl"),
        jc.callbacks.NormMonitor(every=3, of="grad_norm"),
        jc.BackupAndRestore("unused", save_freq=every),
    ]


def latest_save(directory):
    """The newest checkpoint of the run in a directory."""
    record = RunRecord.read(directory)
    assert record is not None
    saved = Store(directory / "checkpoints", run=record.run, say=print).latest()
    assert saved is not None
    return saved


def run(directory, executor="looped", at=None, **changes):
    own = changes.pop("callbacks", None) or callbacks()
    given = {"epochs": 6, "resume": True, "run_dir": directory, "callbacks": own} | changes
    if at is None:
        return _runs.fit(executor, **given)
    given["callbacks"] = [*own, CutAt(at)]
    with pytest.raises(Cut):
        _runs.fit(executor, **given)
    return None


FILES = ("log.csv", "other.csv", "log.jsonl", "history.csv")


def same(a, b, one, other):
    """Requires two results, and their files, to be equal to the last bit."""
    for name in ("params", "opt_state", "model_state", "weights", "controls", "step", "key"):
        for x, y in zip(jax.tree.leaves(getattr(a.state, name)), jax.tree.leaves(getattr(b.state, name)), strict=True):
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # pyright: ignore[reportPrivateImportUsage]
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_array_equal(x, y, err_msg=name)
    states = [{k: v for k, v in r.callback_states.items() if k != "CutAt"} for r in (a, b)]
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.stop_reason == b.stop_reason
    assert a.stopped_epoch == b.stopped_epoch
    assert set(a.history) == set(b.history)
    for name in a.history:
        np.testing.assert_array_equal(a.history[name], b.history[name], err_msg=name)
        assert a.history[name].dtype == b.history[name].dtype
    for name in FILES:
        if (one / name).exists() or (other / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never cut short with an executor, and its folder."""

    @functools.cache
    def of(executor):
        directory = tmp_path_factory.mktemp(executor)
        return run(directory, executor), directory

    return of


LONG = pytest.mark.long
CUTS = [("looped", 10), ("stepped", 7)]
MORE = [(executor, at) for executor in EXECUTORS for at in (1, 3, 5, 6, 9, 14, 15, 20)]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("executor", "at"), [*CUTS, *(pytest.param(*cut, marks=LONG) for cut in MORE)])
def test_a_run_cut_short_after_any_step_ends_as_if_it_had_not_been(tmp_path, whole, executor, at):
    run(tmp_path, executor, at)
    result = run(tmp_path, executor)
    same(result, whole(executor)[0], tmp_path, whole(executor)[1])


@pytest.mark.long
@settings(max_examples=15)
@given(data=st.data())
def test_cut_twice_with_saves_in_between(tmp_path_factory, whole, data):
    """Saves every few steps, so that what is done after a save is done again, and its rows stand once."""
    directory = tmp_path_factory.mktemp("cut")
    every = data.draw(st.integers(1, 7))
    first = data.draw(st.integers(1, 14))
    second = data.draw(st.integers(first, 20))
    for at in (first, second):
        run(directory, at=at, callbacks=callbacks(every))
    result = run(directory, callbacks=callbacks(every))
    same(result, whole("looped")[0], directory, whole("looped")[1])


@pytest.mark.parametrize(
    ("executor", "streamed"),
    [
        ("looped", "generator"),
        pytest.param("stepped", "list", marks=LONG),
        pytest.param("looped", "list", marks=LONG),
        pytest.param("stepped", "generator", marks=LONG),
    ],
)
def test_streams_go_on_at_their_batch(tmp_path, executor, streamed):
    x, y = _runs.make_data(70)

    def data():
        batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
        if streamed == "list":
            return batches
        return (batches[i % 4] for i in range(1000))

    def go(directory, at=None):
        more = {} if streamed == "list" else {"steps_per_epoch": 4}
        return run(directory, executor, at, data=data(), batch_size=None, epochs=4, **more)

    one = go(tmp_path / "one")
    go(tmp_path / "two", at=6)
    two = go(tmp_path / "two")
    same(one, two, tmp_path / "one", tmp_path / "two")


@pytest.mark.long
def test_validation_in_the_middle_of_epochs_and_by_the_host(tmp_path):
    held = [_runs.make_data(20, seed=1)]
    given = {"eval_every": 3, "validation_data": held, "metrics": {"val_b": jc.probes.evaluator(lambda p: p["b"])}}
    one = run(tmp_path / "one", **given)
    for at in (3, 4, 9):
        run(tmp_path / "two", at=at, **given)
    same(one, run(tmp_path / "two", **given), tmp_path / "one", tmp_path / "two")


# What is asked for


def test_a_run_that_has_come_to_its_end_returns_its_result_at_once(tmp_path, capsys):
    first = run(tmp_path, verbose=2)
    capsys.readouterr()
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    second = run(tmp_path, verbose=2)
    how = "stopped" if first.stop_reason else "finished"
    said = f"the run in {tmp_path} has {how} at step {int(first.state.step)}; this is its result"
    assert said in capsys.readouterr().out
    same(first, second, tmp_path, tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in FILES}


def test_more_epochs_go_on_from_the_training_and_not_from_the_restored_weights(tmp_path, capsys):
    own = [jc.SwapEMAWeights(decay=0.9), jc.CSVLogger("log.csv")]
    one = run(tmp_path / "one", epochs=5, callbacks=own)
    run(tmp_path / "two", epochs=2, callbacks=own)
    capsys.readouterr()
    with pytest.warns(RuntimeWarning, match="with another request: epochs 2 -> 5"):
        two = run(tmp_path / "two", epochs=5, callbacks=own, verbose=2)
    assert "at step 10, in epoch 3" in capsys.readouterr().out
    same(one, two, tmp_path / "one", tmp_path / "two")


@pytest.mark.long
def test_more_patience_goes_on_after_a_stop(tmp_path):
    short = run(tmp_path, epochs=30, callbacks=[jc.EarlyStopping(patience=1, min_delta=0.05)])
    longer = [jc.EarlyStopping(patience=3, min_delta=0.05)]
    result = run(tmp_path, epochs=30, callbacks=longer)
    alone = run(tmp_path / "alone", epochs=30, callbacks=longer)
    assert short.stopped_epoch < result.stopped_epoch == alone.stopped_epoch
    np.testing.assert_array_equal(result.params["w"], alone.params["w"])


def test_a_run_that_is_there_is_neither_replaced_nor_resumed_unasked(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(
        FileExistsError, match=r"Pass resume=True to resume it, checkpointing=jc.Checkpointing\(overwrite=True\) to"
    ):
        run(tmp_path, epochs=1, resume=False)
    again = run(tmp_path, epochs=1, resume=False, overwrite=True)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    assert int(again.state.step) == 5
    with pytest.raises(TypeError, match="resume must be True or False"):
        run(tmp_path, resume="yes")


@pytest.mark.long
def test_backup_and_restore_alone_makes_a_run_that_resumes(tmp_path):
    def go(at=None):
        own = [jc.BackupAndRestore(tmp_path / "backup", save_freq=2), *([CutAt(at)] if at else [])]
        return _runs.fit(epochs=3, callbacks=own)

    with pytest.raises(Cut):
        go(at=7)
    result = go()
    bare = _runs.fit(epochs=3, callbacks=[])
    np.testing.assert_array_equal(result.params["w"], bare.params["w"])
    assert int(result.state.step) == 15


# Changed code


def test_another_model_is_refused_with_both_shapes(tmp_path):
    run(tmp_path, epochs=2, callbacks=[])
    model = {"w": np.zeros((3, 2), np.float32), "b": np.zeros((), np.float32)}
    with pytest.raises(ValueError, match="saved with another model or optimizer") as caught:
        run(tmp_path, epochs=3, callbacks=[], model=model)
    assert "params['w']: saved float32[3, 1], now float32[3, 2]" in str(caught.value)
    import optax

    with pytest.raises(ValueError, match="saved nothing, now float32") as caught:
        run(tmp_path, epochs=3, callbacks=[], optimizer=lambda learning_rate: optax.sgd(learning_rate, momentum=0.9))
    assert "opt_state" in str(caught.value)


@pytest.mark.long
def test_other_callbacks_start_anew_or_are_dropped_and_both_are_said(tmp_path, capsys):
    run(tmp_path, epochs=2, callbacks=[jc.EarlyStopping(patience=9), jc.ReduceLROnPlateau(patience=9)])
    own = [jc.EarlyStopping("loss", patience=9), jc.TerminateOnNaN(), jc.SwapEMAWeights()]
    result = run(tmp_path, epochs=4, callbacks=own, verbose=2)
    out = capsys.readouterr().out
    assert "TerminateOnNaN" in out
    assert "SwapEMAWeights, TerminateOnNaN are new and start with their initial state" in out
    assert "ReduceLROnPlateau are missing, and their state is dropped" in out
    assert "EarlyStopping are other callbacks under the same name" in out
    assert int(result.callback_states["EarlyStopping"].best_epoch) >= 2  # of `loss`, from the third epoch on


@pytest.mark.long
def test_configuration_comes_from_the_code(tmp_path):
    run(tmp_path, epochs=2, callbacks=[jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=9.0)])
    result = run(tmp_path, epochs=3, callbacks=[jc.ReduceLROnPlateau(patience=1, factor=0.1, min_delta=9.0)])
    np.testing.assert_allclose(result.history["learning_rate"], 0.05 * np.asarray([1, 1, 0.5]), rtol=1e-6)
    assert float(result.state.learning_rate.scale) == pytest.approx(0.05)


# Signals and faults

SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored
import jaxcb as jc
from loop import _runs
from pathlib import Path
directory, signum = Path(sys.argv[1]), int(sys.argv[2])
def kill(epoch, logs):
    if epoch == 3 and signum and not (directory / "told").exists():
        (directory / "told").touch()
        os.kill(os.getpid(), signum)
result = _runs.fit(sys.argv[3], epochs=8, run_dir=directory, resume=True, verbose=2,
                   callbacks=[jc.LambdaCallback(on_epoch_end=kill), jc.CSVLogger("log.csv")])
print("done", int(result.state.step))
"""


def child(directory, signum, executor="looped"):
    command = [sys.executable, "-c", SCRIPT, str(directory), str(signum), executor]
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([os.path.dirname(tests), tests])
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=2 * PATIENCE
    )


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=LONG)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, signum, status):
    told = child(tmp_path, signum)
    assert told.returncode in ({status, -signum} if signum == signal.SIGINT else {status}), told.stderr
    if signum == signal.SIGINT:
        assert "KeyboardInterrupt: stopped after 20 steps; the run is saved in" in told.stderr
        assert "the same command with resume=True continues it" in told.stderr
    else:
        assert f"jaxcb: stopped after 20 steps; the run is saved in {tmp_path}" in told.stdout
    rest = child(tmp_path, signum)
    assert rest.returncode == 0, rest.stderr
    assert "resuming" in rest.stdout
    assert "done 40" in rest.stdout
    with (tmp_path / "log.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(8))


def test_ctrl_c_has_the_result_on_it():
    def interrupt(epoch, logs):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="nothing was saved, because the run has no run_dir") as caught:
        _runs.fit(epochs=100, callbacks=[jc.LambdaCallback(on_epoch_end=interrupt)])
    result = caught.value.result  # pyright: ignore[reportAttributeAccessIssue]
    assert result is jc.last_result()
    assert result.stop_reason == "interrupted"
    assert np.isfinite(result.params["w"]).all()
    assert len(result.history["loss"]) >= 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("thread", ["any", "another"])
def test_ctrl_c_while_waiting_for_data_is_answered_at_once(thread, monkeypatch):
    """Where another thread receives the signal, the wait of the main thread goes on.

    That also happens with a signal that arrives just before the main thread begins to wait.
    """
    monkeypatch.setattr("jaxcb._src.data.stream.prefetch._JOIN_SECONDS", 0.1)
    x, y = _runs.make_data(16)
    runs, epochs, done, answered = [], [], threading.Event(), []
    enter = Signals.__enter__
    monkeypatch.setattr(Signals, "__enter__", lambda self: runs.append(self) or enter(self))

    def batches():
        for _ in range(5):
            yield x, y
        until(lambda: len(epochs) == 2 and runs[0].waiting)
        if thread == "any":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        answered.append(done.wait(PATIENCE))

    note = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            _runs.fit(data=batches(), batch_size=None, steps=100, steps_per_epoch=2, epochs=None, callbacks=[note])
    finally:
        done.set()
    until(lambda: answered)
    assert answered == [True]
    assert int(caught.value.result.state.step) in (4, 5)  # the fifth may still have waited for its chunk  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_in_the_data_saves_what_was_trained(tmp_path, executor):
    x, y = _runs.make_data(16)
    broken = [True]

    class Data:
        def __iter__(self):
            for number in range(4):
                if broken[0] and number == 3 and self.passes == 2:
                    raise OSError("the disk is gone")
                yield x * (number + 1), y
            self.passes += 1

        passes = 1

    def go(directory):
        return _runs.fit(
            executor, data=Data(), batch_size=None, epochs=3, callbacks=[jc.CSVLogger("log.csv")],
            run_dir=directory, resume=True, validation_data=None,
        )  # fmt: skip

    with pytest.raises(OSError, match="the disk is gone"):
        go(tmp_path / "two")
    assert any(p.name.startswith("step_000000007") for p in (tmp_path / "two" / "checkpoints").iterdir())
    broken[0] = False
    two, one = go(tmp_path / "two"), go(tmp_path / "one")
    same(one, two, tmp_path / "one", tmp_path / "two")


@pytest.mark.long
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(tmp_path):
    run(tmp_path, at=9)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    files = [p for p in newest.rglob("*") if p.is_file() and p.name != "manifest.json"]
    victim = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=newest.name):
        result = run(tmp_path)
    whole = run(tmp_path / "whole")
    same(result, whole, tmp_path, tmp_path / "whole")


def test_no_whole_checkpoint_left_is_an_error_and_no_fresh_start(tmp_path):
    run(tmp_path, at=9)
    for manifest in (tmp_path / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{")
    with pytest.raises(ValueError, match="none of them is complete"):
        run(tmp_path)


@pytest.mark.long
def test_the_time_goes_on(tmp_path):
    """A budget of time is one of the whole run."""
    run(tmp_path, at=9)
    elapsed = latest_save(tmp_path).facts["elapsed"]
    assert elapsed > 0
    result = run(tmp_path, callbacks=[*callbacks(), jc.callbacks.Timer(elapsed)])
    assert "Timer: the time limit of" in result.stop_reason
    assert int(result.state.step) <= 10


@pytest.mark.long
def test_each_point_stands_once_in_the_event_files(tmp_path):
    """Points written after the last save are written again, and stand once."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    def points(directory):
        found = []
        for file in sorted((directory / "logs" / "train").glob("events*")):
            for event in EventFileLoader(str(file)).Load():
                found += [(v.tag, event.step, v.tensor.float_val[:]) for v in event.summary.value]
        return sorted((tag, step, list(value)) for tag, step, value in found)

    def own():
        return [jc.callbacks.NormMonitor(every=1, of="grad_norm"), jc.BackupAndRestore("unused", save_freq=4)]

    one = run(tmp_path / "one", epochs=3, callbacks=own())
    for at in (6, 11):
        run(tmp_path / "two", epochs=3, callbacks=own(), at=at)
    run(tmp_path / "two", epochs=3, callbacks=own())
    assert [step for _, step, _ in points(tmp_path / "one")] == list(range(1, int(one.state.step) + 1))
    assert points(tmp_path / "one") == points(tmp_path / "two")


# What changed


@pytest.mark.long
def test_metrics_may_come_and_go(tmp_path):
    """The history takes new columns in, and keeps those that nobody fills any more."""
    run(tmp_path, epochs=2, callbacks=[jc.callbacks.NormMonitor(every=2, of="grad_norm")])
    result = run(tmp_path, epochs=4, callbacks=[jc.callbacks.NormMonitor(every=2, of="param_norm")])
    assert result.history.reported("grad_norm").tolist() == [True, True, False, False]
    assert result.history.reported("param_norm").tolist() == [False, False, True, True]
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["grad_norm"] == "NA" for row in rows] == [False, False, True, True]
    again = run(tmp_path, epochs=4, callbacks=[jc.callbacks.NormMonitor(every=2, of="param_norm")])
    assert set(again.history) == set(result.history)


def test_metrics_that_exchange_their_shapes_do_not_mix(tmp_path):
    """A mean over part of an epoch is none of it, and another metric's sum still less."""

    def run_with(shapes, fails):
        def batches():
            for number in range(5):
                if fails and number == 3:
                    raise OSError("the disk is gone")
                yield np.ones((2, 1), np.float32)

        class Again:
            def __iter__(self):
                return batches()

        def loss_fn(params, batch):
            values = {name: jnp.full(shape, 100.0**place) for place, (name, shape) in enumerate(shapes.items())}
            return jnp.mean((params["w"] * batch) ** 2), values

        keeping = jc.make_callback(
            init=lambda: {name: jnp.zeros(shape) for name, shape in shapes.items()},
            on_epoch_end=lambda state, metrics: ({name: metrics[name] for name in state}, None),
            name=f"keeping {shapes}",
        )
        result = jc.fit(
            {"w": jnp.ones(())}, loss_fn, Again(), optimizer=optax.sgd(0.1), epochs=1, run_dir=tmp_path,
            callbacks=[keeping], resume=True, execution=jc.Execution(steps_per_execution=1), verbose=0,
        )  # fmt: skip
        return result.callback_states[f"keeping {shapes}"]

    with pytest.raises(OSError, match="the disk is gone"):
        run_with({"a": (2,), "b": (3,)}, fails=True)
    means = run_with({"a": (3,), "b": (2,)}, fails=False)
    np.testing.assert_allclose(means["a"], np.ones(3))
    np.testing.assert_allclose(means["b"], np.full(2, 100.0))


def test_the_end_alone_does_not_release_a_stop(tmp_path):
    own = [jc.EarlyStopping(patience=1, min_delta=0.5)]
    first = run(tmp_path, epochs=20, callbacks=own)
    assert first.stopped_epoch is not None
    again = run(tmp_path, epochs=30, callbacks=own, verbose=2)
    assert int(again.state.step) == int(first.state.step)
    assert again.stop_reason == first.stop_reason


def test_a_run_is_replaced_only_when_the_new_one_begins(tmp_path):
    run(tmp_path, epochs=1)
    (tmp_path / "result" / "thesis.txt").write_text("mine")
    with pytest.raises(jc.errors.MissingMetricError):
        run(tmp_path, resume=False, overwrite=True, callbacks=[jc.EarlyStopping("val_los", mode="min")])
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"resume=True and Checkpointing\(overwrite=True\) were both given"):
        run(tmp_path, overwrite=True)
    run(tmp_path, epochs=2, resume=False, overwrite=True)
    assert (tmp_path / "result" / "thesis.txt").read_text() == "mine"
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


@pytest.mark.long
def test_a_stale_result_is_no_result(tmp_path):
    """A run that was extended and cut short has no result until it ends again."""
    own = [jc.CSVLogger("log.csv")]
    run(tmp_path, epochs=2, callbacks=own)
    run(tmp_path, epochs=6, callbacks=own, at=17)
    result = run(tmp_path, epochs=6, callbacks=own)
    assert int(result.state.step) == 30
    assert result.history["loss"].shape == (6,)


@pytest.mark.long
def test_averages_in_place_of_the_weights_do_not_become_the_training(tmp_path):
    run(tmp_path, epochs=2, callbacks=[jc.SwapEMAWeights(swap_on_epoch=True)])
    with pytest.raises(ValueError, match="held the training weights"):
        run(tmp_path, epochs=4, callbacks=[jc.TerminateOnNaN()])


@pytest.mark.long
def test_a_second_budget_of_time_is_one(tmp_path):
    run(tmp_path, epochs=1_000_000, callbacks=[jc.callbacks.Timer(0.0)], validation_data=None)
    result = run(tmp_path, epochs=1_000_000, callbacks=[jc.callbacks.Timer(1.0)], validation_data=None)
    assert "Timer: the time limit of 1 s was reached" in result.stop_reason


def test_another_order_of_the_data_is_refused_in_the_middle_of_an_epoch(tmp_path):
    run(tmp_path, at=7)
    with pytest.raises(ValueError, match="batch_size was 16, is 8; seed was 0, is 1"):
        run(tmp_path, batch_size=8, seed=1)
