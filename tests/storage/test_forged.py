"""Run folders of strangers: whatever their manifests, records and tables say, nothing outside of them is touched."""

import copy
import json
import os
import re
import shutil
import warnings
import zlib

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import jaxcb as jc
from jaxcb._src.storage.ownership import read_bytes, write_durably
from jaxcb._src.storage.schema import DEPTH, FormError, anything, parse

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
DEEP = 20_000  # lists in each other


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def fit(run_dir, epochs=2, **more):
    return jc.fit(
        {"w": jnp.zeros((1, 1))}, loss_fn, (X, 3 * X),
        optimizer=optax.sgd, learning_rate=0.1, epochs=epochs, batch_size=8, run_dir=run_dir, verbose=0,
        callbacks=[
            jc.CSVLogger("log.csv"),
            jc.CSVLogger("../shared.csv", append=True, name="shared"),
            jc.TensorBoard("logs", write_graph=False),
            jc.ModelCheckpoint("w/{epoch}", "loss", save_weights_only=True, max_to_keep=1),
            jc.callbacks.Timer(1e6),
        ],
        **({"resume": True} | more),
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    at = tmp_path_factory.mktemp("forged") / "original"
    (at / "victim/step_000000001").mkdir(parents=True)
    (at / "victim/step_000000001/thesis.txt").write_text("mine")
    (at / "victim/thesis.txt").write_text("mine")
    fit(at / "run")
    return at


HOSTILE = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, float("inf"), float("nan"), [], {}, "", [[]]]),
    st.sampled_from(
        ["../victim", "../victim/thesis.txt", "/etc/passwd", "..\\x", "a\0b", "x" * 5000, "looped", "w/{x}"]
    ),
    st.sampled_from(
        [[["../victim/thesis.txt", None]], {"../victim/thesis.txt": [4, 1]}, {"end": -1}, {"lines": 10**9}]
    ),
    st.sampled_from(["{deep}", ["{deep}"], {"x": "{deep}"}, [0] * 50, {"": None}]),
)


def places(value, at=()):
    """All places in a value of JSON."""
    yield at
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*at, key))


def changed(value, at, new, how):
    """A copy with something else at a place, or nothing, or something more."""
    value = copy.deepcopy(value)
    *above, last = at
    place = value
    for key in above:
        place = place[key]
    if how == "remove":
        del place[last]
    elif how == "add" and isinstance(place, dict):
        place[f"{last}x"], place["../victim/thesis.txt"] = new, new
    elif how == "add":
        place.append(new)
    else:
        place[last] = new
    return value


def as_text(value):
    return json.dumps(value).replace('"{deep}"', "[" * DEEP + "]" * DEEP)


def seal(manifest):
    body = as_text(manifest).encode()
    return b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body)


def opened(path):
    return json.loads(re.fullmatch(rb'\{"checksum": "([0-9a-f]{8})", "manifest": (.*)\}\n', path.read_bytes(), re.S)[2])


def outside(at):
    """What a forged folder must not change: all beside it, without the log that the run shares."""
    found = {p: p.read_bytes() for p in at.rglob("*") if p.is_file() and "run" not in p.relative_to(at).parts}
    return {p: data for p, data in found.items() if p.name != "shared.csv"}


def use(at, called, epochs=2):
    """Resumes a forged run: it works, with or without warnings, or one error names the folder."""
    before, rows = outside(at), (at / "shared.csv").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = None
        try:
            fit(at / "run", epochs)
        except (ValueError, FileExistsError) as raised:
            error = raised
    assert outside(at) == before
    # the forged record may claim all that the run's own rows are, and nothing else
    assert (at / "shared.csv").read_text().startswith(rows[: rows.index("\n")])
    assert error is None or (called in str(error) and type(error).__module__ in ("builtins", "jaxcb._src.utils.errors"))


@pytest.fixture(scope="module")
def copied(original, tmp_path_factory):
    def make():
        at = tmp_path_factory.mktemp("copy") / "at"
        shutil.copytree(original, at)
        return at

    return make


def forge_manifests(data, copied):
    at = copied()
    paths = sorted((at / "run").glob("*/step_*/manifest.json"))
    manifest = opened(paths[-1])
    spots = [place for place in places(manifest) if place and (len(place) < 2 or place[0] != "leaves" or place[1] < 3)]
    # each part of a manifest is as likely as any other, however many entries it has
    first = data.draw(st.sampled_from(sorted({p[:2] if p[0] == "facts" else p[:1] for p in spots}, key=str)))
    where = data.draw(st.sampled_from([p for p in spots if p[: len(first)] == first]))
    new, how = data.draw(HOSTILE), data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    for path in paths:
        own = opened(path)
        if where in list(places(own)):
            path.write_bytes(seal(changed(own, where, new, how)))
    use(at, str(at / "run"), data.draw(st.sampled_from([2, 2, 3])))


@settings(max_examples=15)
@given(data=st.data())
def test_a_forged_manifest_has_no_effect_elsewhere(copied, data):
    forge_manifests(data, copied)


@pytest.mark.long
@settings(max_examples=150)
@given(data=st.data())
def test_many_forged_manifests_have_no_effect_elsewhere(copied, data):
    forge_manifests(data, copied)


def forge_record(data, copied):
    at = copied()
    path = at / "run/.jaxcb/run.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    where = data.draw(st.sampled_from([place for place in places(lines[number]) if place]))
    forged = changed(lines[number], where, data.draw(HOSTILE), data.draw(st.sampled_from(["replace", "remove", "add"])))
    forged.pop("crc", None)
    lines[number] = forged
    path.write_text("".join(as_text(line) + "\n" for line in lines))
    use(at, str(at / "run"), data.draw(st.sampled_from([2, 3])))


@settings(max_examples=10)
@given(data=st.data())
def test_a_forged_record_has_no_effect_elsewhere(copied, data):
    forge_record(data, copied)


@pytest.mark.long
@settings(max_examples=100)
@given(data=st.data())
def test_many_forged_records_have_no_effect_elsewhere(copied, data):
    forge_record(data, copied)


# What would never end, or lead out of the folder


@pytest.mark.parametrize("name", ["manifest.json", "arrays/d"])
def test_a_pipe_in_a_checkpoint_does_not_block(copied, name):
    at = copied()
    for path in (at / "run").glob("*/step_*"):
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        os.mkfifo(target)
    use(at, str(at / "run"))


def test_links_lead_nowhere(copied):
    at = copied()
    newest = sorted((at / "run/checkpoints").iterdir())[-1]
    newest.rename(at / "victim/checkpoint")
    newest.symlink_to(at / "victim/checkpoint")
    (at / "run/checkpoints/step_000000999").symlink_to(at / "nowhere")
    use(at, str(at / "run"), epochs=3)


LINKED = [
    "history.csv",
    "log.csv",
    "logs",
    "logs/train",
    "checkpoints",
    "result",
    ".jaxcb",
    ".jaxcb/run.jsonl",
    "w",
    "w/2",
]


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_links_out_of_a_run_are_refused(copied, how):
    """Whatever they are in place of, also with the right contents; the directory itself may be a link."""
    at = copied()
    for name in [name for name in LINKED if (at / "run" / name).exists()]:
        whole, link = at / "victim/whole", at / "run" / name
        link.rename(whole)
        link.symlink_to(whole)
        before = files_of(at / "victim" if name == "w/2" else at)  # a name of an export is known when it is saved
        with pytest.raises(
            ValueError, match=rf"{re.escape(str(link))} is a link that leads out of the run's directory"
        ):
            fit(at / "run", epochs=3, **ways(how))
        assert before.items() <= files_of(at).items(), name
        link.unlink()
        whole.rename(link)
    (at / "linked").symlink_to(at / "run")
    assert fit(at / "linked", epochs=3, **ways(how)).history["loss"].shape == (3,)


def files_of(folder):
    """The files, without that from which any resume cuts the rows behind the checkpoint."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "host_metrics.csv"}


def ways(how):
    return {"resume": True} if how == "resume" else {"resume": False, "checkpointing": jc.Checkpointing(overwrite=True)}


def test_what_a_run_writes_beside_a_file_follows_no_link(copied):
    """A stranger knows the id of the run, and so the names that it uses until a file is complete."""
    at = copied()
    run = json.loads((at / "run/.jaxcb/run.jsonl").read_text().splitlines()[0])["run"]
    (at / "victim/file").write_text("mine")
    (at / "run" / f"history.csv.{run}.new").symlink_to(at / "victim/file")
    (at / "run/../shared.csv").unlink()  # it would get no column more, as it is shared
    result = fit(at / "run", epochs=3, metrics={"new": jc.probes.grad_norm()})  # the history is rewritten with it
    assert result.history["new"].shape == (3,)
    (at / "half").symlink_to(at / "victim/file")
    write_durably(at / "new", b"text", at / "half")
    assert (at / "victim/file").read_text() == "mine"
    assert not (at / "run/history.csv").is_symlink()
    assert not (at / "new").is_symlink()


def test_a_record_that_is_a_pipe_or_too_large_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file"):
        read_bytes(tmp_path / "pipe", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="large has 11 bytes"):
        read_bytes(tmp_path / "large", 10)


@pytest.mark.parametrize("depth", [DEPTH + 1, DEEP])
def test_what_is_nested_deeply_is_refused(depth):
    with pytest.raises(FormError, match="nested more than"):
        parse("[" * depth + "]" * depth, anything)


# Tables

HEAD = "step,epoch,loss\n"
TABLES = {
    "binary": b"\x89PNG\r\n\x1a\n\x00\xff\xfe",
    "utf-16": (HEAD + "4,0,1.0\n").encode("utf-16"),
    "utf-16 without a mark": (HEAD + "4,0,1.0\n").encode("utf-16-le"),
    "ragged": (HEAD + "4,0\n").encode(),
    "one cell more": (HEAD + "4,0,1.0,2.0\n").encode(),
    "words": (HEAD + "4,0,much\n").encode(),
    "negative": (HEAD + "-4,0,1.0\n").encode(),
    "backwards": (HEAD + "8,1,1.0\n4,0,1.0\n").encode(),
    "fraction": (HEAD + "4.5,0,1.0\n").encode(),
    "infinite": (HEAD + "inf,0,1.0\n").encode(),
    "twice": b"step,step,loss\n4,4,1\n",
    "nothing": b"",
    "zeros": b"\0" * 5000,
    "one cell": b"x" * 200_000,
    "one line": b"1," * 9_000_000,
    "an open quote": b'step,epoch,"loss\n4,0,1\n' * 10_000,
}


@pytest.mark.parametrize("name", TABLES)
def test_replay_of_anything_names_the_file(tmp_path, name):
    (tmp_path / "history.csv").write_bytes(TABLES[name])
    with pytest.raises(jc.errors.DataError, match=r"history\.csv"):
        jc.replay(jc.EarlyStopping("loss"), tmp_path)


@pytest.mark.parametrize("name", [name for name in TABLES if name != "nothing"])
def test_replay_with_any_host_metrics_names_the_file(tmp_path, name):
    (tmp_path / "history.csv").write_text(HEAD + "4,0,1.0\n")
    (tmp_path / "host_metrics.csv").write_bytes(TABLES[name].replace(b"loss", b"elapsed"))
    with pytest.raises(jc.errors.DataError, match=r"host_metrics\.csv"):
        jc.replay(jc.EarlyStopping("loss"), tmp_path)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("nothing", "backwards", "infinite")])
def test_a_history_that_is_none_is_refused(copied, name):
    """The checkpoint agrees with it: a stranger can compute checksums."""
    at = copied()
    (at / "run/history.csv").write_bytes(TABLES[name])
    lines = TABLES[name].count(b"\n") + (not TABLES[name].endswith(b"\n"))
    sizes = {"lines": lines, "bytes": len(TABLES[name]), "checksum": zlib.crc32(TABLES[name]), "rewritten": 0}
    for path in (at / "run").glob("*/step_*/manifest.json"):
        manifest = opened(path)
        manifest["facts"]["files"]["history.csv"] = sizes
        path.write_bytes(seal(manifest))
    with pytest.raises(ValueError, match=r"history\.csv") as caught:
        fit(at / "run")
    assert type(caught.value).__module__ in ("builtins", "jaxcb._src.utils.errors")
