"""Trackers in runs: resumes, results after training, members of a sweep, and what a resumed run compiles."""

import collections
import json
import shutil
import sys

import jax.numpy as jnp
import optax
import pytest
from _compilations import counting
from loop._runs import fit, loss_fn, make_data, make_params

import jaxcb as jc


class Shelf(jc.writers.Tracker):
    """A service whose content outlives the client, as a class attribute of each test's own subclass."""

    def __init__(self, runs, *, readable=True):
        self.runs, self.readable, self.status = runs, readable, []

    def open(self, run):
        self.id = run.id or run.key
        self.rows = self.runs.setdefault(self.id, [])
        return self.id

    def send(self, records):
        self.rows += [(r.step, name, value) for r in records for name, value in r.values.items()]

    def history(self, name):
        return [(step, value) for step, own, value in self.rows if own == name] if self.readable else None

    def close(self, status):
        self.status.append(status)


def own(runs, **more):
    return {"data": make_data(), "model": make_params(), "callbacks": [jc.callbacks.TrackerLogger(Shelf(runs, **more))]}


def rows_of(result):
    """What the history says that a logger by epoch has logged."""
    history = result.history
    return collections.Counter(
        (int(step), name, float(history[name][row]))
        for row, step in enumerate(history.step)
        for name in history
        if history.reported(name)[row]
    )


def close_to(rows, expected):
    assert {(s, n): round(v, 5) for s, n, v in rows} == {(s, n): round(v, 5) for s, n, v in expected}
    assert len(rows) == expected.total()


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("executor", "readable"), [("looped", True), ("stepped", False)])
def test_a_resumed_run_is_one_run(executor, readable, tmp_path):
    runs = {}
    for epochs in (1, 3, 3):
        result = fit(executor, epochs=epochs, run_dir=tmp_path, resume=True, **own(runs, readable=readable))
    (rows,) = runs.values()
    close_to(rows, rows_of(result))


@pytest.mark.parametrize("readable", [True, False])
def test_a_run_from_an_older_copy_of_its_directory(readable, tmp_path):
    """The machine vanished, with the journal: the service holds more than the directory says."""
    runs = {}
    fit(epochs=2, run_dir=tmp_path / "a", **own(runs))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    whole = fit(epochs=4, run_dir=tmp_path / "a", resume=True, **own(runs))
    fit(epochs=4, run_dir=tmp_path / "b", resume=True, **own(runs, readable=readable))
    (rows,) = runs.values()
    if readable:
        close_to(rows, rows_of(whole))
    assert {(s, n) for s, n, _ in rows} == {(s, n) for s, n, _ in rows_of(whole)}


def test_a_result_after_training(tmp_path):
    runs = {}
    for _ in range(2):  # the same script, once more
        result = fit(epochs=2, run_dir=tmp_path, resume=True, **own(runs))
        result.log({"test_loss": 0.5, "count": jnp.int32(3)})
    (rows,) = runs.values()
    assert [row for row in rows if row[1] in ("test_loss", "count")] == [(10, "test_loss", 0.5), (10, "count", 3)]
    longer = fit(epochs=3, run_dir=tmp_path, resume=True, **own(runs))
    assert {s for s, n, _ in rows if n == "loss"} == {5, 10, 15}
    longer.log({"test_loss": 0.25})
    assert rows[-1] == (15, "test_loss", 0.25)


def test_a_result_without_a_directory_and_without_a_tracker():
    runs = {}
    result = fit(epochs=1, **own(runs))
    result.log({"test_loss": float("nan")})
    (rows,) = runs.values()
    assert rows[-1][:2] == (5, "test_loss")
    with pytest.raises(TypeError, match=r"Result.log: a must be a number, got 'b'"):
        result.log({"a": "b"})
    with pytest.raises(ValueError, match="the run has none: pass a callback such as"):
        fit(epochs=1).log({"test_loss": 0.5})


def test_an_interrupted_and_a_failed_run_are_told_so():
    statuses = []
    for error in (KeyboardInterrupt, ValueError):
        given = own({})

        def fail(run, error=error):
            raise error

        watch = jc.make_callback(on_epoch_end=lambda s, m, fail=fail: (s, jc.actions.Call(fail)))
        with pytest.raises(error):
            fit(epochs=2, **(given | {"callbacks": [*given["callbacks"], watch]}))
        statuses += given["callbacks"][0].tracker.status
    assert statuses == ["interrupted", "failed"]


def test_members_of_a_sweep_have_names_of_their_own(tmp_path):
    runs = {}
    jc.sweep(
        make_params,
        loss_fn,
        make_data(),
        over={"optimizer.learning_rate": [0.1, 0.01]},
        optimizer=optax.adam,
        learning_rate=0.1,
        epochs=2,
        batch_size=16,
        run_dir=tmp_path,
        verbose=0,
        callbacks=own(runs)["callbacks"],
    )
    (rows,) = runs.values()
    assert {(s, n) for s, n, _ in rows if n.startswith("loss")} == {(s, f"loss/{m}") for s in (5, 10) for m in (0, 1)}


def test_a_second_run_compiles_nothing(tmp_path):
    given = own({})
    fit(epochs=2, run_dir=tmp_path / "a", **given)
    with counting() as counts:
        fit(epochs=2, run_dir=tmp_path / "b", **given)
    assert counts["compiled"] == counts["traced"] == 0


def test_a_trial_run_tells_no_service(tmp_path):
    runs = {}
    result = fit(epochs=2, run_dir=tmp_path / "a", fast_dev_run=2, **own(runs))
    assert runs == {}
    assert not (tmp_path / "a").exists()
    assert result.what_ran == ()


def test_overwriting_a_run_begins_a_run_in_the_service(tmp_path):
    runs = {}
    fit(epochs=2, run_dir=tmp_path, **own(runs))
    fit(epochs=2, run_dir=tmp_path, checkpointing=jc.Checkpointing(overwrite=True), **own(runs))
    first, second = runs.values()
    assert first == second


def test_a_logger_that_is_new_in_a_resumed_run_begins_there(tmp_path):
    runs = {}
    given = own(runs)
    fit(epochs=1, run_dir=tmp_path, **(given | {"callbacks": [jc.callbacks.JSONLogger("a.jsonl")]}))
    fit(epochs=3, run_dir=tmp_path, resume=True, **given)
    (rows,) = runs.values()
    assert {step for step, _, _ in rows} == {10, 15}


def test_the_outbox_is_a_file_of_the_run(tmp_path):
    fit(epochs=2, run_dir=tmp_path, **own({}))
    lines = (tmp_path / ".jaxcb" / "outbox" / "TrackerLogger.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10]
    made = [json.loads(line).get("made") for line in (tmp_path / ".jaxcb" / "run.jsonl").read_text().splitlines()]
    assert {".jaxcb/outbox/TrackerLogger.jsonl", ".jaxcb/outbox/TrackerLogger.sent.jsonl"} <= set(made)


@pytest.mark.parametrize(
    ("tracker", "says"),
    [
        (3, "tracker must be an instance of a subclass of jc.writers.Tracker, got 3"),
        (Shelf, "tracker must be an instance of a subclass of jc.writers.Tracker"),
    ],
)
def test_what_is_no_tracker_is_refused(tracker, says):
    with pytest.raises(TypeError, match=says):
        jc.callbacks.TrackerLogger(tracker)


def test_a_tracker_that_is_not_hashable_is_refused():
    class Equal(jc.writers.Tracker):
        def __eq__(self, other):
            return True

    with pytest.raises(TypeError, match=r"tracker must be hashable, got a Equal. Make it an ordinary class"):
        jc.callbacks.TrackerLogger(Equal())


@pytest.mark.parametrize(
    ("callback", "package"),
    [
        (lambda: jc.callbacks.TrackioLogger("a"), "trackio"),
        (lambda: jc.callbacks.HubUpload("a/b"), "huggingface_hub"),
    ],
)
def test_a_missing_package_is_an_error_before_the_first_step(callback, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    steps = []
    count = jc.callbacks.LogTo(lambda step, values: steps.append(step), every=1)
    with pytest.raises(ImportError, match=rf"needs the package {package}: pip install jaxcb\["):
        fit(epochs=1, callbacks=[callback(), count])
    assert not steps


@pytest.mark.parametrize("given", [{"name": "a"}, {"resume": "never"}])
def test_trackio_arguments_that_the_logger_sets_itself_are_refused(given):
    with pytest.raises(ValueError, match=f"TrackioLogger sets {next(iter(given))} itself"):
        jc.callbacks.TrackioLogger("a", **given)
