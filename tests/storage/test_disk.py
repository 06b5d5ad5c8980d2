"""A disk that fails under a run: one readable error or one warning, whatever writes, and nothing is lost or made again.

The table is writer x fault x `on_error`. A small disk of its own is full or read-only, or the directory of the run is
removed or moved, from the second epoch on.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._events import digests

import jaxcb as jc

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
# Orbax leaves futures and coroutines behind when its threads fail
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

EPOCHS, FROM, UNTIL = 30, 1, 20  # the fault begins and ends after these epochs
NAMES = [f"{name}{'x' * 500}" for name in "abcdef"]  # so that few rows fit into the block of the disk that a file has
HAPPENS = {}  # epoch -> function; global, so that all runs share their programs


def act(epoch, logs):
    HAPPENS.get(epoch, lambda: None)()


def loss_fn(params, batch):
    loss = jnp.mean((batch[0] @ params["w"][:1] - batch[1]) ** 2)
    return loss, {name: loss / (i + 3) for i, name in enumerate(NAMES)}


counted = iter(range(10**9))


def number():
    return next(counted)


SAVES = jc.BackupAndRestore("not used", 20)
METRICS = {"number": jc.probes.host_metric(number)}


class Vectors(jc.Callback):
    """An embedding per epoch."""

    def on_epoch_end(self, state, metrics):
        vectors = jnp.full((512, 8), metrics["loss"])
        return state, jc.actions.Embedding("vectors", vectors, log_dir="logs")


WRITERS = {
    "history": list,
    "CSVLogger": lambda: [jc.CSVLogger("log.csv")],
    "JSONLogger": lambda: [jc.callbacks.JSONLogger("log.jsonl")],
    "TensorBoard": lambda: [jc.TensorBoard("logs", write_graph=False)],
    "Embedding": lambda: [Vectors()],
    "ModelCheckpoint": lambda: [jc.ModelCheckpoint("{epoch}.ckpt", "loss", save_weights_only=True, every_n_epochs=3)],
    "journal": lambda: [jc.EarlyStopping("number", mode="max", patience=99)],
}
LOGS = {"CSVLogger": "log.csv", "JSONLogger": "log.jsonl"}


def fit(run_dir, writer, **more):
    return jc.fit(
        {"w": jnp.zeros((256, 1))}, loss_fn, (X, 3 * X), optimizer=optax.sgd, learning_rate=0.1, epochs=EPOCHS,
        batch_size=8, run_dir=run_dir, verbose=0, metrics=METRICS if writer == "journal" else None,
        callbacks=[jc.LambdaCallback(on_epoch_end=act, name="act"), *WRITERS[writer](), SAVES], **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """For each writer the run that no fault hits."""
    known = {}

    def find(writer):
        HAPPENS.clear()
        if writer not in known:
            known[writer] = fit(tmp_path_factory.mktemp("whole") / "run", writer)
        return known[writer]

    return find


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The directory for temporary files, to which a history without a place goes."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


class Disk:
    """A disk of 2 MB, and what can happen to it."""

    def __init__(self, path):
        self.path, self.run = path, path / "run"

    def full(self):
        file = os.open(self.path / "filler", os.O_CREAT | os.O_WRONLY)
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"x" * size)
        os.close(file)

    def read_only(self):
        # permissions do not bind root, and a disk with open files cannot be mounted again
        change = ["chattr", "-R", "+i", str(self.run)]
        if subprocess.run(change, capture_output=True, check=False).returncode:
            pytest.skip("to make directories read-only for root needs chattr and a disk that knows it")

    def removed(self):
        shutil.rmtree(self.run)

    def moved(self):
        self.run.rename(self.path / "moved")

    def lift(self, fault):
        """Ends a fault; what was removed stays so."""
        if fault == "full":
            (self.path / "filler").unlink()
        elif fault == "read_only":
            subprocess.run(["chattr", "-R", "-i", str(self.run)], check=True)
        elif fault == "moved":
            (self.path / "moved").rename(self.run)


@pytest.fixture
def disk(tmp_path, elsewhere):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "jaxcb", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk that is full or read-only needs a mount, which needs Linux and root")
    yield Disk(place)
    HAPPENS.clear()
    subprocess.run(["umount", "-l", str(place)], check=True)


FAULTS = ["full", "read_only", "removed", "moved"]
EVERYDAY = {("history", fault) for fault in FAULTS} | {("TensorBoard", "full"), ("CSVLogger", "full")}
EVERYDAY |= {("ModelCheckpoint", "full"), ("ModelCheckpoint", "moved")}
CASES = [
    pytest.param(writer, fault, marks=() if (writer, fault) in EVERYDAY else pytest.mark.long)
    for writer in WRITERS
    for fault in FAULTS
]


def lines_of(path):
    return path.read_text().splitlines()


def check_logs(writer, run_dir, result):
    """Each record is in each log once."""
    names = ["history.csv", *([LOGS[writer]] if writer in LOGS else [])]
    for name in names:
        assert lines_of(run_dir / name) == lines_of(result.run_dir / name), name
    if writer == "TensorBoard":
        assert digests(run_dir / "logs") == digests(result.run_dir / "logs")


@pytest.mark.everyday(3)
@pytest.mark.parametrize(("writer", "fault"), CASES)
def test_a_fault_is_one_readable_error(disk, elsewhere, whole, writer, fault):
    expected = whole(writer)
    HAPPENS[FROM] = getattr(disk, fault)
    with pytest.raises(OSError, match=r"cannot (write|save) |the directory of the run") as error:
        fit(disk.run, writer)
    assert str(disk.path) in str(error.value)
    notes = "\n".join(error.value.__notes__)
    assert "saved up to" in notes or "There is no checkpoint" in notes
    assert disk.run.exists() == (fault in ("full", "read_only"))
    if fault == "removed":
        (kept,) = elsewhere.iterdir()  # the history that was in memory
        assert lines_of(kept) == lines_of(expected.run_dir / "history.csv")[: len(lines_of(kept))]
        assert len(lines_of(kept)) > 2
        assert str(kept) in str(error.value) + notes
        return
    HAPPENS.clear()
    disk.lift(fault)
    again = fit(disk.run, writer, resume=True)
    assert again.history["loss"].tolist() == expected.history["loss"].tolist()
    check_logs(writer, disk.run, expected)


@pytest.mark.everyday(3)
@pytest.mark.parametrize(("writer", "fault"), CASES)
def test_a_fault_is_a_warning_if_asked(disk, elsewhere, whole, writer, fault):
    expected = whole(writer)
    HAPPENS[FROM], HAPPENS[UNTIL] = getattr(disk, fault), lambda: disk.lift(fault)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(disk.run, writer, checkpointing=jc.Checkpointing(on_error="warn"))
    assert result.history["loss"].tolist() == expected.history["loss"].tolist()
    said = [str(warning.message) for warning in caught]
    assert all(str(disk.path) in text for text in said), said
    assert len(set(said)) == len(said)
    assert said
    if fault == "removed":
        assert not disk.run.exists()
        (kept,) = elsewhere.iterdir()
        assert lines_of(kept) == lines_of(expected.run_dir / "history.csv")
        assert any(str(kept) in text for text in said)
    else:
        check_logs(writer, disk.run, expected)
        assert list(elsewhere.iterdir()) == []
        assert fit(disk.run, writer, resume=True).history["loss"].tolist() == result.history["loss"].tolist()


def test_a_folder_in_place_of_a_log_is_named(tmp_path, elsewhere):
    run_dir = tmp_path / "run"

    def exchange():
        (run_dir / "history.csv").unlink()
        (run_dir / "history.csv").mkdir()

    HAPPENS[1] = exchange
    with pytest.raises(OSError, match=r"cannot write the CSV file.*history\.csv"):
        fit(run_dir, "history")
    HAPPENS.clear()


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_nothing_is_written_to_another_folder_in_the_place_of_the_runs(tmp_path, elsewhere, on_error):
    run_dir = tmp_path / "run"

    def exchange():
        run_dir.rename(tmp_path / "moved")
        run_dir.mkdir()
        (run_dir / "note").write_text("mine")

    HAPPENS[FROM] = exchange
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.nullcontext() if on_error == "warn" else pytest.raises(OSError, match="was removed or moved"):
            fit(run_dir, "ModelCheckpoint", checkpointing=jc.Checkpointing(on_error=on_error))
    if on_error == "warn":
        assert any("moved, and another one is in its place" in str(warning.message) for warning in caught)
    HAPPENS.clear()
    assert [path.name for path in run_dir.iterdir()] == ["note"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np, optax
import jaxcb as jc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
x = np.ones((8, 1), np.float32)
limit = int(sys.argv[2])
if limit >= 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
jc.fit(
    {"w": jnp.zeros((1, 1))}, lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), (x, x), optimizer=optax.sgd(0.1),
    epochs=3, batch_size=4, run_dir=sys.argv[1], resume=True, verbose=0, callbacks=[jc.CSVLogger("log.csv")],
)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit on the size of files")
@pytest.mark.parametrize("limit", [0, 100, 300, 1000, 3000, 20_000])
def test_a_limit_on_the_size_of_files_is_an_error_that_names_one(tmp_path, limit):
    """Wherever it stops the run, the run begins or continues without it."""

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False)

    ended = run(str(tmp_path / "run"), str(limit))
    last = next(line for line in reversed(ended.stderr.splitlines()) if line.startswith(("OSError", "FileNotFound")))
    assert "File too large" in last
    assert f"'{tmp_path / 'run'}" in last
    again = run(str(tmp_path / "run"), "-1")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run/log.csv").read_text().count("\n") == 4
