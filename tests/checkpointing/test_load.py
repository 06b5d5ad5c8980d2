"""jc.load: what was saved comes back, onto any target that fits, and nothing else does."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

import jaxcb as jc

TX = jc.adjustable_lr(optax.adam, learning_rate=0.1)


def make_state(seed=0, **more):
    """A state with a bit of everything: nested lists and tuples, dtypes, keys, None, named weights."""
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (3, 2)), "deep": [jnp.full(2, seed, jnp.bfloat16), (jnp.ones(1) * seed,)]}
    given = {
        "params": params,
        "tx": TX,
        "model_state": {"seen": jnp.int32(seed)},
        "rngs": {"dropout": jax.random.key(seed + 1, impl="rbg")},
        "controls": {"beta": 0.5 * seed},
        "seed": seed,
    }
    return jc.TrainState.create(**given | more)


def save(path, state, what="state"):
    with jc.Recorder() as recorder:
        recorder.perform(jc.actions.Checkpoint(str(path), what), state, step=3)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state, where it was saved as a whole, and where its model was saved."""
    folder, state = tmp_path_factory.mktemp("saved"), make_state(1)
    return state, save(folder / "state", state), save(folder / "model", state, "model")


@pytest.fixture(autouse=True)
def _silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def equal(a, b):
    """The same structure and the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


# What comes back


def test_a_train_state_comes_back_whole(saved):
    state, path, _ = saved
    equal(jc.load(path, make_state(0)), state)
    equal(jc.load(str(path), shapes(make_state(0))), state)
    grads = jax.tree.map(jnp.ones_like, state.params)
    equal(jc.load(path, make_state(0)).apply_gradients(grads), state.apply_gradients(grads))


def test_without_a_target_the_structure_is_the_checkpoints_own(saved):
    state, path, model = saved
    found = jc.load(path)
    equal(found["params"], {"w": state.params["w"], "deep": [state.params["deep"][0], [state.params["deep"][1][0]]]})
    assert int(found["step"]) == 0
    assert found["controls"] == {"beta": 0.5}
    equal(found["key"], state.key)
    equal(found["rngs"], state.rngs)
    assert set(jc.load(model)) == {"params", "model_state"}
    equal(jc.load(path, what="model"), jc.load(model))
    equal(jc.load(path, what="params"), jc.load(model, what="params"))
    assert {x.sharding for x in jax.tree.leaves(found)} == {jnp.zeros(()).sharding}


@pytest.mark.parametrize("whole", [True, False])
def test_parameters_and_model_onto_pytrees(saved, whole):
    state, path, model = saved
    path, other = path if whole else model, make_state(0)
    equal(jc.load(path, other.params), state.params)
    equal(jc.load(path, shapes(other.params)), state.params)
    target = {"params": other.params, "model_state": other.model_state}
    equal(jc.load(path, target), {"params": state.params, "model_state": state.model_state})
    equal(other.params, make_state(0).params)  # the target's own arrays are as they were


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_onto_a_train_state_keeps_the_rest(saved, whole):
    state, path, model = saved
    path, other = path if whole else model, make_state(0)
    equal(jc.load(path, other, what="model"), other.replace(params=state.params, model_state=state.model_state))
    equal(jc.load(path, other, what="params"), other.replace(params=state.params))


def test_named_weights_are_those_of_the_target(tmp_path):
    best, ema = jc.EarlyStopping(restore_best_weights=True), jc.SwapEMAWeights()
    state = make_state(1, callbacks=jc.chain(best))
    path = save(tmp_path / "a", jc.apply(jc.actions.Snapshot("EarlyStopping/best"), state))
    plain = jc.load(path, make_state(0))
    assert plain.weights == {}
    equal(plain.params, state.params)
    both = jc.load(path, make_state(0, callbacks=jc.chain(best, ema)))
    equal(both.weights["EarlyStopping/best"].value["params"], state.params)
    assert not both.weights["SwapEMAWeights/ema"].filled
    assert both.weights["EarlyStopping/best"].filled


def test_keys_may_be_wanted_as_their_data(saved):
    state, path, _ = saved
    raw = make_state(0)
    raw = raw.replace(key=jax.random.key_data(raw.key))
    equal(jc.load(path, raw).key, jax.random.key_data(state.key))


def test_what_orbax_saved_by_itself(tmp_path):
    tree = {"a": jnp.arange(3), "b": [np.ones(2, np.float32), 5]}
    is_old = not hasattr(ocp, "save")  # before Orbax 0.12
    save = ocp.save_pytree if is_old else ocp.save
    save(str(tmp_path / "x"), tree)
    found = jc.load(tmp_path / "x")
    assert (found["a"].tolist(), found["b"][0].tolist(), int(found["b"][1])) == ([0, 1, 2], [1.0, 1.0], 5)
    with pytest.raises(ValueError, match="has no 'params', but a tree that jaxcb did not save"):
        jc.load(tmp_path / "x", what="params")
    if not is_old:  # which saved no single array
        save(str(tmp_path / "y"), tree["a"])
        equal(jc.load(tmp_path / "y", jnp.zeros(3, jnp.int32)), tree["a"])


# Models


def loss_fn(model, batch):
    return jnp.mean((model(batch) - 1.0) ** 2)


def trained(model, tmp_path, loss=loss_fn, **more):
    data = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    save = jc.ModelCheckpoint("saves/{epoch}", save_weights_only=more.pop("only", True))
    given = {"optimizer": optax.adam, "learning_rate": 0.1, "batch_size": 8, "epochs": 2, "verbose": 0}
    return jc.fit(model, loss, data, callbacks=[save], run_dir=tmp_path, **given | more), data


@pytest.mark.everyday(1)
@pytest.mark.parametrize("only", [True, False])
def test_a_flax_nnx_module(tmp_path, only):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, seed):
            rngs = nnx.Rngs(seed)
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.dense(x)))

    model = Net(0)
    _, x = trained(model, tmp_path, only=only)
    other = Net(5)
    assert jc.load(tmp_path / "saves" / "2", other) is other
    model.eval()
    other.eval()
    np.testing.assert_array_equal(model(x), other(x))
    assert float(jnp.abs(other.norm.mean[...]).max()) > 0  # statistics, too

    class Wider(Net):
        def __init__(self, seed):
            super().__init__(seed)
            self.dense = nnx.Linear(3, 5, rngs=nnx.Rngs(0))

    wider = Wider(0)
    before = wider.dense.kernel[...]
    with pytest.raises(
        ValueError, match=r"params/dense/kernel: float32\[3,4\] in the .*, float32\[3,5\] in the target"
    ):
        jc.load(tmp_path / "saves" / "2", wider)
    np.testing.assert_array_equal(wider.dense.kernel[...], before)
    with pytest.raises(ValueError, match="needs a TrainState to load into, got a Net"):
        jc.load(tmp_path / "saves" / "2", other, what="state")


def test_a_flax_linen_module(tmp_path):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))

    result, x = trained(jc.linen(Net(), jnp.ones((1, 3))), tmp_path)
    other = jc.load(tmp_path / "saves" / "2", jc.linen(Net(), jnp.ones((1, 3)), seed=5))
    np.testing.assert_array_equal(other(x), result.model(x))
    np.testing.assert_array_equal(jc.load(tmp_path / "saves" / "2", other)(x), result.model(x))


def test_an_equinox_module(tmp_path):
    eqx = pytest.importorskip("equinox")
    result, x = trained(
        eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0)), tmp_path, lambda m, x: jnp.mean((jax.vmap(m)(x) - 1.0) ** 2)
    )
    other = jc.load(tmp_path / "saves" / "2", eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(5)))
    np.testing.assert_array_equal(jax.vmap(other)(x), jax.vmap(result.model)(x))


# What does not fit


def fails(path, target, *said, **more):
    with pytest.raises(ValueError, match="does not match the target, and nothing was loaded") as caught:
        jc.load(path, target, **more)
    for text in said:
        assert text in str(caught.value)


def test_leaves_that_differ_are_named_with_both_shapes_and_dtypes(saved):
    state, path, model = saved
    w = "params/w: float32[3,2] in the checkpoint, "
    params = make_state(0).params
    for at in (path, model):
        fails(at, params | {"w": jnp.zeros((3, 4))}, w + "float32[3,4] in the target")
        fails(at, params | {"w": jnp.zeros((3, 2), jnp.int32)}, w + "int32[3,2] in the target")  # Orbax would cast
        fails(at, params | {"w": np.zeros((3, 2), np.float16)}, w + "float16[3,2] in the target")
        fails(at, {"w": params["w"]}, "params/deep/1/0: float32[1] in the checkpoint, nothing in the target")
        fails(at, params | {"v": jnp.ones(2)}, "params/v: nothing in the checkpoint, float32[2] in the target")
    other = make_state(0, tx=jc.adjustable_lr(optax.sgd, learning_rate=0.1))
    fails(path, other, "opt_state/inner_state/0/mu/w: float32[3,2] in the checkpoint, nothing in the target")
    fails(path, make_state(0, controls={"gamma": 1.0}), "controls/beta", "controls/gamma")
    many = {"params": {f"p{i}": jnp.ones(1) for i in range(20)}, "model_state": None}
    fails(path, many, "and 12 more")
    raw = state.replace(rngs={"dropout": jax.random.key(0)})
    fails(path, raw, "rngs/dropout: uint32[4] in the checkpoint, uint32[2] in the target")


def test_keys_of_another_kind_are_refused(saved):
    _, path, _ = saved
    other = make_state(0, rngs={"dropout": jax.random.key(0, impl="unsafe_rbg")})
    with pytest.raises(ValueError, match=r"rngs/dropout is key<rbg> there, not key<urbg>"):
        jc.load(path, other)


def test_a_model_alone_is_no_state(saved):
    _, _, model = saved
    with pytest.raises(ValueError, match=r"has no 'state', but .*save_weights_only=True. what=\"model\" loads"):
        jc.load(model, make_state(0))


def test_a_run_dir_is_answered_with_the_checkpoints_that_lie_in_it(tmp_path):
    from flax import nnx

    trained(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"holds checkpoints of a run: .* Checkpoints in .*: saves/1, saves/2\.$"):
        jc.load(tmp_path)
    with pytest.raises(ValueError, match=r"holds checkpoints of a run: .* can be loaded\.$"):
        jc.load(tmp_path / "checkpoints")


def test_targets_and_arguments_of_another_kind(saved):
    _, path, _ = saved
    with pytest.raises(TypeError, match=r"leaf a is a str, expected an array or a jax.ShapeDtypeStruct"):
        jc.load(path, {"a": "x"})
    with pytest.raises(ValueError, match="what must be one of None, 'params', 'model', 'state', got 'weights'"):
        jc.load(path, what="weights")


def test_what_is_no_checkpoint(saved, tmp_path):
    _, path, _ = saved
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*none. Checkpoints in .*: model, state"):
        jc.load(path.with_name("none"))
    with pytest.raises(ValueError, match=r"is not an Orbax checkpoint, .* Checkpoints in .*: model, state"):
        jc.load(path.parent)
    (tmp_path / "weights.h5").write_bytes(b"HDF")
    with pytest.raises(ValueError, match=r"weights.h5 is a file, expected the directory of an Orbax checkpoint"):
        jc.load(tmp_path / "weights.h5")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="torch is not an Orbax checkpoint"):
        jc.load(tmp_path / "torch")
    (tmp_path / "torch" / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"holds checkpoints of a run: .*resume=True"):
        jc.load(tmp_path / "torch")
    shutil.copytree(path, tmp_path / "a.orbax-checkpoint-tmp")
    with pytest.raises(ValueError, match=r"the save of .*a was never finished"):
        jc.load(tmp_path / "a")
    with pytest.raises(ValueError, match="is a save that was never finished"):
        jc.load(tmp_path / "a.orbax-checkpoint-tmp")


def in_a_child(script, *arguments, flags=""):
    """Runs a script in a process of its own, and returns the JSON of its last line."""
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout.splitlines()[-1])


def test_a_damaged_checkpoint_is_an_error_or_loads_what_was_saved(saved, tmp_path):
    """In a child: threads of Orbax that failed are heard of later, in other tests."""
    script = """
        import json, shutil, sys, pathlib
        import jax, numpy as np
        import jaxcb as jc

        model, folder = map(pathlib.Path, sys.argv[1:])
        intact, said = jax.tree.leaves(jc.load(model)), []
        for number, file in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
            for damage in ("gone", "half"):
                copy = folder / f"{number}-{damage}"
                shutil.copytree(model, copy)
                name = copy / file.relative_to(model)
                name.write_bytes(name.read_bytes()[: name.stat().st_size // 2]) if damage == "half" else name.unlink()
                try:
                    found = jax.tree.leaves(jc.load(copy))
                    assert all(np.array_equal(x, y) for x, y in zip(found, intact, strict=True)), name
                except ValueError as error:
                    assert str(copy) in str(error) and ("damaged" in str(error) or "half" in str(error)), error
                    said.append(str(name.relative_to(copy)))
        print(json.dumps(said))
    """
    said = in_a_child(script, saved[2], tmp_path)
    assert {"state/_METADATA", "state/manifest.ocdbt"} <= set(said)
    assert any(name.startswith("state/d/") for name in said)


# Devices


def test_other_devices(saved, tmp_path):
    """Saved on one device, loaded and saved on four, loaded on one."""
    state, path, _ = saved
    rows = save(tmp_path / "rows", jc.TrainState.create(params={"w": jnp.arange(8.0).reshape(8, 1)}), "model")
    script = """
        import json, sys
        import jax, jax.numpy as jnp
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        import jaxcb as jc

        whole, rows, out = sys.argv[1:]
        sharding = NamedSharding(Mesh(jax.devices(), ("data",)), P("data"))
        w = jc.load(rows, {"w": jax.ShapeDtypeStruct((8, 1), jnp.float32, sharding=sharding)})["w"]
        assert w.sharding == sharding, w.sharding
        one = jc.load(whole, what="params")["w"]
        with jc.Recorder() as recorder:
            recorder.perform(jc.actions.Checkpoint(out, "model"), jc.TrainState.create(params={"w": w * 2}), step=1)
        print(json.dumps({"devices": len(jax.devices()), "on": len(w.devices()), "one": one.sum().item()}))
    """
    flags = "--xla_force_host_platform_device_count=4"
    said = in_a_child(script, path, rows, tmp_path / "four", flags=flags)
    assert said == {"devices": 4, "on": 4, "one": pytest.approx(state.params["w"].sum().item())}
    wanted = 2 * jnp.arange(8.0).reshape(8, 1)
    equal(jc.load(tmp_path / "four", what="params"), {"w": wanted})
    equal(jc.load(tmp_path / "four", {"w": jnp.zeros((8, 1))}), {"w": wanted})
