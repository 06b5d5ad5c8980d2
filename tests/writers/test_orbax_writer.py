"""Checkpoints that callbacks ask for: what is in them, and that a run does not notice."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _patience import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from loop._runs import fit, make_driver, make_state
from orbax.checkpoint import v1 as ocp

import jaxcb as jc
from jaxcb._src.storage import orbax
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.writers.orbax import CheckpointWriter
from jaxcb._src.writers.run_handle import Record, Run
from jaxcb.writers import Context

EPOCHS = 5


def saves(path="saves/{epoch:02d}-{val_loss:.2f}", what="model", every=2, **values):
    """A pure callback that saves every so many epochs."""

    def on_epoch_end(state, metrics):
        return state, jc.actions.Checkpoint(path, what, when=(metrics.epoch + 1) % every == 0, values=values)

    return jc.make_callback(on_epoch_end=on_epoch_end, name="saves")


def captures(into):
    """Keeps the train state of each epoch's end."""
    keep = jc.actions.Call(lambda run: into.append(run.state))
    return jc.make_callback(on_epoch_end=lambda state, metrics: (state, keep))


def like(tree):
    """Shapes and shardings, which Orbax loads into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b):
    data = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(b)]
    mine = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(a)]
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(mine, data, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_every_second_epoch_is_saved_and_training_goes_on_as_if_nothing_were(executor, tmp_path):
    states = []
    given = {"epochs": EPOCHS, "verbose": 0}
    result = fit(executor, callbacks=[saves(), captures(states)], run_dir=tmp_path, **given)
    losses = result.history["val_loss"]
    expected = [tmp_path / "saves" / f"{epoch:02d}-{losses[epoch - 1]:.2f}" for epoch in (2, 4)]
    assert sorted((tmp_path / "saves").iterdir()) == expected
    assert set(expected) <= set(result.files)
    for epoch, path in zip((2, 4), expected, strict=True):
        state = states[epoch - 1]
        wanted = {"params": state.params, "model_state": state.model_state}
        equal(ocp.load(str(path), like(wanted)), wanted)
        facts = ocp.metadata(str(path)).custom_metadata
        assert facts == {"step": int(state.step), "epoch": epoch - 1, "what": "model", "owner": "saves"}
    plain = fit(executor, callbacks=[], **given)
    equal(plain.params, result.params)
    np.testing.assert_array_equal(plain.history["val_loss"], losses)


def test_a_whole_state_comes_back_with_its_keys(tmp_path):
    states = []
    fit(callbacks=[saves("all/{step}", "state", 1), captures(states)], epochs=2, run_dir=tmp_path)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["10", "5"]
    last = ocp.load(str(tmp_path / "all" / "10"), like(states[-1]))
    equal(last, states[-1])
    assert last.key.dtype == states[-1].key.dtype
    grads = jax.tree.map(jnp.ones_like, last.params)
    equal(last.apply_gradients(grads), states[-1].apply_gradients(grads))


def test_the_same_path_holds_the_latest_and_nothing_else(tmp_path):
    states = []
    fit(callbacks=[saves("saves/latest", every=1), captures(states)], epochs=3, run_dir=tmp_path)
    assert [p.name for p in (tmp_path / "saves").iterdir()] == ["latest"]
    wanted = {"params": states[-1].params, "model_state": states[-1].model_state}
    equal(ocp.load(str(tmp_path / "saves" / "latest"), like(wanted)), wanted)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(callbacks=[saves("latest", every=1)], epochs=1)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ocp, "save", fail)
    with pytest.raises(OSError, match="disk full") as caught:
        fit(callbacks=[saves("latest", every=1)], epochs=1)
    assert "while saving" in "".join(caught.value.__notes__)
    assert ocp.metadata(str(tmp_path / "latest")).custom_metadata["epoch"] == 0


def save_as(run, directory, step, path="a"):
    """Saves as a run of that id does."""
    with jc.Recorder(directory) as recorder:
        recorder._context.record.run = run
        recorder.perform(jc.actions.Checkpoint(path), make_state(), step=step)


RUN, OTHER = "a" * 16, "b" * 16


def test_what_a_killed_save_left_is_no_obstacle(tmp_path):
    """What the run itself has left goes; what others have left, or what only looks like it, stays."""
    mine = [f"a.{RUN}.jaxcb-new", f"a.{RUN}.jaxcb-new.orbax-checkpoint-tmp", f"1.{RUN}.jaxcb-gone"]
    theirs = [
        f"a.{OTHER}.jaxcb-new",
        f"a.{OTHER}.jaxcb-old",
        "a.jaxcb-new",
        "1.jaxcb-deleted",
        "a.orbax-checkpoint-tmp",
    ]
    for name in (*mine, *theirs):
        (tmp_path / name).mkdir()
        if name != mine[2]:  # which is half deleted, so that nothing but its own was in it
            (tmp_path / name / "rest").touch()
    save_as(RUN, tmp_path, 2)
    assert ocp.metadata(str(tmp_path / "a")).custom_metadata["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", *theirs])
    assert all((tmp_path / name / "rest").exists() for name in theirs)


@pytest.mark.parametrize("old", [False, True])
def test_a_process_killed_between_the_two_renames_has_lost_nothing(tmp_path, old):
    save_as(RUN, tmp_path, 1)
    (tmp_path / "a").rename(tmp_path / f"a.{RUN}.jaxcb-new")
    if old:
        save_as(RUN, tmp_path, 0, "b")
        (tmp_path / "b" / "notes.txt").write_text("mine")
        (tmp_path / "b").rename(tmp_path / f"a.{RUN}.jaxcb-old")
    assert jc.load(tmp_path / "a", what="params")["w"].shape == make_state().params["w"].shape
    save_as(RUN, tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert ocp.metadata(str(tmp_path / "a")).custom_metadata["step"] == 2
    assert (tmp_path / "a" / "notes.txt").exists() == old


@pytest.mark.parametrize("template", ["1", "{step}"])
def test_files_of_others_in_an_export_stay_when_it_is_replaced_or_deleted(tmp_path, template):
    notes = [tmp_path / "1" / name for name in ("README", "state/notes.txt", "mine/deep/notes.txt")]
    with jc.Recorder(tmp_path) as recorder:
        save = jc.actions.Checkpoint(template, max_to_keep=1)
        recorder.perform(save, make_state(), step=1)
        for note in notes:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text("mine")
        recorder.perform(save, make_state(), step=2)
    new = tmp_path / template.format(step=2)
    assert ocp.metadata(str(new)).custom_metadata["step"] == 2
    assert all(note.read_text() == "mine" for note in notes)
    if template != "1":
        assert sorted(p for p in (tmp_path / "1").rglob("*") if p.is_file()) == sorted(notes)
    assert {p.name for p in tmp_path.iterdir()} == {"1", new.name}


def test_an_export_of_the_time_before_records_is_replaced_but_for_the_files_of_others(tmp_path):
    ocp.save(str(tmp_path / "a"), {"w": jnp.ones(3)})
    (tmp_path / "a" / "README").write_text("mine")
    save_as(RUN, tmp_path, 2)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    save_as(RUN, tmp_path, 3)
    assert (tmp_path / "a" / "README").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert len(before) == len([p for p in tmp_path.rglob("*") if p.is_file()])


def test_exports_of_other_runs_are_not_deleted(tmp_path):
    for run in (OTHER, RUN):
        save_as(run, tmp_path, 1, "{step}")
        with jc.Recorder(tmp_path) as recorder:
            recorder._context.record.run = RUN
            if run == OTHER:  # it was replaced behind the run's back
                recorder.perform(jc.actions.Checkpoint("{step}", max_to_keep=1), make_state(), step=7)
                save_as(OTHER, tmp_path, 7, "{step}")
            recorder.perform(jc.actions.Checkpoint("{step}", max_to_keep=1), make_state(), step=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "7", "8"]


# Saves in the background


def small():
    return jc.TrainState.create(params={"w": jnp.ones(3)})


def test_one_save_is_under_way_at_a_time_and_the_end_waits_for_the_last(tmp_path, monkeypatch):
    real, flying, most = ocp.save, [], []

    def save(*args, **kwargs):
        flying.append(threading.current_thread())
        most.append(len(flying))
        time.sleep(0.05)  # long enough for the next one to be asked for
        real(*args, **kwargs)
        flying.pop()

    monkeypatch.setattr(ocp, "save", save)
    with jc.Recorder(tmp_path) as recorder:
        for step in range(1, 5):
            recorder.perform(jc.actions.Checkpoint("{step}", async_=True), small(), step=step)
    assert most == [1, 1, 1, 1]
    assert not flying
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3", "4"]


def test_a_run_that_fails_waits_for_its_save(tmp_path):
    def fail(epoch, logs):
        raise KeyError("mine")

    save = jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Checkpoint("saves/{epoch}", async_=True)))
    with pytest.raises(KeyError, match="mine"):
        fit(callbacks=[save, jc.LambdaCallback(on_epoch_end=fail)], run_dir=tmp_path, epochs=2)
    assert [p.name for p in (tmp_path / "saves").iterdir()] == ["1"]
    jc.load(tmp_path / "saves" / "1", what="params")


def test_a_save_that_fails_in_the_background_is_heard_of(tmp_path, monkeypatch):
    def save(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ocp, "save", save)
    with pytest.raises(OSError, match="disk full") as caught, jc.Recorder(tmp_path) as recorder:
        recorder.perform(jc.actions.Checkpoint("{epoch}", async_=True, owner="me"), small(), step=7, epoch=2)
    assert f"while saving {tmp_path / '3'} for me, in epoch 3 at step 7" in "".join(caught.value.__notes__)


def test_the_loop_does_nothing_of_orbaxs_work_and_copies_what_is_saved_alone(tmp_path, monkeypatch):
    real, threads, copied = ocp.save, [], []
    put = jax.device_put

    def save(*args, **kwargs):
        threads.append(threading.current_thread())
        return real(*args, **kwargs)

    def device_put(x, *args, **kwargs):
        if kwargs.get("may_alias") is False:
            copied.append(len(jax.tree.leaves(x)))
        return put(x, *args, **kwargs)

    monkeypatch.setattr(ocp, "save", save)
    monkeypatch.setattr(jax, "device_put", device_put)
    save = jc.ModelCheckpoint("{epoch}", save_weights_only=True, async_=True)
    run = fit(callbacks=[save], epochs=3, run_dir=tmp_path)
    theirs = [thread for thread in threads if thread.name.startswith("jaxcb-checkpoint")]
    assert len(theirs) == 3
    assert threading.main_thread() not in theirs
    assert copied.count(len(jax.tree.leaves(run.params))) == 3  # one call a save, and no leaf of the optimizer's


def test_what_is_saved_in_the_background_is_what_was_there_when_it_was_asked_for(tmp_path, monkeypatch):
    """A hand-written loop may donate its arrays, and write into NumPy's, before the save has begun."""
    begin, real = threading.Event(), ocp.save

    def save(*args, **kwargs):
        begin.wait(PATIENCE)
        return real(*args, **kwargs)

    monkeypatch.setattr(ocp, "save", save)
    host = np.ones(3, np.float32)
    state = jc.TrainState.create(params={"w": jnp.ones(3), "h": host})
    with jc.Recorder(tmp_path) as recorder:
        recorder.perform(jc.actions.Checkpoint("a", async_=True), state, step=1)
        host[:] = 7.0
        jax.jit(lambda x: 2 * x, donate_argnums=0)(state.params["w"])
        begin.set()
    loaded = jc.load(tmp_path / "a", what="params")
    np.testing.assert_array_equal(loaded["w"], np.ones(3))
    np.testing.assert_array_equal(loaded["h"], np.ones(3))


# What stays


def kept(history, latest, best, mode):
    """What stays of saves by name and value, in plain Python: the latest after each, and the best of what is left."""
    there = []
    for name, value in history:
        there = [(n, v) for n, v in there if n != name] + [(name, value)]
        ranked = sorted((v if mode == "min" else -v, i) for i, (_, v) in enumerate(there) if v == v)
        stay = set(range(len(there))[-latest:]) | {i for _, i in ranked[:best]}
        there = [x for i, x in enumerate(there) if i in stay]
    return sorted(n for n, _ in there)


VALUES = st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 0.5, 2.0])


@settings(max_examples=8)
@given(
    history=st.lists(st.tuples(st.integers(1, 6), VALUES), min_size=1, max_size=6),
    latest=st.none() | st.integers(1, 2),
    best=st.none() | st.integers(1, 2),
    mode=st.sampled_from(["min", "max"]),
    async_=st.booleans(),
    cut=st.integers(0, 6),
)
def test_the_latest_and_the_best_stay(history, latest, best, mode, async_, cut):
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "7").mkdir()  # not of this run
        writer, record = CheckpointWriter(Context(here, Run(here), 0, None)), RunRecord()
        writer.context.record = record
        for at, (name, value) in enumerate(history):
            if at == cut:  # a process ends, and another goes on
                position = json.loads(json.dumps(writer.position()))
                writer.close()
                writer = CheckpointWriter(Context(here, Run(here), 0, None))
                writer.context.record = record
                writer._templates.add("{n}")  # as `prepare` does
                writer.restore(position)
            action = jc.actions.Checkpoint(
                "{n}",
                values={"n": name},
                value=np.float32(value),
                mode=mode,
                max_to_keep=latest,
                keep_best=best,
                async_=async_,
            )
            writer.context.run._hold(small())
            writer.write(Record(action, "on_epoch_end", at + 1, at, 1))
        writer.close()
        everything = latest is None and best is None
        wanted = kept(history, 99 if everything else latest or 1, best or 0, mode)
        assert sorted(p.name for p in here.iterdir()) == [*map(str, wanted), "7"]
        for name in wanted:
            jc.load(here / str(name), what="params")


_SAVES_ON_AND_ON = """
import sys
import jax.numpy as jnp
import jaxcb as jc

with jc.Recorder(sys.argv[1]) as recorder:
    for step in range(10_000):
        state = jc.TrainState.create(params={"w": jnp.full(1000, float(step))})
        recorder.perform(jc.actions.Checkpoint("latest", owner="a"), state, step=step)
        kept = dict(max_to_keep=1, keep_best=2)
        some = jc.actions.Checkpoint("some/{step}", value=float(step % 5), async_=True, owner="b", **kept)
        recorder.perform(some, state, step=step)
        print(step, flush=True)
"""


@pytest.mark.everyday(1)
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.029])
def test_a_process_may_be_killed_at_any_moment(delay, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", _SAVES_ON_AND_ON, tmp_path], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        done = [int(child.stdout.readline()) for _ in range(8)]
        time.sleep(delay)
        child.kill()
    step = int(jc.load(tmp_path / "latest", what="params")["w"][0])
    assert step >= done[-1]
    there = [int(p.name) for p in (tmp_path / "some").iterdir() if p.name.isdigit()]
    for name in there:
        assert float(jc.load(tmp_path / "some" / str(name), what="params")["w"][0]) == name
    assert {0, 5} <= set(there)  # the best ones
    assert max(there) >= done[-1] - 1  # the last one may have been under way


def test_what_is_to_be_deleted_and_is_gone_already_is_no_error(tmp_path):
    save = jc.actions.Checkpoint("{step}", max_to_keep=1)
    with jc.Recorder(tmp_path) as recorder:
        recorder.perform(save, small(), step=1)
        (tmp_path / "1").rename(tmp_path / "mine")
        recorder.perform(save, small(), step=2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "mine"]
        assert recorder.files == (tmp_path / "2",)


def test_names_that_collide_in_a_checkpoint_are_refused(tmp_path):
    params = {"a.b": jnp.ones(1), "a": {"b": jnp.zeros(1)}}
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\].*\['a.b'\].*same name"), jc.Recorder(tmp_path) as recorder:
        recorder.perform(jc.actions.Checkpoint("x"), jc.TrainState.create(params=params), step=1)
    assert list(tmp_path.iterdir()) == []


def test_paths_without_a_run_directory_are_relative_to_the_working_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fit(callbacks=[saves("weights/{epoch}", every=1)], epochs=1)
    assert ocp.metadata(str(tmp_path / "weights" / "1")).custom_metadata["epoch"] == 0
    assert tmp_path / "weights" / "1" in result.files


def test_it_saves_batch_statistics(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    states = []

    def loss_fn(model, batch):
        return jnp.mean((model(batch[0]).sum(1, keepdims=True) - batch[1]) ** 2)

    fit(
        model=model,
        loss_fn=loss_fn,
        optimizer=optax.sgd,
        callbacks=[saves("bn", every=1), captures(states)],
        epochs=1,
        run_dir=tmp_path,
    )
    wanted = {"params": states[0].params, "model_state": states[0].model_state}
    assert jax.tree.leaves(wanted["model_state"])
    equal(ocp.load(str(tmp_path / "bn"), like(wanted)), wanted)


def test_each_member_of_a_population_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = jax.tree.map(lambda *x: jnp.stack(x), make_state(0), make_state(1))
    for _ in range(2):  # the second run replaces what the first one saved
        driver = make_driver([saves("at/2")], states, members=2, epochs=2)
        driver.train()
    params = driver.device.live.carry().train.params
    for member in range(2):
        wanted = {"params": jax.tree.map(lambda x, m=member: x[m], params), "model_state": None}
        equal(ocp.load(str(tmp_path / "at" / "2" / str(member)), like(wanted)), wanted)


REFUSED = {
    "unknown metric": (
        "{val_auc:.2f}",
        jc.errors.MissingMetricError,
        "Checkpoint uses 'val_auc'; available: .*val_loss",
    ),
    "format of another type": ("{val_loss:02d}", ValueError, "saves: the text of its Checkpoint.*cannot be formatted"),
    "no name": ("{}", ValueError, "cannot be formatted"),
    "below a file": ("file/best", NotADirectoryError, "cannot write checkpoints: .*file"),
    "a directory of others": ("data", FileExistsError, "is not an Orbax checkpoint, so it is not replaced"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved_is_refused_before_the_first_step(case, tmp_path, monkeypatch):
    path, kind, said = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    steps = []
    watch = jc.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    with pytest.raises(kind, match=said):
        fit(callbacks=[saves(path), watch], epochs=2)
    assert steps == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file"]


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Checkpoint: path is an empty string, expected a path"):
        jc.actions.Checkpoint("")
    with pytest.raises(ValueError, match="what must be one of 'model', 'state', got 'all'"):
        jc.actions.Checkpoint("a", "all")
    with pytest.raises(ValueError, match="keep_best needs value="):
        jc.actions.Checkpoint("a", keep_best=1)


@pytest.mark.parametrize("kind", ["the module", "the function"])
def test_saves_and_loads_with_an_orbax_that_counts_no_bytes(tmp_path, monkeypatch, kind):
    """Its counter is private, so any version may lack it."""
    module = "orbax.checkpoint._src.serialization.tensorstore_utils"
    counter = getattr(sys.modules[module], orbax._COUNTER)
    saved = {"w": jnp.arange(3.0)}
    asked = []
    if kind == "the module":
        monkeypatch.setattr(sys.modules[module.rpartition(".")[0]], "tensorstore_utils", None)
        monkeypatch.setitem(sys.modules, module, None)
    else:  # it has another name
        monkeypatch.setattr(orbax, "_COUNTER", "another_name")
        monkeypatch.setattr(sys.modules[module], counter.__name__, lambda *a: asked.append(a) or counter(*a))
    orbax.save(tmp_path / "saved", saved)
    np.testing.assert_array_equal(orbax.load(tmp_path / "saved", saved)["w"], saved["w"])
    assert bool(asked) == (kind == "the function")


def test_orbax_counts_no_bytes_meanwhile_and_does_so_again_afterwards(tmp_path, monkeypatch):
    """If this fails, Orbax has moved its counter: see whether TensorStore still keeps its lists."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    asked = []
    monkeypatch.setattr(tensorstore_utils.ts, "experimental_collect_matching_metrics", lambda *a: asked.append(a) or [])
    own = tensorstore_utils.get_tensorstore_raw_bytes
    orbax.save(tmp_path / "saved", {"w": jnp.zeros(3)})
    assert asked == []
    assert tensorstore_utils.get_tensorstore_raw_bytes is own
    own()
    assert asked
