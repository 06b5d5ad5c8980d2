"""Paths: what is none is refused by its name, whatever takes it; what is one works, whatever it is called."""

import inspect
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from etils import epath
from loop._runs import fit, loss_fn, make_data, make_params, make_state

import jaxcb as jc
from jaxcb._src.checkpointing.store import Store
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.sweep.lr_find import LRFind
from jaxcb._src.utils.address import parse_address
from jaxcb._src.utils.local_path import check_no_link_out, link_out_of, local_path, path_text

ADDRESSES = [
    "hf://user/repository",
    "abfss://container@account/run",
    "git+ssh://host/run",
    "GS://bucket/run",
    "s3://",
    "s3:///run",
    "s3://bucket//run",
    "s3://bucket/a/../run",
    "s3://bucket/a\nb",
    "file:///run",
    "dbfs:/run",
    Path("gs://bucket/run"),  # one slash is left
]
BUCKETS = ["gs://bucket/run", "s3://bucket/run", " az://bucket/run/", epath.Path("gs://bucket/run")]
NO_PATHS = [b"run", 3, 0.5, np.zeros(2), [], Path]
BAD = [*ADDRESSES, "", "a\0b", "~nobody-of-that-name/run", *NO_PATHS]


def sweep(**changes: Any) -> Any:
    over = {"optimizer.learning_rate": [0.1, 0.2]}
    return jc.sweep(
        make_params(), loss_fn, make_data(), **grouped(optimizer=optax.adam, over=over, epochs=1, verbose=0, **changes)
    )


def run_loop(**changes: Any) -> Any:
    return jc.Loop(jc.Step(loss_fn)).run(
        make_state(), make_data(), **grouped(epochs=1, batch_size=16, verbose=0, **changes)
    )


def backed_up(path: Any) -> Any:
    return fit(callbacks=[jc.BackupAndRestore(path)])


FOUND = LRFind(np.ones(3), np.ones(3, np.float32), None)
RESULTS: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _results() -> None:
    RESULTS["fit"] = fit(epochs=1)
    RESULTS["sweep"] = sweep()


# Each argument that is a path, as an error names it
TAKES: dict[str, Any] = {
    "fit.run_dir": lambda path: fit(run_dir=path),
    "Loop.run.run_dir": lambda path: run_loop(run_dir=path),
    "sweep.run_dir": lambda path: sweep(run_dir=path),
    "Recorder.run_dir": lambda path: jc.Recorder(path),
    "load.path": lambda path: jc.load(path),
    "Checkpointing.local_dir": lambda path: jc.Checkpointing(local_dir=path),
    "Result.plot.path": lambda path: RESULTS["fit"].plot(path),
    "Result.report.path": lambda path: RESULTS["fit"].report(path),
    "SweepResult.report.path": lambda path: RESULTS["sweep"].report(path),
    "SweepResult.plot.path": lambda path: RESULTS["sweep"].plot(path, monitor="loss"),
    "SweepResult.write_table.path": lambda path: RESULTS["sweep"].write_table(path),
    "LRFind.plot.path": FOUND.plot,
    "ModelCheckpoint.filepath": jc.ModelCheckpoint,
    "BackupAndRestore.backup_dir": jc.BackupAndRestore,
    "CSVLogger.filename": jc.CSVLogger,
    "JSONLogger.filename": jc.callbacks.JSONLogger,
    "HTMLReport.filename": jc.callbacks.HTMLReport,
    "TensorBoard.log_dir": jc.TensorBoard,
    "WandbLogger.dir": lambda path: jc.callbacks.WandbLogger("project", dir=path),
    "LogCSV.path": lambda path: jc.actions.LogCSV({}, {}, path),
    "JSONLine.path": lambda path: jc.actions.JSONLine({}, {}, path),
    "WriteReport.path": lambda path: jc.actions.WriteReport(path=path),
    "Checkpoint.path": jc.actions.Checkpoint,
    "Profile.log_dir": lambda path: jc.actions.Profile(True, log_dir=path),
    "Scalars.log_dir": lambda path: jc.actions.Scalars({}, log_dir=path),
    "Histogram.log_dir": lambda path: jc.actions.Histogram("h", np.zeros(3), log_dir=path),
    "Image.log_dir": lambda path: jc.actions.Image("i", np.zeros((2, 2)), log_dir=path),
    "Figure.log_dir": lambda path: jc.actions.Figure("f", lambda values: None, log_dir=path, of="params"),
    "Text.log_dir": lambda path: jc.actions.Text("t", "text", log_dir=path),
    "Graph.log_dir": lambda path: jc.actions.Graph(log_dir=path),
    "Embedding.log_dir": lambda path: jc.actions.Embedding("e", np.eye(2), log_dir=path),
    "LogConfiguration.log_dir": lambda path: jc.actions.LogConfiguration(log_dir=path),
    "HParams.log_dir": lambda path: jc.actions.HParams(log_dir=path),
}
# where other kinds of value are taken as well
TEXTS_ONLY: dict[str, Any] = {
    "replay.source": lambda path: jc.replay(jc.EarlyStopping(), path),
    "TensorBoard.embeddings_metadata": lambda path: jc.TensorBoard(embeddings_freq=1, embeddings_metadata=path),
    "Embedding.labels": lambda path: jc.actions.Embedding("e", np.eye(2), path),
}
# which may be the address of a bucket
SERVED = {
    "fit.run_dir",
    "Loop.run.run_dir",
    "sweep.run_dir",
    "load.path",
    "replay.source",
    "ModelCheckpoint.filepath",
    "BackupAndRestore.backup_dir",
    "CSVLogger.filename",
    "JSONLogger.filename",
    "TensorBoard.log_dir",
    "LogCSV.path",
    "JSONLine.path",
    "HTMLReport.filename",
    "WriteReport.path",
    "Checkpoint.path",
} | {name for name in TAKES if name.endswith(".log_dir")}
NO_ARGUMENTS = {  # bases; a writer's own helpers; a service's address; another member; what is handed back
    "SeriesAction.log_dir",
    "TensorBoardAction.log_dir",
    "Context.append_file.path",
    "Context.claim.path",
    "Context.key.path",
    "Context.run_dir",
    "TrackedRun.directory",
    "RemoteMonitor.path",
    "CheckpointSaved.path",
    "HubUpload.path_in_repo",
    "Exploit.source",
    "Result.run_dir",
    "Result.files",
    "SweepResult.run_dir",
    "Run.run_dir",
}


def test_the_table_has_every_public_argument_that_is_a_path():
    known = TAKES.keys() | TEXTS_ONLY.keys() | NO_ARGUMENTS
    like_a_path = re.compile(r"path|dir$|file|folder|labels$|^source$|metadata")
    found = set()
    faces = (jc, jc.actions, jc.callbacks, jc.models, jc.probes, jc.search, jc.writers)
    for name, given in {name: getattr(face, name) for face in faces for name in face.__all__}.items():
        functions = {name: given}
        if not callable(given):
            continue
        if inspect.isclass(given):
            functions |= {f"{name}.{n}": f for n, f in inspect.getmembers(given, callable) if not n.startswith("_")}
        for owner, function in functions.items():
            try:
                arguments = inspect.signature(function).parameters.values()
            except (TypeError, ValueError):
                continue
            found |= {
                f"{owner}.{a.name}"
                for a in arguments
                if (like_a_path.search(a.name) and a.name != "profile_batch") or "Path" in str(a.annotation)
            }
    assert found - known == set()
    assert known - found == {"WandbLogger.dir"}  # one of **init


@pytest.mark.parametrize("argument", sorted({*TAKES, *TEXTS_ONLY} - SERVED))
def test_what_must_be_local_is_refused_in_a_bucket(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    owner, name = argument.rsplit(".", 1)
    for address in BUCKETS:
        with pytest.raises(ValueError, match=rf"{re.escape(owner)}: {name} is .* and must be on this machine"):
            (TAKES | TEXTS_ONLY)[argument](address)
        assert list(tmp_path.iterdir()) == [], address


@pytest.mark.parametrize("address", ["s3://bucket", "gs://bucket/", "az://b/a/{epoch:02d}-{val_loss:.2f}", *BUCKETS])
def test_the_address_of_a_bucket_is_kept_as_text(address):
    assert jc.ModelCheckpoint(address).filepath == str(address).strip().rstrip("/")


def test_names_lead_from_one_address_to_another():
    at = parse_address("fit", "run_dir", "s3://bucket/runs/a")
    assert (at / "exports/01").below(at) == "exports/01"
    assert at.below(at) == ""
    assert at.below(parse_address("fit", "run_dir", "s3://bucket")) == "runs/a"
    for other in ("s3://bucket/runs/ab", "s3://bucket/runs", "s3://other/runs/a/b", "gs://bucket/runs/a/b"):
        assert parse_address("fit", "run_dir", other).below(at) is None
    assert [str(a) for a in at.parents] == ["s3://bucket/runs", "s3://bucket"]


@pytest.mark.parametrize("argument", [*TAKES, *TEXTS_ONLY])
def test_what_is_no_path_is_refused_by_its_name(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    owner, name = argument.rsplit(".", 1)
    for bad in BAD:
        if argument in TEXTS_ONLY and not isinstance(bad, str | bytes | os.PathLike):
            continue
        kind = TypeError if any(bad is no for no in NO_PATHS) else ValueError
        with pytest.raises(kind, match=rf"{re.escape(owner)}: {name}\b"):
            (TAKES | TEXTS_ONLY)[argument](bad)
        assert list(tmp_path.iterdir()) == [], bad


def test_an_address_is_refused_before_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = []
    watch = jc.LambdaCallback(on_epoch_begin=lambda epoch, logs: steps.append(epoch))
    cases: list[dict[str, Any]] = [
        {"run_dir": "hf://bucket/run"},
        {"run_dir": "hf://bucket/run", "fast_dev_run": True},
        {"callbacks": [jc.ModelCheckpoint("gs://bucket/run/{epoch}"), watch]},
        {"run_dir": tmp_path, "callbacks": [jc.CSVLogger("gs://bucket/log.csv"), watch]},
        {"callbacks": [jc.TensorBoard().replace(log_dir=""), watch]},
    ]
    for changes in cases:
        with pytest.raises(ValueError, match=r"address|empty|not below the run_dir"):
            fit("looped", **({"callbacks": [watch]} | changes))
    assert steps == []
    assert [path.name for path in tmp_path.iterdir()] in ([], ["checkpoints"], [".jaxcb"])


def test_the_message_says_what_was_given_and_what_to_do():
    with pytest.raises(ValueError, match="an address") as caught:
        jc.CSVLogger("hf://bucket/log.csv")
    assert str(caught.value) == (
        "CSVLogger: filename is 'hf://bucket/log.csv', an address (hf:) that no store serves. Pass the path of a local "
        "folder or file, or an address of s3:// (Amazon S3 and compatible stores), gs:// (Google Cloud Storage), az:// "
        "(Azure Blob Storage)."
    )


def test_the_text_of_a_cloud_path_is_looked_at_before_it_is_downloaded():
    class CloudPath(os.PathLike):
        def __str__(self) -> str:
            return "s3://bucket/run"

        def __fspath__(self) -> str:
            raise AssertionError("downloaded")

    assert path_text("fit", "run_dir", CloudPath()) == "s3://bucket/run"
    with pytest.raises(ValueError, match="an address"):
        local_path("fit", "run_dir", CloudPath())


@pytest.mark.parametrize("name", ["a", "a:b", "C:/run", "run:", "./gs:/b", "a/gs:/b", "1:/b", " ", ".", "/a", "~"])
def test_other_names_are_paths(name):
    assert path_text("fit", "run_dir", name) == name
    assert path_text("fit", "run_dir", os.path.join(".", name)) == os.path.join(".", name)


def test_a_path_is_absolute_and_begins_where_it_should(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("fit", "run_dir", "a") == tmp_path / "a"
    assert local_path("fit", "run_dir", Path("a"), below=tmp_path / "b") == tmp_path / "b" / "a"
    assert local_path("fit", "run_dir", "~/a", below=tmp_path / "b") == tmp_path / "home" / "a"
    assert local_path("fit", "run_dir", "/a", below=tmp_path / "b") == Path("/a")


# Where a run's files go


def everything(away: Any, labels: str) -> list[Any]:
    return [
        jc.ModelCheckpoint("saves/{epoch}", "loss", save_weights_only=True, max_to_keep=2),
        jc.CSVLogger("log.csv"),
        jc.callbacks.JSONLogger("log.jsonl"),
        jc.TensorBoard(embeddings_freq=1, embeddings_metadata={"w": labels}),
        jc.LambdaCallback(on_epoch_end=lambda epoch, logs: os.chdir(away), name="away"),
    ]


@pytest.mark.parametrize("run_dir", [None, "run"])
def test_a_run_stays_where_it_began_when_the_working_directory_changes(tmp_path, monkeypatch, run_dir):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "labels.txt").write_text("a\nb\nc\n")
    monkeypatch.chdir(tmp_path / "one")
    result = fit(epochs=3, run_dir=run_dir, callbacks=everything(tmp_path / "two", "labels.txt"))
    assert list((tmp_path / "two").iterdir()) == []
    where = tmp_path / "one" / (run_dir or "")
    assert {"saves", "log.csv", "log.jsonl", "logs"} <= {p.name for p in where.iterdir()}
    assert sorted(p.name for p in (where / "saves").iterdir()) == ["2", "3"]
    assert all(p.is_absolute() and p.exists() for p in result.files)


def test_a_recorder_stays_where_it_began(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    with jc.Recorder(callbacks=None, verbose=0) as recorder:
        for step in (1, 2):
            recorder.perform(jc.actions.LogCSV({"a": 1.0}, {"a": True}, "log.csv"), step=step)
            os.chdir(tmp_path / "two")
    assert list((tmp_path / "two").iterdir()) == []
    assert len((tmp_path / "one" / "log.csv").read_text().splitlines()) == 3


def test_a_trial_leaves_nothing_outside_of_its_own_directory_either(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit(fast_dev_run=True, callbacks=[jc.CSVLogger("../log.csv"), jc.CSVLogger("../../log.csv", name="b")])
    assert [p.name for p in tmp_path.rglob("*")] == ["one"]


# What they are called

ODD = ["[1]", "lr=[0.1]", "[!a]", "*", "star*", "**", "what?", "{b}", "a b", " ", "it's", '"', "100%", "%s", "%5B"]
ODD += ["#1", "naïve", "学習", "🎉", "dot.", "...", "-a", "~", "a\nb", "\t", "$HOME", "a;b&c|d", "<a>", "a:b"]
ODD += ["C:", "!"]


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.everyday(8)
@pytest.mark.parametrize("odd", ODD)
def test_what_is_saved_can_be_read_whatever_it_is_called(tmp_path, odd):
    state, where = make_state(), tmp_path / odd / "run" / odd / "save"
    for again in range(2):  # the second one replaces the first
        with jc.Recorder(tmp_path / odd / "run", verbose=0) as recorder:
            path = f"./{odd}/save".replace("{", "{{").replace("}", "}}")
            new = state.replace(params={"w": state.params["w"] + again, "b": state.params["b"]})
            recorder.perform(jc.actions.Checkpoint(path, "model"), new, step=1)
        assert recorder.files == (where,)
        for read in (jc.load(where), jc.load(str(where), what="model")):
            np.testing.assert_array_equal(read["params"]["w"], new.params["w"])
    where.with_name(f"{odd}.orbax-checkpoint-tmp-1").mkdir()
    with pytest.raises(ValueError, match="never finished"):
        jc.load(where.with_name(odd))


@pytest.mark.parametrize("odd", ODD)
def test_a_run_is_saved_and_loaded_whatever_its_folder_is_called(tmp_path, odd):
    store = Store(tmp_path / odd, say=print)
    store.save(3, {"a [1]": jnp.arange(3.0)}, {"fact": 1}, wait=True)
    store.close()
    saved = Store(tmp_path / odd, say=print).latest()
    assert saved is not None
    assert saved.step == 3
    np.testing.assert_array_equal(store.load(saved)["a [1]"], np.arange(3.0))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("odd", ["exp[1]", "lr=[0.1] {b} 100%", "star*?", "two**", 'it\'s "so" #1\n', "naïve-学習."])
def test_a_run_goes_on_whatever_its_files_are_called(tmp_path, odd):
    def go(epochs: int, where: str) -> Any:
        callbacks = [
            jc.ModelCheckpoint(f"{odd.replace('{', '{{').replace('}', '}}')}/{{epoch}}", "loss", max_to_keep=2),
            jc.CSVLogger(f"{odd}.csv"),
            jc.callbacks.JSONLogger(f"{odd}.jsonl"),
            jc.TensorBoard(f"{odd}/logs", write_graph=False),
        ]
        run_dir = tmp_path / where / odd
        return fit(epochs=epochs, callbacks=callbacks, run_dir=run_dir, resume=True), run_dir

    go(3, "cut")
    with warnings.catch_warnings():  # more epochs are said; a line break in the name hides the line from the filter
        warnings.simplefilter("ignore", RuntimeWarning)
        cut, run_dir = go(5, "cut")
    whole, _ = go(5, "whole")
    assert cut.history["loss"].tolist() == whole.history["loss"].tolist()
    assert [p.name for p in sorted((run_dir / odd).iterdir())] == ["4", "5", "logs"]
    np.testing.assert_array_equal(jc.load(run_dir / odd / "5")["params"]["w"], whole.params["w"])
    assert (run_dir / f"{odd}.csv").read_text() == (tmp_path / "whole" / odd / f"{odd}.csv").read_text()
    assert jc.replay(jc.EarlyStopping("loss"), run_dir).stopped_epoch is None


@pytest.mark.parametrize("odd", ["a\\b", "gs:", "logs:"])
def test_where_orbax_would_write_elsewhere_is_refused_before_the_first_step(tmp_path, monkeypatch, odd):
    monkeypatch.chdir(tmp_path)
    steps = []
    watch = jc.LambdaCallback(on_epoch_begin=lambda epoch, logs: steps.append(epoch))
    path = f"./{odd}/a"  # as an address it would be refused anyway
    cases: list[dict[str, Any]] = [{"run_dir": path}, {"callbacks": [jc.ModelCheckpoint(path), watch]}]
    for changes in cases:
        with pytest.raises(ValueError, match="Orbax cannot write checkpoints to"):
            fit("looped", **({"callbacks": [watch]} | changes))
    with pytest.raises(ValueError, match="Orbax cannot write checkpoints to"):
        jc.load(path)
    assert steps == []
    assert list(tmp_path.iterdir()) == []
    fit(epochs=1, callbacks=[jc.CSVLogger(path)])  # other files can
    assert (tmp_path / odd / "a").is_file()


def test_a_folder_whose_name_is_a_pattern_does_not_take_in_what_fits_it(tmp_path):
    for name in ("exp1", "exp[1]", "e*"):
        (tmp_path / name / "ocdbt.process_0").mkdir(parents=True)
    for name in ("exp[1]", "e*"):
        found = list(_orbax.local(tmp_path / name).glob("ocdbt.process_*"))
        assert [os.fspath(path) for path in found] == [str(tmp_path / name / "ocdbt.process_0")]
        assert type(found[0]) is type(_orbax.local("a"))


@pytest.mark.parametrize("bucket", ["gs", "s3", "az", "hf"])
def test_a_folder_is_no_bucket(bucket):
    path = _orbax.local(f"/{bucket}/runs") / "1"
    assert os.fspath(path) == str(path) == f"/{bucket}/runs/1"
    assert not path.exists()


# What older versions wrote: Orbax was given the path as it is, and made no index of the arrays


@pytest.mark.parametrize("moved", [False, True])
def test_a_checkpoint_that_was_written_without_its_index_is_read(tmp_path, moved):
    where = tmp_path / "lr=[0.1]"
    state = make_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_orbax, "local", str)
        with jc.Recorder(where, verbose=0) as recorder:
            recorder.perform(jc.actions.Checkpoint("save", "state"), state, step=1)
    if moved:
        where = where.rename(tmp_path / "plain")
    before = tree(where)
    assert not [name for name in before if name.endswith("state/manifest.ocdbt")]
    np.testing.assert_array_equal(jc.load(where / "save")["params"]["w"], state.params["w"])
    again = jc.load(where / "save", make_state(1))
    np.testing.assert_array_equal(again.params["w"], state.params["w"])
    assert tree(where) == before  # reading changes nothing


def test_a_run_that_was_saved_without_its_index_goes_on(tmp_path):
    def go(epochs: int, where: str) -> Any:
        save = jc.ModelCheckpoint("best", "loss", save_weights_only=True)
        return fit(epochs=epochs, callbacks=[save], run_dir=tmp_path / where, resume=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_orbax, "local", str)
        patch.setattr(_orbax, "parts_without_index", lambda path: [])  # earlier versions did not look
        first = go(3, "lr=[0.1]")
    np.testing.assert_array_equal(go(3, "lr=[0.1]").params["w"], first.params["w"])  # its result
    whole = go(5, "plain")
    assert go(5, "lr=[0.1]").history["loss"].tolist() == whole.history["loss"].tolist()
    np.testing.assert_array_equal(jc.load(tmp_path / "lr=[0.1]" / "best")["params"]["w"], whole.params["w"])


def test_only_a_link_below_the_directory_leads_out_of_it(tmp_path):
    for name in ("run/logs", "away"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    (tmp_path / "run/inside").symlink_to("logs")
    (tmp_path / "run/out").symlink_to(tmp_path / "away")
    (tmp_path / "run/logs/up").symlink_to("../../away/later")
    for run in (tmp_path / "run", tmp_path / "linked"):
        for name in ("", "log.csv", "inside/x", "new/x", "../away/x", "out/../x"):
            assert link_out_of(run, run / name) is None
        for name, link in {"out": "out", "out/x/y": "out", "logs/up": "logs/up", "inside/up": "inside/up"}.items():
            assert link_out_of(run, run / name) == run / link
        with pytest.raises(ValueError, match=r"out is a link that leads out of the run's directory, to .*away"):
            check_no_link_out(run, run / "out/log.csv")
    assert link_out_of(tmp_path / "run", tmp_path / "away/x") is None
