"""Members that cannot share a program: groups, parts, and what does not fit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.sweep.members import bytes_of


class Net(nnx.Module):
    def __init__(self, seed, rate=0.0):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(3, 4, kernel_init=nnx.initializers.normal(0.5), rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def net_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def test_a_number_that_flax_insists_on_sorts_members_into_groups(capsys):
    data = make_data(32)
    points = jc.search.grid({"seed": [0, 1], "model.rate": [0.0, 0.5]})
    given = {"learning_rate": 0.05, "epochs": 2, "batch_size": 16}
    result = jc.sweep(
        lambda seed, rate: Net(seed, rate), net_loss, data, over=points, optimizer=optax.adam, verbose=2, **given
    )
    said = capsys.readouterr().out
    assert "2 groups" in said
    assert "model.rate=0.5 (2 members)" in said
    assert [[m.number for m in part.members] for part in result.parts] == [[0, 2], [1, 3]]
    for i in (1, 2):
        single = jc.fit(
            Net(points[i]["seed"], points[i]["model.rate"]),
            net_loss,
            data,
            optimizer=optax.adam,
            seed=points[i]["seed"],
            verbose=0,
            **given,
        )
        np.testing.assert_allclose(result.member(i).history["loss"], single.history["loss"], rtol=1e-3)
        own = jc.predict(result.member(i).model, data[0])
        np.testing.assert_allclose(own, jc.predict(single.model, data[0]), rtol=1e-3, atol=1e-4)


def sharp(learning_rate, depth=1.0):
    """Decides by a number in Python."""
    return optax.chain(optax.scale(2.0) if depth > 1 else optax.identity(), optax.sgd(learning_rate))


def test_a_number_that_an_optimizer_decides_by_sorts_members_into_groups():
    over = {"optimizer.depth": [1.0, 2.0], "optimizer.learning_rate": [0.01, 0.02]}
    result = jc.sweep(make_params, loss_fn, make_data(), over=over, optimizer=sharp, epochs=1, verbose=0, shuffle=False)
    assert [len(part.members) for part in result.parts] == [2, 2]
    np.testing.assert_allclose(result.member(1).params["w"], result.member(2).params["w"], rtol=1e-5)


def test_a_sweep_too_large_for_memory_says_what_it_needs_and_splits(monkeypatch):
    def run(**more):
        return jc.sweep(
            make_params,
            loss_fn,
            make_data(),
            over={"seed": range(4)},
            optimizer=optax.sgd(0.1),
            epochs=1,
            verbose=0,
            **more,
        )

    each = bytes_of(run().parts[0].members[0])
    monkeypatch.setattr(importlib.import_module("jaxcb._src.sweep.sweep"), "_room", lambda: 2 * each + 1)
    with pytest.raises(MemoryError, match=r"4 members need about .* GiB .*at_once=2"):
        run()
    result = run(at_once=2)
    assert [len(part.members) for part in result.parts] == [2, 2]
    assert [m.member for m in result] == [0, 1, 2, 3]
    monkeypatch.undo()
    for split, whole in zip(result, run(), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), split.params, whole.params)


def test_what_is_no_model_function_is_refused():
    with pytest.raises(TypeError, match="the class Net, expected a function"):
        jc.sweep(Net, net_loss, make_data(), over={"seed": [0]}, optimizer=optax.sgd(0.1), epochs=1)
    with pytest.raises(TypeError, match="model_fn is a model, not a function"):
        jc.sweep(make_params(), loss_fn, make_data(), over={"model.a": [0]}, optimizer=optax.sgd(0.1), epochs=1)
