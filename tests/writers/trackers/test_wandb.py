"""`WandbLogger` with the real package, offline: its file holds what the history holds."""

import json
import struct
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.writers.run_handle import Record, Run
from jaxcb._src.writers.trackers.delivery import record_at
from jaxcb._src.writers.trackers.wandb import WandbTracker, WandbWriter
from jaxcb.writers import Context

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it and its dependencies think of this Python is not ours
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install jaxcb[wandb]")

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No test reaches for the network, or for a home directory."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield
    wandb.teardown()  # its service process


def files(directory):
    wandb.teardown()  # its service writes behind; when it has ended, all is there
    return sorted(directory.glob("wandb/offline-run-*/*.wandb"))


def read(path):
    """The records of an offline run's file, which is a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, records, parts = path.read_bytes(), 7, [], b""  # after the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end has no room for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(parts))  # pyright: ignore[reportAttributeAccessIssue]
            parts = b""
    return records


def history(path):
    """Step -> values of an offline run."""
    rows = {}
    for record in read(path):
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows[row.pop("_step")] = {name: value for name, value in row.items() if not name.startswith("_")}
    return rows


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_the_offline_file_holds_what_the_history_holds(executor, tmp_path):
    result = fit(
        executor,
        epochs=4,
        validation_freq=2,
        run_dir=tmp_path / "run",
        callbacks=[jc.callbacks.WandbLogger("digits", config={"layers": [1, 2]})],
    )
    (path,) = files(tmp_path / "run")
    rows = history(path)
    assert sorted(rows) == result.history.step.tolist()
    for index, step in enumerate(result.history.step.tolist()):
        assert set(rows[step]) == {n for n in result.history if result.history.reported(n)[index]}
        assert all(np.float32(value) == result.history[name][index] for name, value in rows[step].items())
    (run,) = [r.run for r in read(path) if r.WhichOneof("record_type") == "run"]
    assert run.project == "digits"
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["layers"] == [1, 2]
    (end,) = [r.exit for r in read(path) if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0
    assert wandb.run is None


def test_a_steps_own_values_have_their_own_names(tmp_path):
    fit(epochs=1, validation_data=None, callbacks=[jc.callbacks.WandbLogger("digits", every=2, dir=str(tmp_path))])
    rows = history(files(tmp_path)[0])
    assert {step: "batch_loss" in row for step, row in rows.items()} == {2: True, 4: True, 5: False}


def test_a_run_that_the_user_has_open_is_used_and_left_open(tmp_path):
    run = wandb.init(project="mine", dir=str(tmp_path))
    result = fit(epochs=2, validation_data=None, callbacks=[jc.callbacks.WandbLogger()])
    assert wandb.run is run
    run.log({"after": 1.0}, step=100)
    run.finish()
    (path,) = files(tmp_path)
    rows = history(path)
    assert sorted(rows) == [*result.history.step.tolist(), 100]


def test_two_loggers_have_a_run_each(tmp_path):
    loggers = [jc.callbacks.WandbLogger(project, dir=str(tmp_path)) for project in ("a", "b")]
    fit(epochs=1, validation_data=None, callbacks=loggers)
    projects = {r.run.project for f in files(tmp_path) for r in read(f) if r.WhichOneof("record_type") == "run"}
    assert projects == {"a", "b"}


def test_a_run_that_fails_is_marked_so(tmp_path):
    context = Context(tmp_path, Run(tmp_path), 0, None)
    writer = WandbWriter(context)
    _, (action,) = jc.chain(jc.callbacks.WandbLogger("digits")).on_train_begin({"WandbLogger": ()}, jc.Metrics({}))
    writer.prepare(action)
    writer.write(Record(action, "on_train_begin", 0, 0, 0))
    context.failure = RuntimeError("oh")
    writer.close()
    (end,) = [r.exit for r in read(files(tmp_path)[0]) if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1


def test_a_service_that_cannot_be_reached_is_told_once_and_loses_nothing(tmp_path, monkeypatch):
    attempts = []

    def init(**options):
        attempts.append(options)
        raise wandb.errors.CommError("nobody there")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.warns(
        RuntimeWarning, match=r"could not be reached by WandbLogger: CommError|did not receive"
    ) as caught:
        result = fit(
            epochs=3,
            validation_data=None,
            callbacks=[jc.callbacks.WandbLogger("a"), jc.callbacks.JSONLogger(tmp_path / "a.jsonl")],
        )
    assert "could not be reached" in str(caught[0].message)
    assert "did not receive 3 of 3 records" in str(caught[1].message)
    assert len(caught) == 2
    assert len(attempts) > 1, "tried again, and once more at the end"
    assert int(result.state.step) == 15
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3


def test_a_service_that_goes_down_later_is_told_once(tmp_path, monkeypatch):
    def log(self, *args, **more):
        raise ConnectionError("gone")

    monkeypatch.setattr(wandb.Run, "log", log)
    with pytest.warns(
        RuntimeWarning, match="could not be reached by WandbLogger: ConnectionError|did not receive"
    ) as caught:
        result = fit(epochs=3, validation_data=None, callbacks=[jc.callbacks.WandbLogger("a", dir=str(tmp_path))])
    assert "could not be reached" in str(caught[0].message)
    assert len(caught) == 2
    assert int(result.state.step) == 15


def test_what_the_user_can_mend_is_an_error_before_the_first_step(monkeypatch):
    def init(**options):
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", init)
    steps = []
    with pytest.raises(wandb.errors.UsageError, match="no API key"):
        fit(
            callbacks=[
                jc.callbacks.WandbLogger("a"),
                jc.callbacks.LogTo(lambda step, values: steps.append(step), every=1),
            ]
        )
    assert not steps


def test_the_package_is_asked_for_before_the_first_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"WandbLogger needs the package wandb: pip install jaxcb\[wandb\]"):
        fit(callbacks=[jc.callbacks.WandbLogger("a")])


@pytest.mark.parametrize("content", [b"", b":W&", b"nonsense", b":W&B" + bytes(10)])
def test_what_a_damaged_folder_of_an_earlier_process_lacks_is_sent_again(tmp_path, content):
    tracker = WandbTracker({})
    tracker._run = SimpleNamespace(offline=True, id="key", dir=str(tmp_path / "offline-run-2-key" / "files"))
    (tmp_path / "offline-run-1-key").mkdir()
    (tmp_path / "offline-run-1-key" / "run-key.wandb").write_bytes(content)
    records = [record_at(step, 0, {"loss": 0.5}) for step in (1, 2)]
    assert tracker.missing(records) == records
