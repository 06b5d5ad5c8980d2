"""`trainable=`: a run that trains a part equals one that masks the rest, and knows of that part alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from training._two_parts import DATA, X, apply_pytree, bits, close, pytree

import jaxcb as jc
from jaxcb._src.inspection.summary import summarize
from jaxcb._src.loop import run
from jaxcb._src.models.trainable import joined, selected, split
from jaxcb._src.utils.names import leaf_name, matches

pytestmark = pytest.mark.usefixtures("as_optax_promotes")


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.lora = nnx.LoRA(4, 1, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        hidden = self.norm(self.body(x))
        return self.head(jnp.tanh(hidden + self.lora(hidden)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(nn.Dense(4, name="body")(x))
        return nn.Dense(1, name="head")(jnp.tanh(x))


class EquinoxNet(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.body, self.head = eqx.nn.Linear(3, 4, key=one), eqx.nn.Linear(4, 1, key=two)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


LIBRARIES = {
    "nnx": (Net, lambda model, x: model(x)),
    "linen": (lambda: jc.linen(LinenNet(), X[:1]), lambda model, x: model(x)),
    "equinox": (lambda: EquinoxNet(jax.random.key(0)), lambda model, x: jax.vmap(model)(x)),
    "pytree": (pytree, apply_pytree),
}


def loss_of(apply):
    def loss_fn(model, batch):
        x, y = batch
        return jnp.mean((apply(model, x) - y) ** 2)

    return loss_fn


def masked(factory, rate, params, trained):
    """The optimizer that masks by hand, with a rate that callbacks can change."""
    labels = jax.tree.unflatten(jax.tree.structure(params), ["trained" if yes else "frozen" for yes in trained])

    def make(learning_rate):
        return optax.multi_transform(
            {"trained": factory(learning_rate), "frozen": optax.set_to_zero()}, lambda _: labels
        )

    return jc.adjustable_lr(make, learning_rate=rate)


def fit(model, loss_fn, **kwargs):
    given = {"optimizer": optax.adamw, "learning_rate": 0.05, "epochs": 3, "batch_size": 5, "verbose": 0}
    if isinstance(kwargs.get("optimizer"), optax.GradientTransformation):
        given.pop("learning_rate")
    return jc.fit(model, loss_fn, DATA, **{**given, **kwargs})


LONG = pytest.mark.long
BY_HAND = [
    ("nnx", "looped"),
    ("pytree", "stepped"),
    ("linen", "looped"),
    ("equinox", "looped"),
    *(pytest.param(*case, marks=LONG) for case in [("nnx", "stepped"), ("pytree", "looped")]),
    *(pytest.param(*case, marks=LONG) for case in [("linen", "stepped"), ("equinox", "stepped")]),
]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("library", "executor"), BY_HAND)
def test_training_a_part_equals_masking_the_rest_by_hand(library, executor):
    make, apply = LIBRARIES[library]
    kwargs = {
        "validation_data": DATA,
        "callbacks": [
            jc.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
            jc.ReduceLROnPlateau("loss", factor=0.5, patience=1),
        ],
        "execution": jc.Execution(executor=executor),
    }
    part = fit(make(), loss_of(apply), trainable="head/**", **kwargs)
    whole = part.params
    trained = [leaf_name(path).startswith("head") for path, _ in jax.tree_util.tree_leaves_with_path(whole)]
    # statistics of frozen modules keep their values, as with Freeze
    freeze = [jc.callbacks.Freeze(("body/**", "norm/**") if library in ("nnx", "linen") else "body/**")]
    tx = masked(optax.adamw, 0.05, whole, trained)
    by_hand = fit(make(), loss_of(apply), optimizer=tx, **{**kwargs, "callbacks": freeze + kwargs["callbacks"]})
    close(part.params, by_hand.params)
    close(part.state.model_state, by_hand.state.model_state)
    for name in ("loss", "val_loss", "learning_rate"):
        close(part.history[name], by_hand.history[name])
    assert part.stop_reason == by_hand.stop_reason


OPTIMIZERS = [
    optax.adamw,
    optax.lamb,
    lambda learning_rate: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(learning_rate, momentum=0.9)),
]


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_part_of_any_tree_equals_masking(data):
    """Of trees, lists and tuples; any subset; optimizers that look at all gradients together, and that decay."""
    names = [f"p{i}" for i in range(data.draw(st.integers(2, 4)))]
    values = {n: jnp.full((2,), 0.1 * (i + 1)) for i, n in enumerate(names)}
    params = {"tree": values, "list": [jnp.ones(2), (jnp.full((2,), 0.5),)]}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    trained = data.draw(st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves)).filter(any))
    paths = tuple(leaf_name(path) for (path, _), yes in zip(leaves, trained, strict=True) if yes)
    optimizer = data.draw(st.sampled_from(OPTIMIZERS))

    def loss_fn(params, x):
        parts = jax.tree.leaves(params)
        return jnp.mean((x[:, :2] @ sum(parts) - 1.0) ** 2) + sum(jnp.sum(p**3) for p in parts)

    def after(state):
        return jax.jit(lambda state: jax.lax.fori_loop(0, 3, lambda _, s: jc.Step(loss_fn)(s, X)[0], state))(state)

    part = jc.TrainState.create(params=params, tx=optimizer(0.05), trainable=paths)
    whole = jc.TrainState.create(params=params, tx=masked(optimizer, 0.05, params, trained))
    close(after(part).all_params, after(whole).params)


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_two_parts_join_to_the_whole(trained):
    tree = {"a": np.ones(2), "b": (np.zeros(3), [np.full(1, 2.0)])}
    a, b = split(tree, trained)
    assert jax.tree.structure(joined(a, b)) == jax.tree.structure(tree)
    assert [x is y for x, y in zip(jax.tree.leaves(joined(a, b)), jax.tree.leaves(tree), strict=True)] == [True] * 3
    assert len(jax.tree.leaves(a)) == sum(trained)


def test_the_forms_of_a_filter():
    params = {"body": {"kernel": 1.0, "bias": 2.0}, "head": {"kernel": 3.0}}
    types = {"body/kernel": nnx.Param, "body/bias": nnx.LoRAParam, "head/kernel": nnx.Param}

    def chosen(filter_):
        flags = selected(filter_, params, types, "fit", "trainable")
        named = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        return [name for name, yes in zip(named, flags, strict=True) if yes]

    everything = ["body/bias", "body/kernel", "head/kernel"]
    assert chosen("head/**") == chosen(jc.models.AllBut("body/**")) == ["head/kernel"]
    assert chosen(nnx.LoRAParam) == chosen(lambda path, leaf: leaf == 2.0) == ["body/bias"]
    assert chosen(nnx.Param) == everything  # LoRAParam is one, too
    assert chosen(("**/bias", "head/**")) == ["body/bias", "head/kernel"]
    assert chosen(jc.models.AllBut(nnx.LoRAParam, "head/**")) == ["body/kernel"]
    assert chosen((jc.models.AllBut("**/kernel"), jc.models.AllBut("**/bias"))) == everything


def test_gradients_optimizer_averages_best_weights_and_checkpoints_are_of_the_part_alone(tmp_path):
    shapes = {}

    def note(look):
        shapes["grads"], shapes["updates"] = jax.tree.map(jnp.shape, (look.grads, look.updates))
        return jnp.zeros(())

    model = Net()
    kernel = model.body.kernel.get_raw_value()
    result = fit(
        model,
        loss_of(LIBRARIES["nnx"][1]),
        trainable=nnx.LoRAParam,
        metrics={"seen": jc.probe(note)},
        callbacks=[
            jc.SwapEMAWeights(),
            jc.EarlyStopping("loss", restore_best_weights=True),
            jc.ModelCheckpoint("best"),
            jc.ModelCheckpoint("model", save_weights_only=True),
        ],
        run_dir=tmp_path,
        epochs=1,
    )
    lora = {"lora_a": (4, 1), "lora_b": (1, 4)}

    def known(tree):
        return {leaf_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}

    assert known(result.state.params) == {f"lora/{name}": shape for name, shape in lora.items()}
    assert len(jax.tree.leaves(shapes)) == sum(map(len, jax.tree.leaves(shapes, is_leaf=lambda x: type(x) is tuple)))
    for slot in result.state.weights.values():
        assert known(slot.value["params"]) == known(result.state.params)
    arrays = [x for x in jax.tree.leaves(result.state.opt_state) if x.ndim == 2]
    assert sorted(x.shape for x in arrays) == sorted(2 * [*lora.values()])
    stored = jc.load(tmp_path / "model", what="params")
    assert known(stored) == known(result.state.params)
    manifest = next((tmp_path / "checkpoints").glob("step_*/manifest.json")).read_text()
    assert "lora" in manifest
    assert "'body'" not in manifest
    # read-only: the very arrays of the caller, and valid
    assert model.body.kernel.get_raw_value() is kernel
    assert jnp.all(jnp.isfinite(kernel))


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, executor):
    kwargs = {
        "trainable": "head/**",
        "execution": jc.Execution(executor=executor),
        "validation_data": DATA,
        "callbacks": [jc.EarlyStopping(patience=10, restore_best_weights=True)],
    }
    loss_fn = loss_of(apply_pytree)
    whole = fit(pytree(), loss_fn, epochs=4, **kwargs)
    fit(pytree(), loss_fn, epochs=2, run_dir=tmp_path, **kwargs)
    resumed = fit(pytree(), loss_fn, epochs=4, run_dir=tmp_path, resume=True, **kwargs)
    assert bits(whole.params) == bits(resumed.params)
    again = fit(pytree(), loss_fn, epochs=4, run_dir=tmp_path, resume=True, **kwargs)
    close(again.params, resumed.params)


def test_a_resumed_run_refuses_other_frozen_parameters_and_another_part(tmp_path):
    loss_fn = loss_of(apply_pytree)
    fit(pytree(), loss_fn, trainable="head/**", run_dir=tmp_path)
    with pytest.raises(ValueError, match="the frozen parameters had other values"):
        fit(pytree(seed=1), loss_fn, trainable="head/**", run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="left out 16 parameters in 2 arrays, now leaves out 17 in 3 arrays"):
        fit(pytree(), loss_fn, trainable="head/kernel", run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="left out 16 parameters in 2 arrays, now leaves out 0 in 0"):
        fit(pytree(), loss_fn, run_dir=tmp_path, resume=True)


def test_what_model_checkpoint_saves_loads_into_the_model_that_the_run_began_with(tmp_path):
    loss_fn = loss_of(LIBRARIES["nnx"][1])
    result = fit(
        Net(), loss_fn, trainable=nnx.LoRAParam, run_dir=tmp_path, epochs=1, callbacks=[jc.ModelCheckpoint("last")]
    )
    model = Net()
    jc.load(tmp_path / "last", model)
    close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(nnx.state(result.model, nnx.Param)))
    state = jc.load(tmp_path / "last", result.state)
    close(state.params, result.state.params)
    assert state.frozen is result.state.frozen
    close(jc.load(tmp_path / "last", result.state, what="model").params, result.state.params)
    with pytest.raises(ValueError, match=r"contains the trained parameters alone.*Load it into the model that the run"):
        jc.load(tmp_path / "last", Net(seed=1))
    full = fit(Net(), loss_fn, run_dir=tmp_path / "full", epochs=1, callbacks=[jc.ModelCheckpoint("last")])
    with pytest.raises(ValueError, match="does not match the target"):
        jc.load(tmp_path / "last", {"other": jnp.ones(1)})
    with pytest.raises(ValueError, match="the target has frozen ones"):
        jc.load(tmp_path / "full" / "last", result.state)
    assert full.state.frozen is None


MEMBERS = [
    (True, "vmap", "looped"),
    (False, "map", "stepped"),
    *(pytest.param(True, *how, marks=LONG) for how in [("vmap", "stepped"), ("map", "looped"), ("map", "stepped")]),
    *(pytest.param(False, *how, marks=LONG) for how in [("vmap", "stepped"), ("map", "looped"), ("vmap", "looped")]),
]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("shared", "strategy", "executor"), MEMBERS)
def test_members_are_what_they_are_alone(shared, strategy, executor):
    """They share the frozen parameters of one model, or have their own."""
    loss_fn = loss_of(apply_pytree)
    one = pytree()
    callbacks = [jc.EarlyStopping("loss", patience=1, restore_best_weights=True)]
    rates = [0.001, 0.05, 0.3]
    given = {"epochs": 4, "batch_size": 6, "verbose": 0, "callbacks": callbacks, "trainable": "head/**"}
    sweep = jc.sweep(
        one if shared else (lambda seed: pytree(seed)),
        loss_fn,
        DATA,
        over=[{"seed": i, "optimizer.learning_rate": rate} for i, rate in enumerate(rates)],
        optimizer=optax.adam,
        strategy=strategy,
        repack=True,
        execution=jc.Execution(executor=executor),
        **given,
    )
    for i, rate in enumerate(rates):
        model = one if shared else pytree(i)
        alone = jc.fit(
            model,
            loss_fn,
            DATA,
            optimizer=optax.adam,
            learning_rate=rate,
            seed=i,
            execution=jc.Execution(executor=executor),
            **given,
        )
        close(sweep.member(i).params, alone.params)
        close(sweep.member(i).history["loss"], alone.history["loss"])
        if shared:
            assert sweep.member(i).state.frozen["body"]["kernel"] is one["body"]["kernel"]


def test_a_population_callback_refuses_frozen_parameters_of_each_member():
    with pytest.raises(ValueError, match="each member has its own frozen parameters"):
        jc.sweep(
            lambda seed: pytree(seed),
            loss_of(apply_pytree),
            DATA,
            over={"seed": range(4)},
            optimizer=optax.adam,
            learning_rate=0.01,
            trainable="head/**",
            epochs=2,
            callbacks=[jc.callbacks.PopulationBasedTraining("loss", every=1)],
            verbose=0,
        )


def test_a_second_run_traces_and_compiles_nothing():
    loss_fn = loss_of(apply_pytree)
    fit(pytree(), loss_fn, trainable="head/**")
    with counting() as counts:
        fit(pytree(), loss_fn, trainable="head/**", learning_rate=0.01)
    assert not counts
    with counting() as counts:
        fit(pytree(), loss_fn, trainable=("head/kernel",))
    assert counts["compiled"]


def test_a_run_goes_on_with_another_part():
    """Unfreezing: moments of what was trained go on, those of the rest begin."""
    loss_fn = loss_of(apply_pytree)
    first = fit(pytree(), loss_fn, trainable="head/**")
    second = fit(first, loss_fn, trainable="**", epochs=1)
    assert second.state.frozen is None
    adam = jax.tree.leaves(first.state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    mu = next(x for x in adam if hasattr(x, "mu")).mu
    start = jc.fit(first, loss_fn, DATA, optimizer=optax.adamw, learning_rate=0.0, trainable="**", steps=1, verbose=0)
    after = next(
        x for x in jax.tree.leaves(start.state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")
    )
    assert int(after.count) == int(first.state.step) + 1
    assert after.mu["body"]["kernel"] is not None
    assert mu["body"]["kernel"] is None
    same = fit(first, loss_fn, epochs=1)  # None trains what was trained
    assert same.state.params["body"]["kernel"] is None
    close(same.params["body"], pytree()["body"])


def test_a_loop_of_ones_own_trains_the_part():
    def train_step(state, batch):
        def loss_fn(params):
            x, y = batch
            return jnp.mean((apply_pytree(state.replace(params=params).all_params, x) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads), {"loss": loss}

    state = jc.TrainState.create(params=pytree(), tx=optax.adamw(0.05), trainable="head/**", seed=0)
    result = jc.Loop(train_step).run(state, DATA, epochs=3, batch_size=5, verbose=0)
    reference = fit(pytree(), loss_of(apply_pytree), trainable="head/**")
    close(result.params, reference.params)

    def cheats(state, batch):
        state, values = train_step(state, batch)
        return state.replace(frozen=jax.tree.map(lambda x: x * 0.5, state.frozen)), values

    with pytest.raises(ValueError, match=r"train_step changes the frozen parameter body/.*, which trainable= left out"):
        jc.Loop(cheats).run(state, DATA, epochs=1, verbose=0)


def test_frozen_parameters_may_be_of_any_dtype():
    params = {"codes": jnp.arange(3, dtype=jnp.int8), "scale": jnp.ones(())}
    state = jc.TrainState.create(params=params, tx=optax.adam(0.1), trainable="scale")

    def loss_fn(params, batch):
        return jnp.mean((batch @ (params["scale"] * params["codes"].astype(jnp.float32)) - 1.0) ** 2)

    result = jc.Loop(jc.Step(loss_fn)).run(state, X, epochs=2, verbose=0)
    assert result.params["codes"].dtype == jnp.int8
    assert result.params["scale"] != 1.0


@pytest.mark.parametrize(
    ("trainable", "error", "words"),
    [
        ("haed/**", ValueError, r"trainable='haed/\*\*' matches no parameter.*Did you mean 'head/\*\*'"),
        (jc.models.AllBut("**"), ValueError, "leaves nothing to train"),
        (lambda path, leaf: False, ValueError, "selects no parameter"),
        (lambda path, leaf: "yes", TypeError, "returned a str for 'body/bias', expected True or False"),
        (nnx.LoRAParam, TypeError, "a type, which selects Variables of a Flax NNX module"),
        (3, TypeError, "trainable is a int, expected a pattern"),
        ((), ValueError, "trainable is empty"),
        ({"head/**": True}, ValueError, "each epoch of trainable must be a whole number"),
    ],
)
def test_what_trains_nothing_is_refused(trainable, error, words):
    with pytest.raises(error, match=words):
        fit(pytree(), loss_of(apply_pytree), trainable=trainable)


def test_a_type_that_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"trainable=Cache selects no Variable\. The model has LoRAParam, Param"):
        fit(Net(), loss_of(LIBRARIES["nnx"][1]), trainable=nnx.Cache)
    with pytest.raises(ValueError, match="AllBut got no filter"):
        jc.models.AllBut()


def test_patterns_are_those_of_freeze():
    names = ["a/b/kernel", "a/kernel", "kernel"]
    params = {"a": {"b": {"kernel": 1.0}, "kernel": 2.0}, "kernel": 3.0}
    for pattern in ("**", "*", "a/*", "a/**", "**/kernel", "a/*/kernel"):
        assert selected(pattern, params, None, "fit", "trainable") == [matches(pattern, name) for name in names]


def test_the_summary_says_what_is_trained_and_what_it_costs(capsys):
    fit(Net(), loss_of(LIBRARIES["nnx"][1]), trainable="head/**", callbacks=[jc.callbacks.ModelSummary()], epochs=1)
    totals = next(line for line in capsys.readouterr().out.splitlines() if "of gradients and optimizer state" in line)
    # gradients and two moments of 5 numbers, Adam's count, and 24 bytes of the rate; the batch norm has statistics
    assert "45 parameters · 5 trained, 40 not" in totals
    whole, part = (jc.model_summary(Net(), trainable=t) for t in (None, "head/**"))
    assert part.parameters == whole.parameters == 45
    assert [line.path for line in part.lines if line.trainable] == ["head/bias", "head/kernel"]
    states = [jc.TrainState.create(params=pytree(), tx=optax.adam(0.1), trainable=t) for t in (None, "head/**")]
    costs = [summarize(state).training_bytes for state in states]
    assert costs == [3 * 4 * 21 + 4, 3 * 4 * 5 + 4]  # gradients and two moments, and the count


def test_a_lora_of_one_percent_needs_little_more_memory_than_inference_and_activations(monkeypatch):
    """In the compiled program of a chunk: no gradient, moment or copy of a frozen parameter, and none in a loop."""
    width, rows, depth = 512, 256, 4  # so large that record buffers, which no model enlarges, count for little

    class Deep(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
            self.lora = nnx.LoRA(width, 8, width, rngs=rngs)

        def __call__(self, x):
            x = x + self.lora(x)
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return x

    def loss_fn(model, x):
        return jnp.mean((model(x) - 1.0) ** 2)

    model, x = Deep(), jnp.ones((rows, width))
    summary = jc.model_summary(model, loss_fn, x, trainable=nnx.LoRAParam)
    assert 0.005 < summary.trainable / summary.parameters < 0.01

    def saved(params):  # what the backward pass reads
        return jax.vjp(lambda p: loss_fn(state.replace(params=p).model(train=True), x), params)[1]

    adapter = jc.models.adapt(model)
    params, model_state, rngs = adapter.split()
    state = jc.TrainState.create(
        params=params, model_state=model_state, rngs=rngs, adapter=adapter, trainable=nnx.LoRAParam, tx=optax.adam(0.1)
    )
    forward = jax.jit(lambda state, x: loss_fn(state.model(), x)).lower(state.replace(opt_state=None), x).compile()
    weights = {leaf.shape for leaf in jax.tree.leaves(state.all_params)}
    activations = [leaf for leaf in jax.tree.leaves(jax.eval_shape(saved, state.params)) if leaf.shape not in weights]
    drivers, build = [], run.build_driver

    def note(*args, **kwargs):
        driver, why = build(*args, **kwargs)
        drivers.append(driver)
        return driver, why

    monkeypatch.setattr(run, "build_driver", note)
    needed = memory_of(forward) + sum(leaf.size * leaf.dtype.itemsize for leaf in activations)
    for executor, name in (("looped", "_chunk"), ("stepped", "_step")):
        jc.Loop(jc.Step(loss_fn), callbacks=[jc.EarlyStopping("loss", restore_best_weights=True)]).run(
            state, x, epochs=2, batch_size=rows, shuffle=False, execution=jc.Execution(executor=executor), verbose=0
        )
        (compiled,) = getattr(drivers.pop().device.executor, name)._functions.values()
        assert memory_of(compiled.run) <= 1.1 * needed, executor


def memory_of(compiled):
    stats = compiled.memory_analysis()
    return (
        stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    )
