"""`fit`, `sweep`, `load` and `replay` with addresses, against a server with S3's protocol."""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from _compilations import counting
from loop._runs import fit, loss_fn, make_data, make_params
from obstore.store import MemoryStore
from storage.buckets._faulty import FaultyStore, contents, denied

import jaxcb as jc
from jaxcb._src.checkpointing import bucket_run
from jaxcb._src.checkpointing.bucket_run import local_folder
from jaxcb._src.storage.buckets import bucket as _bucket
from jaxcb._src.storage.buckets import lease
from jaxcb._src.storage.buckets.bucket import Bucket, connect
from jaxcb._src.storage.buckets.index import read_index
from jaxcb._src.utils.address import Address


def callbacks(run_dir: str) -> list[Any]:
    return [
        jc.CSVLogger("log.csv"),
        jc.callbacks.JSONLogger(f"{run_dir}/logs/log.jsonl"),
        jc.ModelCheckpoint(f"{run_dir}/exports/{{epoch:02d}}", "loss", max_to_keep=2),
        jc.EarlyStopping(patience=2, min_delta=0.02, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05),
        jc.BackupAndRestore(run_dir, save_freq=3),
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("history.csv", "log.csv", "logs/log.jsonl")}


def resumed(**changes: Any) -> Any:
    with warnings.catch_warnings():  # of other epochs
        warnings.simplefilter("ignore", RuntimeWarning)
        return fit(resume=True, **changes)


@pytest.mark.parametrize("executor", ["looped", pytest.param("stepped", marks=pytest.mark.long)])
def test_each_epoch_on_another_machine_is_one_run(s3, tmp_path, executor):
    name = f"machines-{executor}"
    s3.make_bucket(name)
    address = f"s3://{name}/runs/a"
    whole = fit(executor, run_dir=tmp_path / "whole", callbacks=callbacks("."), epochs=5)
    for epochs in (1, 3, 5):
        result = resumed(executor=executor, run_dir=address, callbacks=callbacks(address), epochs=epochs)
        assert result.run_dir == local_folder(Address("s3", name, "runs/a"))
        kept = files(result.run_dir)
        shutil.rmtree(tmp_path / "cache")
    assert kept == files(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    np.testing.assert_array_equal(jc.load(f"{address}/exports/05", what="params")["w"], whole.state.params["w"])
    with pytest.raises(
        FileNotFoundError, match=r"there is no 'exports/01' in the run .* It has .*exports/04, exports/05"
    ):
        jc.load(f"{address}/exports/01")
    sizes, download = [], _bucket.Bucket.get_range
    with pytest.MonkeyPatch.context() as patch:  # what is no checkpoint is not downloaded as a whole
        patch.setattr(Bucket, "get_range", lambda *given: sizes.append(given[-1]) or download(*given))
        with pytest.raises(ValueError, match=rf"{address} holds checkpoints of a run: .* exports/04, exports/05\."):
            jc.load(address)
        with pytest.raises(ValueError, match=r"exports is not an Orbax checkpoint, .* 04, 05\."):
            jc.load(f"{address}/exports")
        with pytest.raises(ValueError, match="logs is not an Orbax checkpoint"):
            jc.load(f"{address}/logs")
    there = read_index(Bucket(Address("s3", name, "runs/a"))).files
    assert sum(sizes) < sum(entry.size for entry in there.values())
    again = resumed(executor=executor, run_dir=address, callbacks=callbacks(address), epochs=5)  # it is complete
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    stop = jc.EarlyStopping("loss", patience=1, min_delta=1.0)
    expected = jc.replay(stop, tmp_path / "whole").stopped_epoch
    for source in (address, f"{address}/history.csv"):
        assert jc.replay(stop, source).stopped_epoch == expected


class Keys(jc.writers.Tracker):
    """A service that notes by which key it knows a run, and then looks at the bucket."""

    opens_first = True

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def open(self, run: Any) -> str:
        if not self.seen:
            self.look()
        self.seen.append(run.key)
        return run.key

    def send(self, records: Any) -> None:
        """Takes all."""


def test_a_machine_that_vanishes_before_its_first_upload_leaves_no_second_run_in_a_tracker(s3, monkeypatch):
    s3.make_bucket("early")
    monkeypatch.setattr(bucket_run.BucketRun, "save", lambda *given: None)  # that of the first checkpoint takes long
    store = connect(Address("s3", "early"))

    def copy() -> None:
        for name in contents(store):  # what another machine would find from now on, when the lease has ended
            if name.startswith("a/") and name != "a/lease.json":
                store.put(name.replace("a/", "b/", 1), store.get(name).bytes())

    tracker = Keys(copy)
    fit(run_dir="s3://early/a", epochs=1, callbacks=[jc.callbacks.TrackerLogger(tracker)])
    there = read_index(Bucket(Address("s3", "early", "b"))).files
    assert not [name for name in there if name.startswith("checkpoints/")]
    result = fit(run_dir="s3://early/b", epochs=1, callbacks=[jc.callbacks.TrackerLogger(tracker)], resume=True)
    assert len(tracker.seen) == 2
    assert len(set(tracker.seen)) == 1
    assert len(result.history["loss"]) == 1


def test_logs_in_a_bucket_are_replayed_as_local_ones(s3):
    s3.make_bucket("logs")
    loggers = [
        jc.callbacks.JSONLogger("a/log.jsonl"),
        jc.CSVLogger("b/log.csv"),
        jc.TensorBoard("c", write_graph=False),
    ]
    result = fit(run_dir="s3://logs/a", epochs=4, callbacks=loggers)
    stop, plain = jc.EarlyStopping("val_loss", patience=1, min_delta=1.0), connect(Address("s3", "logs"))
    expected = jc.replay(stop, result.run_dir).stopped_epoch
    assert expected is not None
    for name in ("a/log.jsonl", "b/log.csv", "c"):
        assert jc.replay(stop, result.run_dir / name).stopped_epoch == expected
        assert jc.replay(stop, f"s3://logs/a/{name}").stopped_epoch == expected
        for path in (result.run_dir / name).rglob("*") if name == "c" else [result.run_dir / name]:
            if path.is_file():  # as an object of its own, which no run has written
                plain.put(f"plain/{path.relative_to(result.run_dir).as_posix()}", path.read_bytes())
        assert jc.replay(stop, f"s3://logs/plain/{name}").stopped_epoch == expected
    with pytest.raises(FileNotFoundError, match=r"no 'none' in the run at s3://logs/a\. It has .*a/log\.jsonl"):
        jc.replay(stop, "s3://logs/a/none")
    with pytest.raises(FileNotFoundError, match="there is nothing at s3://logs/none"):
        jc.replay(stop, "s3://logs/none")


def test_a_second_run_in_a_bucket_compiles_nothing(s3):
    s3.make_bucket("compiles")
    fit(run_dir="s3://compiles/a", epochs=2)
    with counting() as counts:
        fit(run_dir="s3://compiles/b", epochs=2)
    assert counts["compiled"] == 0


@pytest.mark.long
def test_a_sweep_in_a_bucket_resumes_on_another_machine(s3, tmp_path):
    s3.make_bucket("sweeps")
    given: dict[str, Any] = {
        "optimizer": optax.adam,
        "over": {"optimizer.learning_rate": [0.01, 0.1], "callbacks.EarlyStopping.patience": [1, 2]},
        "batch_size": 16,
        "callbacks": [jc.EarlyStopping("loss")],
        "verbose": 0,
        "at_once": 2,  # two parts
    }
    whole = jc.sweep(make_params(), loss_fn, make_data(), **given, epochs=3, run_dir=tmp_path / "whole")
    for epochs in (2, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = jc.sweep(
                make_params(), loss_fn, make_data(), **given, epochs=epochs, run_dir="s3://sweeps/a", resume=True
            )
        kept = (found.run_dir / "table.csv").read_bytes()
        shutil.rmtree(tmp_path / "cache")
    assert kept == (tmp_path / "whole" / "table.csv").read_bytes()
    for i in range(4):
        jax.tree.map(np.testing.assert_array_equal, found.member(i).params, whole.member(i).params)
    there = read_index(Bucket(Address("s3", "sweeps", "a"))).files
    assert {"table.csv", "part_0/history.csv", "part_1/history.csv"} <= there.keys()


def test_a_run_is_replaced_only_on_request(s3):
    s3.make_bucket("replaced")
    fit(run_dir="s3://replaced/a", epochs=1, callbacks=[jc.CSVLogger("log.csv")])
    with pytest.raises(FileExistsError, match=r"s3://replaced/a already holds a run\. Pass resume=True"):
        fit(run_dir="s3://replaced/a", epochs=2)
    result = fit(run_dir="s3://replaced/a", epochs=2, overwrite=True, callbacks=[jc.CSVLogger("log.csv")])
    assert len((result.run_dir / "log.csv").read_text().splitlines()) == 3
    assert len(jc.replay(jc.EarlyStopping("loss"), "s3://replaced/a/log.csv").actions) == 2


def test_a_trial_run_touches_no_bucket(s3, tmp_path):
    s3.make_bucket("trials")
    at = "s3://trials/a"
    fit(run_dir=at, fast_dev_run=True, callbacks=[jc.ModelCheckpoint(f"{at}/{{epoch}}", "loss")])
    assert contents(connect(Address("s3", "trials"))) == {}
    assert not (tmp_path / "cache").exists()


# Bad input, refused before the first step


def refused(error: type[BaseException], match: str, **changes: Any) -> None:
    steps: list[int] = []
    watch = jc.LambdaCallback(on_epoch_begin=lambda epoch, logs: steps.append(epoch))
    with pytest.raises(error, match=match):
        fit(**({"callbacks": [watch], "epochs": 1} | changes))
    assert steps == []


def test_a_bucket_that_does_not_exist_is_refused(s3):
    refused(FileNotFoundError, "there is no bucket 'missing' for s3://missing/a. Create it", run_dir="s3://missing/a")
    for read in (jc.load, lambda address: jc.replay(jc.EarlyStopping(), address)):
        with pytest.raises(FileNotFoundError, match="there is no bucket 'missing'"):
            read("s3://missing/a")


def test_a_bucket_that_may_not_be_written_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def only_reads(number: int, kind: str, path: str, go: Any) -> Any:
        return denied() if kind == "put" else go()

    monkeypatch.setattr(_bucket, "connect", lambda address: FaultyStore(MemoryStore(), only_reads))
    monkeypatch.setattr(_bucket, "START_SECONDS", 0.0)
    monkeypatch.setattr(Bucket.__init__, "__kwdefaults__", Bucket.__init__.__kwdefaults__ | {"patience": 0.0})
    refused(
        PermissionError, "s3://bucket/a: put of lease.json was denied: .*AWS_ACCESS_KEY_ID", run_dir="s3://bucket/a"
    )


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    refused(
        ImportError, r"s3://bucket/a needs the package obstore: pip install jaxcb\[bucket\]", run_dir="s3://bucket/a"
    )


def test_azure_without_an_account_is_refused(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    refused(ValueError, "az://bucket/a cannot be opened: .*[Aa]ccount", run_dir="az://bucket/a")


def test_a_run_that_is_already_running_is_refused_by_whom_and_since_when(s3, monkeypatch):
    s3.make_bucket("twice")
    monkeypatch.setattr(lease, "SECONDS", 3.0)

    def again(epoch: int, logs: Any) -> None:
        refused(
            RuntimeError, r"in use by another run: process \d+ on .*, since \d{4}-", run_dir="s3://twice/a", resume=True
        )

    fit(run_dir="s3://twice/a", epochs=1, callbacks=[jc.LambdaCallback(on_epoch_end=again)])


def test_a_local_folder_of_something_else_is_refused(s3, tmp_path):
    s3.make_bucket("folders")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    here = jc.Checkpointing(local_dir=tmp_path / "mine")
    refused(
        FileExistsError,
        "mine is not empty, and is not the local folder of",
        run_dir="s3://folders/a",
        checkpointing=here,
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    other = jc.Checkpointing(local_dir=tmp_path / "other")
    fit(run_dir="s3://folders/a", epochs=1, checkpointing=other)
    refused(FileExistsError, "the local folder of s3://folders/a", run_dir="s3://folders/b", checkpointing=other)


def test_the_name_of_a_local_folder_may_begin_with_a_tilde(s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s3.make_bucket("tildes")
    fit(run_dir="s3://tildes/a", epochs=1, checkpointing=jc.Checkpointing(local_dir="./~mine"))
    assert (tmp_path / "~mine" / "history.csv").is_file()


def test_a_local_folder_without_a_bucket_is_refused(tmp_path):
    match = r"Checkpointing\(local_dir='here'\) is for a run in a bucket, but run_dir is "
    for run_dir in (None, tmp_path):
        refused(ValueError, match, run_dir=run_dir, local_dir="here")


@pytest.mark.parametrize(
    "callback",
    [
        jc.CSVLogger("s3://elsewhere/b/log.csv"),
        jc.callbacks.JSONLogger("s3://elsewhere/b/log.jsonl"),
        jc.TensorBoard("s3://elsewhere/b/logs"),
        jc.ModelCheckpoint("s3://elsewhere/b/{epoch}", "loss"),
        jc.BackupAndRestore("s3://elsewhere/b"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_an_address_outside_of_the_run_is_refused_with_the_name_of_the_callback(s3, tmp_path, callback):
    bucket = f"outside-{type(callback).__name__.lower()}"
    s3.make_bucket(bucket)
    is_backup = isinstance(callback, jc.BackupAndRestore)
    for run_dir in (tmp_path / "here", f"s3://{bucket}/b", None):
        if run_dir is None and is_backup:
            continue  # then its address is that of the run
        cure = "Pass run_dir='s3://elsewhere/b'" if is_backup else "such as 's3://elsewhere/b'"
        match = rf"^{type(callback).__name__}: .*s3://elsewhere/b.* {run_dir}.* {cure}"
        refused(ValueError, match, run_dir=run_dir, callbacks=[callback])


def test_a_trial_sweep_takes_addresses_below_its_own_and_touches_no_bucket(s3):
    s3.make_bucket("trial-sweeps")
    at = "s3://trial-sweeps/a"
    jc.sweep(
        make_params(),
        loss_fn,
        make_data(),
        optimizer=optax.adam,
        over={"optimizer.learning_rate": [0.01, 0.1]},
        batch_size=16,
        callbacks=[jc.CSVLogger(f"{at}/log.csv")],
        run_dir=at,
        epochs=1,
        execution=jc.Execution(fast_dev_run=True),
        verbose=0,
    )
    assert contents(connect(Address("s3", "trial-sweeps"))) == {}


# What goes wrong later


class Cut:
    """A store that stops to answer, and answers again."""

    def __init__(self) -> None:
        self.off = False
        self.memory = MemoryStore()

    def __call__(self, number: int, kind: str, path: str, go: Any) -> Any:
        return denied() if self.off else go()


@pytest.fixture
def cut(monkeypatch, tmp_path) -> Cut:
    cut = Cut()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_bucket, "connect", lambda address: FaultyStore(cut.memory, cut))
    monkeypatch.setattr(bucket_run, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "SECONDS", 1.0)  # one that cannot be released has to run out
    return cut


def test_credentials_that_expire_end_the_run_with_an_error_and_its_files_stay(cut, tmp_path):
    def expire(epoch: int, logs: Any) -> None:
        cut.off = epoch >= 1

    more: dict[str, Any] = {"run_dir": "s3://bucket/a", "epochs": 4}
    watch = [jc.LambdaCallback(on_epoch_end=expire), jc.CSVLogger("log.csv")]
    with pytest.raises(PermissionError, match="was denied") as caught:
        fit(callbacks=watch, **more)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    cut.off = False
    result = fit(callbacks=watch[1:], **more, resume=True)
    assert len((result.run_dir / "log.csv").read_text().splitlines()) == 5


def test_a_local_folder_that_is_removed_ends_the_run_and_empties_no_bucket(cut, tmp_path):
    def remove(epoch: int, logs: Any) -> None:
        if epoch == 2:
            (tmp_path / "here").rename(tmp_path / "gone")

    more: dict[str, Any] = {"run_dir": "s3://bucket/a", "epochs": 4}
    watch = [jc.LambdaCallback(on_epoch_end=remove), jc.CSVLogger("log.csv"), jc.BackupAndRestore(".")]
    with pytest.raises(OSError, match=r"No such file|removed or moved"):
        fit(callbacks=watch, **more, local_dir=tmp_path / "here")
    result = fit(callbacks=watch[1:], **more, resume=True)
    assert len((result.run_dir / "log.csv").read_text().splitlines()) == 5
    assert len(result.history["loss"]) == 4


@pytest.mark.long
def test_a_run_that_only_warns_continues_and_uploads_later(cut, tmp_path):
    def expire(epoch: int, logs: Any) -> None:
        cut.off = epoch < 2

    watch = [jc.LambdaCallback(on_epoch_end=expire), jc.CSVLogger("log.csv"), jc.BackupAndRestore(".", save_freq=1)]
    with pytest.warns(RuntimeWarning, match=r"was denied.* The run continues in .*, and later saves try again"):
        fit(callbacks=watch, run_dir="s3://bucket/a", epochs=4, on_error="warn")
    shutil.rmtree(tmp_path / "cache")
    again = fit(callbacks=watch[1:], run_dir="s3://bucket/a", epochs=4, resume=True)
    assert len((again.run_dir / "log.csv").read_text().splitlines()) == 5
