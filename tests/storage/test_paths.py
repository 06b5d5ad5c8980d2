"""Any name of a file that the system allows works, and anything else is refused before the first step."""

import os

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
NAMES = ["a b", "ü☃", "it's", 'q"q', "100%", "%s%d", "exp[1]", "{b}", "star*", "what?"]
NAMES += ["-x", "#h", "a&b;c", "new\nline", "$HOME", "a:b"]
LONG = "x" * 300


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def fit(run_dir, *callbacks, epochs=1, **more):
    return jc.fit(
        {"w": jnp.zeros((1, 1))}, loss_fn, (X, 3 * X), optimizer=optax.sgd, learning_rate=0.1, epochs=epochs,
        batch_size=8, run_dir=run_dir, callbacks=callbacks, verbose=0, **more,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_for_all_that_a_run_writes(tmp_path, name):
    names(tmp_path, [name])


def test_a_name_of_all_that_is_odd_works(tmp_path):
    names(tmp_path, ["it's 100%s [1] {b} ü☃*?\"&;\n$HOME"])


def names(tmp_path, these):
    for name in these:
        run_dir = tmp_path / name

        def callbacks(name=name):
            return [
                jc.CSVLogger(f"{name}.csv"),
                jc.callbacks.JSONLogger(f"{name}.jsonl"),
                jc.TensorBoard(name, write_graph=False),
                jc.ModelCheckpoint(f"w {name}".replace("{", "{{").replace("}", "}}"), "loss", save_weights_only=True),
            ]

        fit(run_dir, *callbacks())
        with pytest.warns(RuntimeWarning, match="epochs 1 -> 2"):
            result = fit(run_dir, *callbacks(), epochs=2, resume=True)
        assert result.history["loss"].shape == (2,)
        assert jc.load(run_dir / f"w {name}")["params"]["w"] == result.params["w"]
        made = {path.name for path in run_dir.iterdir()}
        own = {f"{name}.csv", f"{name}.jsonl", name, f"w {name}"}
        assert made == own | {"checkpoints", "result", "history.csv", ".jaxcb"}
        assert (run_dir / f"{name}.csv").read_text().count("\n") == 3
        jc.replay(jc.EarlyStopping("loss"), run_dir)


USES = {
    "run_dir": lambda path: (path, []),
    "CSVLogger": lambda path: (None, [jc.CSVLogger(path)]),
    "JSONLogger": lambda path: (None, [jc.callbacks.JSONLogger(path)]),
    "TensorBoard": lambda path: (None, [jc.TensorBoard(path, write_graph=False)]),
    "ModelCheckpoint": lambda path: (None, [jc.ModelCheckpoint(path, "loss", save_weights_only=True)]),
}
ADDRESSES = ["ftp://b/x", "hf://x", "http://x/y", "file:///x"]
NO_FILES = ["", "\0", "a\0b", 3, 3.5, b"x", *ADDRESSES, "/dev/null", "/dev/full", "/dev/zero", "pipe", LONG]


@pytest.mark.parametrize("use", USES)
def test_what_is_no_file_is_refused_before_the_first_step(tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for path in NO_FILES:
        steps = []

        def loss(params, batch, steps=steps):
            steps.append(1)
            return loss_fn(params, batch)

        def run(path=path, loss=loss):
            run_dir, callbacks = USES[use](path)
            jc.fit(
                {"w": jnp.zeros((1, 1))}, loss, (X, 3 * X), optimizer=optax.sgd(0.1), epochs=1, batch_size=8,
                run_dir=run_dir, callbacks=callbacks, verbose=0, execution=jc.Execution(debug=True),
            )  # fmt: skip

        with pytest.raises((TypeError, ValueError, OSError)) as caught:
            run()
        assert len(steps) <= 1, path  # the step is traced once, or called once without compiling
        text = str(caught.value)
        assert any(word in text for word in ("must be", "is ", "cannot", "not", "too long")), text
        assert repr(path)[1:-1] in text or str(path) in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


BYTES = os.fsdecode(b"not \xff")


@pytest.mark.parametrize(
    ("run_dir", "export", "reason"),
    [
        (BYTES, "best", "bytes that are not UTF-8"),
        ("run", BYTES, "bytes that are not UTF-8"),
        ("run", "x" * 240, "has 240 bytes, and the name of a checkpoint may have 207"),
        ("run", "ü" * 120, "has 240 bytes"),
        ("run", "link", "link is a link, so it is not replaced"),
        ("run", "file", "file is not an Orbax checkpoint"),
    ],
)
def test_names_that_no_checkpoint_can_have_are_refused_before_the_first_step(tmp_path, run_dir, export, reason):
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/link").symlink_to(tmp_path / "run")
    (tmp_path / "run/file").write_text("mine")
    with pytest.raises((ValueError, FileExistsError), match=reason):
        fit(tmp_path / run_dir, jc.ModelCheckpoint(export, "loss", save_weights_only=True))
    assert not (tmp_path / run_dir / "checkpoints").exists()
    assert (tmp_path / "run/file").read_text() == "mine"


def test_the_longest_name_of_an_export_works(tmp_path):
    name = "é" * 103 + "x"
    result = fit(tmp_path, jc.ModelCheckpoint(name, "loss", save_weights_only=True), epochs=2)
    assert jc.load(tmp_path / name)["params"]["w"] == result.params["w"]


def test_a_save_without_an_index_is_no_checkpoint(tmp_path, monkeypatch):
    """All bytes are written, but Orbax could not find the arrays in them."""
    from jaxcb._src.checkpointing import store

    monkeypatch.setattr(store._orbax, "parts_without_index", lambda path: [path / "state"])
    with pytest.raises(OSError, match="cannot save the checkpoint: Orbax wrote no index"):
        fit(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step_*"))
