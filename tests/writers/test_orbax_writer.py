"""Checkpoints that callbacks ask for: what is in them, and that a run does not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit, make_driver, make_state
from orbax.checkpoint import v1 as ocp

import jaxcb as jc

EPOCHS = 5


def saves(path="{epoch:02d}-{val_loss:.2f}", what="model", every=2, **values):
    """A pure callback that saves every so many epochs."""

    def on_epoch_end(state, metrics):
        return state, jc.Checkpoint(path, what, when=(metrics.epoch + 1) % every == 0, values=values)

    return jc.make_callback(on_epoch_end=on_epoch_end, name="saves")


def captures(into):
    """Keeps the train state of each epoch's end."""
    keep = jc.Call(lambda run: into.append(run.state))
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
    expected = [tmp_path / f"{epoch:02d}-{losses[epoch - 1]:.2f}" for epoch in (2, 4)]
    assert sorted(p for p in tmp_path.iterdir() if p.is_dir()) == expected
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
    fit(callbacks=[saves("latest", every=1), captures(states)], epochs=3, run_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["latest"]
    wanted = {"params": states[-1].params, "model_state": states[-1].model_state}
    equal(ocp.load(str(tmp_path / "latest"), like(wanted)), wanted)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    fit(callbacks=[saves("latest", every=1)], epochs=1, run_dir=tmp_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ocp, "save", fail)
    with pytest.raises(OSError, match="disk full") as caught:
        fit(callbacks=[saves("latest", every=1)], epochs=1, run_dir=tmp_path, overwrite=True)
    assert "while saving" in "".join(caught.value.__notes__)
    assert ocp.metadata(str(tmp_path / "latest")).custom_metadata["epoch"] == 0


def test_what_a_killed_save_left_is_no_obstacle(tmp_path):
    for name in ("latest.orbax-checkpoint-tmp", "latest.jaxcb-new", "latest.jaxcb-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rest").touch()
    fit(callbacks=[saves("latest", every=1)], epochs=2, run_dir=tmp_path)
    assert ocp.metadata(str(tmp_path / "latest")).custom_metadata["epoch"] == 1


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
    params = driver.live.carry().train.params
    for member in range(2):
        wanted = {"params": jax.tree.map(lambda x, m=member: x[m], params), "model_state": None}
        equal(ocp.load(str(tmp_path / "at" / "2" / str(member)), like(wanted)), wanted)


REFUSED = {
    "unknown metric": ("{val_auc:.2f}", jc.MissingMetricError, "Checkpoint asks for 'val_auc'; known: .*val_loss"),
    "format of another type": ("{val_loss:02d}", ValueError, "saves: the text of its Checkpoint.*cannot be filled"),
    "no name": ("{}", ValueError, "cannot be filled"),
    "below a file": ("file/best", NotADirectoryError, "cannot write checkpoints: .*file"),
    "a directory of others": ("data", FileExistsError, "is no Orbax checkpoint, so it is not replaced"),
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
    with pytest.raises(TypeError, match="Checkpoint takes the path of a directory, got ''"):
        jc.Checkpoint("")
    with pytest.raises(ValueError, match='what must be "model" or "state", got \'all\''):
        jc.Checkpoint("a", "all")
