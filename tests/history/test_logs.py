"""Logs of other libraries, read as records: the same numbers, and the same decisions as in those libraries.

`logs/metrics.csv` and `logs/lightning_events` are what pytorch-lightning 2.6.6 itself wrote with its `CSVLogger` and
`TensorBoardLogger` of 20 epochs without callbacks. `LIGHTNING` is where it stopped with its own `EarlyStopping`. In the
same way `logs/keras.csv` with `KERAS`, and `logs/keras_events` with `KERAS_EVENTS`, are of the `CSVLogger` and the
`TensorBoard` callback of Keras 3.15.1, of 25 epochs each, the latter on TensorFlow.
"""

import contextlib
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.history.log_formats import FORMATS
from jaxcb._src.history.logs import read_log, tidy
from jaxcb._src.history.reader import read_records
from jaxcb._src.history.wandb_files import logged_rows

LOGS = Path(__file__).parent / "logs"
LIGHTNING = {1: 1, 2: 2, 4: 4}  # patience, with min_delta=0.01 -> the epoch of the stop, from 0
KERAS = {1: 2, 2: 9, 4: 14}
KERAS_EVENTS = {(1, 0.01): 1, (2, 0.1): 6, (3, 0.2): 5, (4, 0.3): 6}  # patience and min_delta -> epoch
KERAS_CUT = 13  # by ReduceLROnPlateau(patience=3, min_delta=0.01)


@pytest.mark.parametrize("log", ["metrics.csv", "lightning_events"])
@pytest.mark.parametrize("patience", LIGHTNING)
def test_a_log_of_lightning_replays_as_lightning_stopped(log, patience):
    found = jc.replay([jc.EarlyStopping(patience=patience, min_delta=0.01)], LOGS / log)
    assert found.stopped_epoch == LIGHTNING[patience]


@pytest.mark.parametrize("patience", KERAS)
def test_a_log_of_keras_replays_as_keras_stopped(patience):
    found = jc.replay([jc.EarlyStopping(patience=patience, min_delta=0.01)], LOGS / "keras.csv")
    assert found.stopped_epoch == KERAS[patience]


@pytest.mark.parametrize(("patience", "min_delta"), KERAS_EVENTS)
def test_events_of_keras_replay_as_keras_stopped(patience, min_delta):
    found = jc.replay([jc.EarlyStopping(patience=patience, min_delta=min_delta)], LOGS / "keras_events")
    assert found.stopped_epoch == KERAS_EVENTS[patience, min_delta]
    assert set(read_log(LOGS / "keras_events").names) == {"loss", "mae", "val_loss", "val_mae"}


def test_a_log_of_keras_replays_as_keras_cut_its_rate():
    found = jc.replay([jc.ReduceLROnPlateau(patience=3, min_delta=0.01)], LOGS / "keras.csv")
    cuts = [epoch for epoch, fired in enumerate(found.actions) if jc.fired(fired)]
    assert cuts[0] == KERAS_CUT


def test_lightnings_rows_of_one_step_are_one_record():
    records = read_log(LOGS / "metrics.csv")
    assert len(records.step) == 20
    assert set(records.names) == {"train_loss", "val_loss"}
    assert records.epoch.tolist() == list(range(20))
    assert np.float32(0.662207305431366) in records.values[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was logged by every logger that writes files."""
    run_dir = tmp_path_factory.mktemp("run")
    loggers = [
        jc.CSVLogger("log.csv"),
        jc.callbacks.JSONLogger("log.jsonl"),
        jc.TensorBoard("tb", write_graph=False),
    ]
    return fit(epochs=5, run_dir=run_dir, callbacks=loggers), run_dir


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "tb"])
def test_our_own_logs_have_the_numbers_of_the_history(run, name):
    result, run_dir = run
    records = read_log(run_dir / name)
    history = read_records(run_dir)
    for metric in ("loss", "val_loss", "mae", "val_mae"):
        got = records.values[records.fresh[:, records.names.index(metric)], records.names.index(metric)]
        assert got.tolist() == result.history[metric].tolist()
    if name != "tb":
        assert records.step.tolist() == history.step.tolist()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.booleans())
def test_scalars_of_tensorflow_1_and_2_are_read(tmp_path_factory, values, first):
    """Written by TensorBoard's own writer, in the form of TensorFlow 1 or of TensorFlow 2, as Keras does."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    directory = tmp_path_factory.mktemp("tb")
    writer = EventFileWriter(str(directory / "validation"))
    for step, value in enumerate(values):
        older = Summary(value=[Summary.Value(tag="epoch_loss", simple_value=value)])
        summary = older if first else scalar_pb("epoch_loss", value)
        writer.add_event(Event(step=step, summary=summary))
    writer.close()
    records = read_log(directory)
    assert records.names == ("val_loss",)
    assert records.values[:, 0].tolist() == [np.float32(v) for v in values]
    assert records.epoch.tolist() == list(range(len(values)))


def test_an_offline_file_of_wandb_is_read(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    open_run = wandb.init(project="p", dir=str(tmp_path))
    losses = [1.0, 0.5, 0.75, 0.75]
    for step, loss in enumerate(losses):
        open_run.log({"val_loss": loss, "note": "x"}, step=step)
    open_run.finish()
    wandb.teardown()
    (directory,) = tmp_path.glob("wandb/offline-run-*")
    records = read_log(directory)
    assert records.values[:, records.names.index("val_loss")].tolist() == losses
    assert jc.replay([jc.EarlyStopping(patience=2)], directory).stopped_epoch == 3


def wandb_file(rows):
    """Returns the bytes of an offline file, and where each of its records ends."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    data, ends = bytearray(b":W&B\0\0\0"), []
    for step, row in enumerate(rows):
        record = messages.Record()
        record.history.step.num = step
        for name, value in row.items():
            record.history.item.add(key=name, value_json=json.dumps(value))
        left, first = record.SerializeToString(), True
        while left or first:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not left]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
        ends.append(len(data))
    return bytes(data), ends


@given(data=st.data())
def test_an_offline_file_of_wandb_that_is_cut_or_damaged_has_the_rows_before(tmp_path_factory, data):
    pytest.importorskip("wandb.proto.wandb_internal_pb2")
    sizes = data.draw(st.lists(st.sampled_from([0, 10, 32_700, 32_741, 32_742, 70_000]), min_size=1, max_size=6))
    rows = [{"loss": float(i), "note": "x" * size} for i, size in enumerate(sizes)]
    whole, ends = wandb_file(rows)
    cut = data.draw(st.one_of(st.sampled_from([0, 3, 7, *ends]), st.integers(0, len(whole))))
    path = tmp_path_factory.mktemp("wandb") / "run-1.wandb"
    never_written = bytes(20) if cut in ends else b""
    path.write_bytes(whole[:cut] + never_written)
    logged = [{"_step": i} | row for i, row in enumerate(rows)]
    assert list(logged_rows(path)) == logged[: sum(end <= cut for end in ends)]

    at = data.draw(st.integers(7, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    found: list[Any] = []
    with contextlib.suppress(jc.errors.DataError):
        found.extend(logged_rows(path))
    assert sum(end <= at for end in ends) <= len(found)
    assert found == logged[: len(found)]


def test_values_of_the_training_within_an_epoch_join_the_next_record():
    rows = [
        {"epoch": 0, "step": 10, "loss": 3.0},
        {"epoch": 0, "step": 20, "loss": 2.0, "val_loss": 9.0},
        {"epoch": 0, "step": 30, "loss": 1.0},
        {"epoch": 0, "step": 30, "val_loss": 8.0},
        {"epoch": 1, "step": 40, "loss": 0.5},
    ]
    records = tidy(rows, "rows")
    assert records.step.tolist() == [20, 30, 40]
    assert records.epoch.tolist() == [0, 0, 1]
    assert records.closes.tolist() == [False, True, True]
    assert records.values.tolist() == [[2.0, 9.0], [1.0, 8.0], [0.5, 8.0]]


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=9))
def test_without_epochs_each_validation_is_one(losses):
    both = [({"step": 2 * i, "loss": 0.0}, {"step": 2 * i, "val_loss": loss}) for i, loss in enumerate(losses)]
    rows = [row for pair in both for row in pair]
    records = tidy(rows, "rows")
    assert records.values[:, records.names.index("val_loss")].tolist() == losses
    assert records.epoch.tolist() == list(range(len(losses)))
    assert records.step[0] >= 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "epoch,loss\n0,1.0\n1\n", "line 3: 1 cells, expected 2"),
        ("a.csv", "epoch,loss\n0,1.0\n1,x\n", "column 'loss': 'x' is not a number"),
        ("a.csv", "epoch,loss\n", "no records"),
        ("a.jsonl", '{"loss": 1}\nnonsense\n{"loss": 1}\n', "line 2: it is not JSON"),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.jsonl", '{"loss": ' + "[" * 100_000 + "\n", "line 1: it is not JSON"),
        ("a.txt", "loss 1", "nor a log of a known format. Known: "),
        ("run-1.wandb", "nonsense", "not an offline file of W&B"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(jc.errors.DataError, match=words):
        read_log(tmp_path / name)


@given(data=st.data())
def test_a_damaged_event_file_is_an_error_or_shorter(tmp_path_factory, data):
    """Bytes of a frame's length are protected by a checksum; a file that is cut off has the events before."""
    (path,) = (LOGS / "lightning_events").iterdir()
    whole = read_log(path)
    cut = path.read_bytes()[: data.draw(st.integers(400, path.stat().st_size - 1))]
    copy = tmp_path_factory.mktemp("tb") / path.name
    copy.write_bytes(cut)
    records = read_log(copy)
    assert len(records.step) <= len(whole.step)
    copy.write_bytes(b"x" + cut)
    with pytest.raises(jc.errors.DataError, match="is damaged at byte 0"):
        read_log(copy)


def test_a_package_may_add_a_format(tmp_path):
    @jc.logs.log_format("one number a line", lambda path: path.suffix == ".numbers")
    def read_numbers(path):
        return [{"val_loss": float(line)} for line in path.read_text().splitlines()]

    (tmp_path / "a.numbers").write_text("3\n2\n2.5\n2.5\n")
    try:
        assert jc.replay([jc.EarlyStopping(patience=2)], tmp_path / "a.numbers").stopped_epoch == 3
    finally:
        FORMATS.pop()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: jc.logs.log_format("", print), "name must be a text"),
        (lambda: jc.logs.log_format("a", ".csv"), "matches must be a function of a path"),
        (lambda: jc.logs.log_format("a", print)("read"), "'a' needs a function of a path"),
    ],
)
def test_a_format_that_is_none_is_refused(make, words):
    count = len(FORMATS)
    with pytest.raises(TypeError, match=words):
        make()
    assert len(FORMATS) == count


def test_nan_of_json_is_a_value_and_null_is_not_reported(tmp_path):
    lines = [{"val_loss": 1.0}, {"val_loss": "nan"}, {"val_loss": None, "loss": 1.0}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"val_lo')
    records = read_log(tmp_path / "a.jsonl")
    assert records.fresh[:, records.names.index("val_loss")].tolist()[:2] == [True, True]
    assert np.isnan(records.values[1, records.names.index("val_loss")])
