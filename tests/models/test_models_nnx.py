"""NNX: the same as NNX's own training, and the caller's module changes at delivery only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcb as jc
from jaxcb._src.models.nnx import NNX, read_optimizer, write_optimizer
from jaxcb.models import adapt


class Odd(nnx.Module):
    """Everything that a module may hold."""

    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
        self.tied = self.blocks[0]
        self.calls = nnx.Variable(0)
        self.tree = nnx.Variable({"sum": jnp.zeros(2), "pair": (jnp.ones(1),)})
        self.note = nnx.Variable("a string")
        self.buffer = jnp.arange(2.0)
        self.table = np.ones(2, np.float32)
        self.empty = None

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        self.tree.set_value({**self.tree.get_value(), "sum": self.tree.get_value()["sum"] + 1.0})
        self.buffer = self.buffer + 1
        for block in self.blocks:
            x = block(x)
        return self.tied(x) * self.table[None]


def snapshot(module):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))


def assert_close(a, b, rtol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def nnx_loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def train_with_nnx(model, optimizer, batch, steps):
    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(nnx_loss)(model, batch["x"], batch["y"])
        optimizer.update(model, grads)
        return loss

    return [step(model, optimizer) for _ in range(steps)]


def train_with_adapter(state, batch, steps):
    @jax.jit
    def step(state):
        def loss(params):
            model = state.replace(params=params).model(train=True)
            return nnx_loss(model, batch["x"], batch["y"]), state.adapter.carried(model)

        (value, (model_state, rngs)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        new = state.apply_gradients(grads)
        return new.replace(model_state=model_state, rngs=rngs), value

    losses = []
    for _ in range(steps):
        state, value = step(state)
        losses.append(value)
    return state, losses


def test_two_steps_are_nnx_own(nets, batch):
    theirs, mine = nets.nnx(nnx.Rngs(0)), nets.nnx(nnx.Rngs(0))
    optimizers = [nnx.Optimizer(m, optax.adam(1e-2), wrt=nnx.Param) for m in (theirs, mine)]
    losses = train_with_nnx(theirs, optimizers[0], batch, 2)
    before = snapshot(mine)
    state, values = train_with_adapter(jc.TrainState.from_nnx(mine, optimizers[1]), batch, 2)
    np.testing.assert_allclose(values, losses, rtol=1e-5)
    assert_close(snapshot(mine), before, rtol=0)  # nothing of the caller's changed yet

    state.update_nnx(mine, optimizers[1])
    assert_close(snapshot(mine), snapshot(theirs))
    assert_close(read_optimizer(optimizers[1]), read_optimizer(optimizers[0]))
    assert int(optimizers[1].step.get_value()) == 2
    # and both go on alike, in NNX's own loop
    again = [train_with_nnx(m, o, batch, 1)[0] for m, o in zip((theirs, mine), optimizers, strict=True)]
    np.testing.assert_allclose(*again, rtol=1e-4)


def test_dropout_follows_nnx_counters(nets, batch):
    model = nets.nnx(nnx.Rngs(3))
    adapter = NNX(model)
    params, model_state, rngs = adapter.split()

    @jax.jit
    def forward(model_state, rngs):
        merged = adapter.merge(params, model_state, rngs, train=True)
        return merged(batch["x"]), adapter.carried(merged)

    outputs = []
    for _ in range(2):
        y, (model_state, rngs) = forward(model_state, rngs)
        outputs.append(y)
    own = [nnx.jit(lambda m, x: m(x))(model, batch["x"]) for _ in range(2)]
    assert not np.allclose(*outputs)
    np.testing.assert_allclose(outputs, own, rtol=1e-5, atol=1e-6)
    assert int(rngs["drop"]["rngs"]["count"]) == int(model.drop.rngs.count.get_value())


def test_statistics_move_in_training_only(nets, batch):
    adapter = adapt(nets.nnx(nnx.Rngs(0)))
    parts = adapter.split()
    for train in (True, False):
        model = adapter.merge(*parts, train=train)
        model(batch["x"])
        model_state, _ = adapter.carried(model)
        assert np.allclose(model_state["norm"]["mean"], parts[1]["norm"]["mean"]) is not train


def test_names_are_nnx_own(nets):
    params, model_state, rngs = adapt(nets.nnx(nnx.Rngs(0))).split()
    assert sorted(params) == ["conv", "head", "norm"]
    assert jax.tree.structure(params) == jax.tree.structure(
        nnx.to_pure_dict(nnx.state(nets.nnx(nnx.Rngs(0)), nnx.Param))
    )
    assert sorted(model_state["norm"]) == ["mean", "var"]
    assert sorted(rngs["drop"]["rngs"]) == ["count", "key"]


def test_deliver(nets):
    for copy in (False, True):
        model = nets.nnx(nnx.Rngs(0))
        model.eval()
        adapter = adapt(model, copy=copy)
        params, model_state, rngs = adapter.split()
        before = snapshot(model)
        zeros = jax.tree.map(jnp.zeros_like, params)
        result = adapter.deliver(zeros, model_state, rngs)
        assert (result is model) is not copy
        assert result.drop.deterministic  # in the mode that the caller's is in
        assert not np.any(result.head.kernel.get_value())
        if copy:
            assert_close(snapshot(model), before, rtol=0)


def test_everything_that_a_module_may_hold():
    model = Odd(nnx.Rngs(0))
    adapter = adapt(model)
    parts = adapter.split()
    assert sorted(parts[0]["blocks"]) == list(range(11))
    assert "tied" not in parts[0]

    @jax.jit
    def forward(params, model_state, rngs):
        merged = adapter.merge(params, model_state, rngs, train=True)
        assert merged.tied is merged.blocks[0]
        assert merged.note.get_value() == "a string"
        y = merged(jnp.ones((1, 2)))
        return y, adapter.carried(merged)

    for _ in range(2):
        y, (model_state, rngs) = forward(*parts)
        parts = (parts[0], model_state, rngs)
    assert int(model_state["calls"]) == 2
    np.testing.assert_array_equal(model_state["buffer"], [2.0, 3.0])
    adapter.deliver(*parts)
    np.testing.assert_array_equal(model.tree.get_value()["sum"], [2.0, 2.0])
    np.testing.assert_array_equal(model.buffer, [2.0, 3.0])
    np.testing.assert_allclose(model(jnp.ones((1, 2))), y, rtol=1e-5)


def test_leaves_are_rebuilt_in_their_places():
    model = Odd(nnx.Rngs(0))
    adapter = adapt(model)
    numbered = jax.tree.unflatten(
        jax.tree.structure(adapter.split()[0]),
        [jnp.full(x.shape, float(i)) for i, x in enumerate(jax.tree.leaves(adapter.split()[0]))],
    )
    merged = adapter.merge(numbered, *adapter.split()[1:], train=True)
    assert_close(nnx.to_pure_dict(nnx.state(merged, nnx.Param)), numbered, rtol=0)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_what_was_sown_is_not_carried():
    class Sower(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "seen", x)
            return self.linear(x)

    model = Sower()
    model(jnp.ones((1, 2)))
    adapter = adapt(model)
    parts = adapter.split()
    merged = adapter.merge(*parts, train=True)
    merged(jnp.ones((1, 2)))
    merged(jnp.ones((1, 2)))
    assert adapter.carried(merged) == ({}, {})
    assert hasattr(model, "seen")  # the caller keeps what is the caller's


def test_modes(nets):
    wholly = nets.nnx(nnx.Rngs(0))
    wholly.eval()
    adapter = adapt(wholly)
    assert wholly.drop.deterministic  # the caller's mode is not touched
    assert not adapter.merge(*adapter.split(), train=True).drop.deterministic

    frozen = nets.nnx(nnx.Rngs(0))
    frozen.norm.eval()
    adapter = adapt(frozen)
    train, evaluate = (adapter.merge(*adapter.split(), train=t) for t in (True, False))
    assert (train.norm.use_running_average, train.drop.deterministic) == (True, False)
    assert (evaluate.norm.use_running_average, evaluate.drop.deterministic) == (True, True)


def test_low_precision_statistics_keep_their_dtype():
    class Running(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones((), jnp.bfloat16))
            self.mean = nnx.BatchStat(jnp.zeros((), jnp.bfloat16))

        def __call__(self, x):
            self.mean.set_value(x.mean())
            return x * self.scale.get_value()

    adapter = adapt(Running())
    merged = adapter.merge(*adapter.split(), train=True)
    merged(jnp.ones(3))
    assert adapter.carried(merged)[0]["mean"].dtype == jnp.bfloat16


def test_only_some_variables_are_trained():
    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(2, 2, rngs=rngs)
            self.lora = nnx.LoRA(2, 1, 2, rngs=rngs)

        def __call__(self, x):
            return self.base(x) + self.lora(x)

    model = Adapted(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)
    state = jc.TrainState.from_nnx(model, optimizer)
    assert list(state.params) == ["lora"]
    state = state.apply_gradients(jax.tree.map(jnp.ones_like, state.params))
    before = snapshot(model)["base"]
    state.update_nnx(model, optimizer)
    assert_close(snapshot(model)["base"], before, rtol=0)
    assert int(optimizer.step.get_value()) == 1


def test_an_adjustable_rate_survives_the_optimizer(nets):
    model = nets.nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jc.adjustable_lr(optax.adam, learning_rate=1e-2), wrt=nnx.Param)
    state = jc.TrainState.from_nnx(model, optimizer)
    state = jc.apply(jc.actions.ScaleLearningRate(0.5), state)
    state.update_nnx(model, optimizer)
    again = jc.TrainState.from_nnx(model, optimizer)
    assert float(again.learning_rate.scale) == 0.5
    assert again.step.dtype == jnp.int32


def test_errors(nets):
    class Integer(nnx.Module):
        def __init__(self):
            self.count = nnx.Param(jnp.zeros((), jnp.int32))

    with pytest.raises(TypeError, match=r"leaf count of dtype int32.*another kind of nnx\.Variable"):
        adapt(Integer())
    with pytest.raises(ValueError, match="no parameters to train"):
        adapt(nnx.Dropout(0.5))

    class Grows(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))
            self.cache = nnx.Variable(jnp.zeros(1))

    adapter = adapt(Grows())
    merged = adapter.merge(*adapter.split(), train=True)
    merged.cache.set_value(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"\['cache'\] has shape \(2,\), expected \(1,\)"):
        adapter.carried(merged)
    del merged.cache
    with pytest.raises(ValueError, match="Variable cache was removed"):
        adapter.carried(merged)

    model = nets.nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    with pytest.raises(ValueError, match="another structure"):
        write_optimizer(optimizer, optax.sgd(0.1).init({}), 0)
