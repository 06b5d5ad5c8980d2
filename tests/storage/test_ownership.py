"""A run owns what it made, and nothing else: what lies in and beside its directory stays, whatever it is called."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped

import jaxcb as jc
from jaxcb._src.storage.ownership import RunRecord, is_inside, remove_files

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]


@pytest.fixture(autouse=True)
def _ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


SGD = optax.sgd(0.1)  # as the loss function, one object for all runs: they share what was traced


def fit(run_dir, *callbacks, epochs=4, stop=None, **more):
    """Trains a line; `stop` is the epoch at whose end the run is interrupted, as by Ctrl-C."""

    def interrupt(epoch, logs):
        if epoch == stop:
            os.kill(os.getpid(), signal.SIGINT)

    own = [*callbacks, jc.LambdaCallback(on_epoch_end=interrupt, name="interrupt")]
    with contextlib.nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
        return jc.fit(
            {"w": jnp.zeros((1, 1))}, loss_fn, (X, 3 * X), optimizer=SGD, epochs=epochs, batch_size=8,
            run_dir=run_dir, callbacks=own, verbose=0, **grouped(**more),
        )  # fmt: skip


class Crash(Exception):
    """Ends a run without a save."""


def crash(epoch):
    def fail(at, logs):
        if at == epoch:
            raise Crash

    return jc.LambdaCallback(on_epoch_end=fail, name="crash")


def idle():
    return jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None, name="crash")


def files_in(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


# Whatever is done


def everything():
    return [
        jc.CSVLogger("log.csv"),
        jc.CSVLogger("../shared.csv", append=True, name="shared"),
        jc.callbacks.JSONLogger("../shared.jsonl", append=True),
        jc.TensorBoard("../logs", write_graph=False, embeddings_freq=1, embeddings_metadata={"w": None}),
        jc.ModelCheckpoint("exports/{epoch}", "loss", max_to_keep=1, keep_best=1, save_weights_only=True),
        jc.ModelCheckpoint("../latest", "loss", save_weights_only=True, name="latest"),
        jc.BackupAndRestore("unused", save_freq=6),
    ]


FAMILIAR = [
    "notes.txt",
    "run.json",
    "{run}/checkpoints/step_000000100/thesis.txt",
    "{run}/checkpoints/.saving-step_000000001/x",
    "{run}/checkpoints/.trash-step_000000001/x",
    "{run}/checkpoints/.saving-0123456789abcdef-step_000000001/x",
    "{run}/checkpoints/manifest.json",
    "{run}/result/step_000000003/x",
    "{run}/exports/1.jaxcb-deleted/x",
    "{run}/exports/1.jaxcb-new/x",
    "{run}/exports/1.0123456789abcdef.jaxcb-old/x",
    "{run}/exports/99/README",
    "{run}/host_metrics.csv.bak",
    "{run}/.jaxcb/other.jsonl",
    "latest.jaxcb-old/x",
    "latest.jaxcb-deleted/x",
    "logs/train/events.out.tfevents.9999999999.other",
    "logs/train/events.out.tfevents.9999999999.vm.1.1.run-0123456789abcdef",
    "logs/validation/events.out.tfevents.1",
    "logs/train/projector/mine/vectors.tsv",
    "logs/train/projector_config.pbtxt",
    "logs/plugins/profile/2030_01_01/vm.xplane.pb",
]


def perform(act, folder, epochs):
    """What a run, or its neighbour, does; returns the epochs that the run has then."""
    run = folder / "run"
    if act == "neighbour":
        fit(folder / "other", *everything()[1:], epochs=2, overwrite=True)
    elif act == "overwrite":
        epochs = 2
        fit(run, *everything(), epochs=epochs, overwrite=True)
    elif act == "resume":
        fit(run, *everything(), epochs=epochs, resume=True)
    elif act == "crash":
        with pytest.raises(Crash):
            fit(run, *everything(), crash(epochs), epochs=epochs + 2, resume=True)
        epochs += 2
        fit(run, *everything(), idle(), epochs=epochs, resume=True)
    else:
        epochs += 2
        if act == "stop":
            fit(run, *everything(), epochs=epochs, stop=epochs - 2, resume=True)
        fit(run, *everything(), epochs=epochs, resume=True)
    return epochs


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_foreign_files_survive_any_sequence_of_what_a_run_does(tmp_path, seed):  # noqa: C901
    """Files with familiar names and files put into what a run has made, before each of its acts."""
    rng = random.Random(seed)
    foreign = {}

    def put(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"mine {len(foreign)}")
            foreign[path] = path.read_bytes()

    run = tmp_path / "run"
    fit(run, *everything(), epochs=2)
    acts = ["stop", "resume", "more", "overwrite", "crash", "more", "neighbour", "overwrite", "more"]
    rng.shuffle(acts)
    rows, epochs = [], 2
    for number, act in enumerate(acts):
        for name in rng.sample(FAMILIAR, 8):
            put(tmp_path / name.format(run="run"))
        made = [p for p in (run / "checkpoints", run / "result", run / "exports", tmp_path / "latest") if p.exists()]
        inside = sorted(d for top in made for d in (top, *top.rglob("*")) if d.is_dir())
        for folder in rng.sample(inside, min(5, len(inside))):
            put(folder / f"foreign {number}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of foreign folders called as checkpoints are
            try:
                epochs = perform(act, tmp_path, epochs)
            except FileExistsError as refused:  # the folder of an export that was deleted up to a foreign file in it
                blocked = next(p for p in (run / "exports").iterdir() if f"{p} " in str(refused))
                mine = [path for path in foreign if path.is_relative_to(blocked)]
                assert mine
                assert all(path.read_bytes() == foreign.pop(path) for path in mine)
                shutil.rmtree(blocked)
                epochs = perform("resume" if act == "overwrite" else act, tmp_path, epochs)
        if act == "neighbour":
            rows = [(p, p.read_bytes()) for p in (tmp_path / "shared.csv", tmp_path / "shared.jsonl")]
        for path, content in foreign.items():
            assert path.exists(), (act, path)
            if path.name == "projector_config.pbtxt":
                assert content in path.read_bytes()
            else:
                assert path.read_bytes() == content, (act, path)
        for path, content in rows:
            assert path.read_bytes().startswith(content), (act, path)
    assert len(foreign) > 30


def test_a_run_leaves_nothing_of_its_own_that_it_no_longer_keeps(tmp_path):
    """What is not deleted for a stranger's sake is still deleted otherwise."""
    for epochs in (2, 4, 6):
        fit(tmp_path / "run", *everything(), epochs=epochs, resume=True)
    fit(tmp_path / "run", *everything(), epochs=2, overwrite=True)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert len(list((tmp_path / "run" / "result").iterdir())) == 1
    assert {p.name for p in (tmp_path / "run" / ".jaxcb").iterdir()} == {"run.jsonl"}
    assert {p.name for p in tmp_path.iterdir()} == {"run", "shared.csv", "shared.jsonl", "logs", "latest"}


# In the way


@pytest.mark.parametrize("name", ["history.csv", "host_metrics.csv"])
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_file_in_the_way_is_named_and_stays(tmp_path, name, how):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} is in the way.*Move it, or pass another run_dir"):
        fit(tmp_path, **how)
    assert files_in(tmp_path) == {tmp_path / name: b"mine"}


@pytest.mark.parametrize("logger", [jc.CSVLogger, jc.callbacks.JSONLogger])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_users_log_in_the_way_is_named_and_stays(tmp_path, logger, how):
    """In a directory without a run, and where one adds a log; what is in its record is its own."""
    path = tmp_path / "notes"
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"notes is in the way.*Move it, or give another filename"):
        fit(tmp_path, logger("notes"), **{how: True})
    fit(tmp_path, logger("log"), epochs=1, overwrite=True)
    with pytest.raises(FileExistsError, match="notes is in the way"):
        fit(tmp_path, logger("log"), logger("notes", name="more"), epochs=2, **{how: True})
    assert path.read_text() == "mine\n"
    path.write_text("")
    fit(tmp_path, logger("log"), logger("notes", name="more"), epochs=2, **{how: True})
    assert path.read_text().count("\n") == (tmp_path / "log").read_text().count("\n") - (how == "resume")


def test_a_table_in_the_way_of_a_sweeps_is_named_and_stays(tmp_path):
    def sweep(**more):
        return jc.sweep(
            {"w": jnp.zeros((1, 1))}, lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), (X, 3 * X), epochs=1,
            over={"optimizer.learning_rate": [0.1, 0.2]}, optimizer=optax.sgd, run_dir=tmp_path, verbose=0,
            **grouped(**more),
        )  # fmt: skip

    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"table.csv is in the way"):
        sweep()
    assert files_in(tmp_path) == {tmp_path / "table.csv": b"mine"}
    (tmp_path / "table.csv").unlink()
    sweep()
    sweep(resume=True)
    sweep(overwrite=True)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path):
    fit(tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=r"has history.csv of a run, but no checkpoint of it in .*checkpoints"):
        fit(tmp_path, resume=True)
    assert files_in(tmp_path) == before
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    assert len(fit(tmp_path, epochs=6, resume=True).history["loss"]) == 6


def test_a_run_whose_record_is_lost_goes_on_as_itself(tmp_path):
    """Its checkpoints name it, and its history."""
    log = jc.TensorBoard(write_graph=False)
    fit(tmp_path, log, stop=2)
    run = RunRecord.read(tmp_path)
    (tmp_path / ".jaxcb" / "run.jsonl").unlink()
    (tmp_path / ".jaxcb").rmdir()
    assert len(fit(tmp_path, log, resume=True).history["loss"]) == 4
    again = RunRecord.read(tmp_path)
    assert run is not None
    assert again is not None
    assert again.run == run.run
    assert "history.csv" in again.made
    fit(tmp_path, log, overwrite=True)
    assert RunRecord.read(tmp_path).run != run.run  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("text", ["", "x\n", "[]\n", '{"format": 1, "run": "../x"}\n', '{"format": 9, "run": ""}\n'])
def test_a_broken_record_is_one_clear_error(tmp_path, text):
    fit(tmp_path)
    (tmp_path / ".jaxcb" / "run.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"run.jsonl, the record of the run's files, is damaged"):
        fit(tmp_path, epochs=6, resume=True)


# Logs that several runs share


@pytest.mark.everyday(1)
@pytest.mark.parametrize("logger", [jc.CSVLogger, jc.callbacks.JSONLogger])
@pytest.mark.parametrize("inside", [False, True])
def test_a_killed_run_has_each_of_its_rows_once_in_a_shared_log(tmp_path, logger, inside):
    """Rows behind the last checkpoint are the run's own, so they are cut and written again; others' stay."""
    path = tmp_path / ("a/all" if inside else "all")

    def log():
        return logger(path, append=True)

    fit(tmp_path / "b", log(), epochs=2)
    theirs = path.read_text()
    save = jc.BackupAndRestore("unused", save_freq=8)
    with pytest.raises(KeyError):
        fit(tmp_path / "a", log(), save, jc.LambdaCallback(on_epoch_end=lambda e, logs: {}[e] if e == 2 else None))
    fit(tmp_path / "a", log(), save, jc.LambdaCallback(on_epoch_end=lambda e, logs: None), resume=True)
    assert path.read_text().startswith(theirs)
    rows = path.read_text().removeprefix(theirs).splitlines()
    assert len(rows) == len(set(rows)) == 4


def test_rows_among_those_of_others_are_refused_and_stay(tmp_path):
    path = tmp_path / "all.csv"

    def log():
        return jc.CSVLogger(path, append=True)

    fit(tmp_path / "a", log(), stop=1)
    with path.open("a") as file:
        file.write("theirs,1,2\n")
    fit(tmp_path / "a", log(), stop=2, resume=True)  # others' rows alone stand behind the checkpoint
    assert "theirs,1,2\n" in path.read_text()
    before = path.read_bytes()
    record = RunRecord.read(tmp_path / "a")
    assert record is not None
    record.write(str(path), len(before), b"3,16,1.0\n")  # of a process that was killed
    path.write_bytes(before + b"3,16,1.0\ntheirs,3,4\n")
    with pytest.raises(
        ValueError, match=r"all.csv contains lines that this run wrote after its checkpoint, and lines of"
    ):
        fit(tmp_path / "a", log(), resume=True)
    assert path.read_bytes() == before + b"3,16,1.0\ntheirs,3,4\n"


def test_a_shared_log_that_was_replaced_is_refused(tmp_path):
    path = tmp_path / "all.csv"
    fit(tmp_path / "a", jc.CSVLogger(path), stop=2)
    fit(tmp_path / "b", jc.CSVLogger(path))
    before = path.read_bytes()
    path.write_bytes(before.replace(b"0", b"1"))
    with pytest.raises(ValueError, match=r"all.csv does not contain what this run wrote to it"):
        fit(tmp_path / "a", jc.CSVLogger(path), resume=True)
    assert path.read_bytes() == before.replace(b"0", b"1")


# What a checkpoint says


def forge(run_dir, change):
    """Changes what the manifests say, with the right checksum."""
    for path in run_dir.glob("checkpoints/step_*/manifest.json"):
        whole = re.fullmatch(rb'\{"checksum": "([0-9a-f]{8})", "manifest": (.*)\}\n', path.read_bytes(), re.DOTALL)
        assert whole is not None
        manifest = json.loads(whole[2])
        change(manifest)
        body = json.dumps(manifest).encode()
        path.write_bytes(b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body))


def writer(manifest, name):
    return next(own for key, own in manifest["facts"]["writers"].items() if name in key)


def exports(*entries):
    def change(manifest):
        own = writer(manifest, "Checkpoint")
        own["w/{epoch}"] = [*entries, *own.get("w/{epoch}", [])]

    return change


def events(**sizes):
    return lambda m: writer(m, "TensorBoard").update(sizes=writer(m, "TensorBoard")["sizes"] | sizes)


def embeddings(*parts):
    def change(manifest):
        own = writer(manifest, "TensorBoard")
        own["projectors"] = {key: [*old, *parts] for key, old in own["projectors"].items()}

    return change


def facts(**changes):
    return lambda m: m["facts"].update(changes)


def first_file(*names):
    return lambda m: m["files"].update({name: [0, 0] for name in names})


VICTIM = "{victim}"  # in its place stands the path
FORGED = {
    "exports beside": exports(["../victim/mine", None]),
    "exports by absolute path": exports([VICTIM + "/mine", None]),
    "exports above": exports(["w/..", None], ["w/../../victim/mine", None]),
    "exports of another template": exports(["w/1/../../../victim/mine", 0.5], ["w", None]),
    "exports under another key": lambda m: writer(m, "Checkpoint").update({VICTIM + "/{epoch}": [["1", None]] * 3}),
    "exports that are none": exports([3, "x"]),
    "exports in no list": lambda m: writer(m, "Checkpoint").update({"w/{epoch}": 7}),
    "event files elsewhere": events(**{"../victim/history.csv": 0, VICTIM + "/history.csv": 0}),
    "event files of others": events(**{VICTIM + "/logs/train/events.out.tfevents.1.theirs": 0}),
    "event files longer than they are": lambda m: writer(m, "TensorBoard").update(
        sizes=dict.fromkeys(writer(m, "TensorBoard")["sizes"], 10**9)
    ),
    "event files of negative size": lambda m: writer(m, "TensorBoard").update(
        sizes=dict.fromkeys(writer(m, "TensorBoard")["sizes"], -1)
    ),
    "no sizes": lambda m: writer(m, "TensorBoard").pop("sizes"),
    "embeddings elsewhere": embeddings(
        'embeddings {\n  tensor_name: "x"\n  tensor_path: "projector/../../../victim/vectors.tsv"\n}\n'
    ),
    "embeddings above": embeddings('embeddings {\n  tensor_name: "x"\n  tensor_path: "projector/../vectors.tsv"\n}\n'),
    "embeddings that are none": embeddings("anything", 'x: "/etc/passwd"'),
    "files elsewhere": facts(files={"../victim/history.csv": 0, VICTIM + "/history.csv": 0, "history.csv": 3}),
    "places that are none": facts(files={"history.csv": [1], "log.csv": -1}),
    "places in no mapping": facts(files=["history.csv"]),
    "places of others' lines": facts(files={"history.csv": {"end": 1}}),
    "another run": facts(run="0123456789abcdef"),
    "a run that is a path": facts(run="../../victim"),
    "files of the checkpoint elsewhere": first_file("../../../victim/history.csv"),
    "files of the checkpoint by absolute path": first_file(VICTIM + "/history.csv"),
    "files of the checkpoint in no mapping": lambda m: m.update(files=[1]),
}


def in_place(value, victim):
    """A structure of JSON with the victim's path in it."""
    return json.loads(json.dumps(value).replace(VICTIM, str(victim)))


@pytest.fixture(scope="module")
def forgeable(tmp_path_factory):
    """A run that was interrupted, and a run beside it."""
    root = tmp_path_factory.mktemp("forged")
    fit(root / "victim", *board(), jc.ModelCheckpoint("mine"), jc.ModelCheckpoint("{epoch}", name="all"))
    (root / "victim" / "logs" / "train" / "events.out.tfevents.1.theirs").write_text("theirs")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fit(root / "run", *board(), jc.ModelCheckpoint("w/{epoch}", save_weights_only=True, max_to_keep=1), stop=2)
    signal.signal(signal.SIGINT, before)
    return root


def board():
    return [
        jc.TensorBoard(write_graph=False, embeddings_freq=1, embeddings_metadata={"w": None}),
        jc.CSVLogger("log.csv"),
    ]


@pytest.mark.everyday(10)
@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_checkpoint_leads_nowhere_else(tmp_path, forgeable, case, how):
    """It is ignored with a warning, or refused with one error; nothing outside is read for it, cut or removed."""
    root = tmp_path / "root"
    shutil.copytree(forgeable, root)
    victim = root / "victim"
    before = files_in(victim)

    def change(manifest):
        FORGED[case](manifest)
        forged = in_place(manifest, victim)
        manifest.clear()
        manifest.update(forged)

    forge(root / "run", change)
    own = [*board(), jc.ModelCheckpoint("w/{epoch}", save_weights_only=True, max_to_keep=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with contextlib.suppress(ValueError, FileExistsError):
            fit(root / "run", *own, resume=how == "resume", overwrite=how == "overwrite")
    assert files_in(victim) == before


# The parts


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "", "a\0b", "c:\\x", "C:/x", 7, None, "a\\..\\x"])
def test_names_that_lead_out_of_a_folder(name):
    assert not is_inside(name)


@pytest.mark.parametrize("name", ["x", "a/b", "a..b", "...", "[1]", "*", "a b", "ä", ".hidden", "./x"])
def test_names_that_stay_in_a_folder(name):
    assert is_inside(name)


def test_removal_follows_no_link_and_no_dots(tmp_path):
    outside, own = tmp_path / "outside", tmp_path / "own"
    for folder in (outside, own / "sub"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("mine")
    (own / "link").symlink_to(outside)
    (own / "foreign").write_text("mine")
    assert not remove_files(own, {"../outside/file", str(outside / "file"), "link/file", "sub/file", "gone"})
    assert (outside / "file").exists()
    assert sorted(p.name for p in own.iterdir()) == ["foreign", "link"]


def test_half_a_line_of_a_record_is_as_if_it_were_not_there(tmp_path):
    record = RunRecord(tmp_path)
    record.begin()
    record.make("a")
    record.write("b", 0, b"xyz")
    path = tmp_path / ".jaxcb" / "run.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, whole.rfind(b"\n", 0, -1) + 1, -7):
        path.write_bytes(whole[:cut])
        again = RunRecord.read(tmp_path)
        assert again is not None
        assert (again.run, set(again.made), again.writes("b")) == (record.run, {"a"}, [])
        again.write("b", 0, b"xyz")
        assert path.read_bytes() == whole
    record.cut("b", 0)
    assert RunRecord.read(tmp_path).writes("b") == []  # pyright: ignore[reportOptionalMemberAccess]
