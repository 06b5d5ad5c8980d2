"""Equinox: the same as `eqx.filter_value_and_grad` by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcb._src.models.pytree import with_state
from jaxcb.models import adapt


def close(a, b):
    a, b = (jax.tree.leaves(eqx.filter(t, eqx.is_array)) for t in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_two_steps_with_dropout_are_those_by_hand(nets, batch):
    model, tx = nets.equinox(jax.random.key(0)), optax.adam(1e-2)
    adapter = adapt(model)

    def loss(model, key):
        logits = jax.vmap(lambda x, k: model(x, key=k))(batch["x"], jax.random.split(key, 6))
        return nets.cross_entropy(logits, batch["y"])

    @eqx.filter_jit
    def hand_step(model, opt_state, key):
        value, grads = eqx.filter_value_and_grad(loss)(model, key)
        updates, opt_state = tx.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, value

    @jax.jit
    def step(params, opt_state, key):
        value, grads = jax.value_and_grad(lambda p: loss(adapter.merge(p, None, None, train=True), key))(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    params, _, _ = adapter.split()
    opt_state, hand_opt = tx.init(params), tx.init(eqx.filter(model, eqx.is_inexact_array))
    by_hand, values = model, []
    for i in range(2):
        key = jax.random.fold_in(jax.random.key(0), i)
        params, opt_state, value = step(params, opt_state, key)
        by_hand, hand_opt, expected = hand_step(by_hand, hand_opt, key)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        values.append(value)
    close(adapter.deliver(params, None, None), by_hand)
    forward = jax.jit(lambda key: loss(adapter.merge(params, None, None, train=True), key))
    assert forward(jax.random.key(0)) != forward(jax.random.key(1))


def test_two_steps_with_batch_norm_are_those_by_hand(nets, batch):
    model, state = eqx.nn.make_with_state(nets.equinox_norm)(jax.random.key(0))
    adapter = with_state(model, state)
    assert adapter.explicit_state

    def loss(model, state):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, state = forward(batch["x"], state)
        return nets.cross_entropy(logits, batch["y"]), state

    @eqx.filter_jit
    def hand_step(model, state):
        (value, state), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, state)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads)), state, value

    @jax.jit
    def step(params, state):
        def of(params, state):
            return loss(adapter.merge(params, state, None, train=True), state)

        (value, state), grads = jax.value_and_grad(of, has_aux=True)(params, state)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads)), state, value

    params, carried, _ = adapter.split()
    first = [np.asarray(x) for x in jax.tree.leaves(carried)]
    for _ in range(2):
        params, carried, value = step(params, carried)
        model, state, expected = hand_step(model, state)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    close((adapter.deliver(params, carried, None), carried), (model, state))
    assert not all(np.array_equal(a, b) for a, b in zip(first, jax.tree.leaves(carried), strict=True))

    inference = eqx.nn.inference_mode(model)
    expected = jax.vmap(lambda x: inference(x, state)[0])(batch["x"])
    merged = adapter.merge(params, carried, None, train=False)
    np.testing.assert_allclose(adapter.call(merged, batch["x"], carried), expected, rtol=1e-5, atol=1e-6)
    jax.tree.leaves(carried)  # and the state was not used up


def test_paths_are_names(nets):
    params, model_state, rngs = adapt(nets.equinox(jax.random.key(0))).split()
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    assert names == ["hidden/weight", "hidden/bias", "head/weight", "head/bias"]
    assert (model_state, rngs) == (None, None)


def test_modes(nets):
    model = nets.equinox(jax.random.key(0))
    wholly = adapt(eqx.nn.inference_mode(model))
    params, *_ = wholly.split()
    assert wholly.merge(params, None, None, train=True).drop.inference is False
    assert wholly.merge(params, None, None, train=False).drop.inference is True
    assert wholly.deliver(params, None, None).drop.inference is True

    pair = adapt({"frozen": eqx.nn.inference_mode(model), "trained": model})
    params, *_ = pair.split()
    train = pair.merge(params, None, None, train=True)
    assert (train["frozen"].drop.inference, train["trained"].drop.inference) == (True, False)
    assert pair.merge(params, None, None, train=False)["trained"].drop.inference is True


def test_integer_arrays_are_not_trained(nets):
    class Table(eqx.Module):
        weight: jax.Array
        index: jax.Array

        def __call__(self, x, key):
            return x * self.weight[self.index].sum()

    adapter = adapt(Table(jnp.ones(3), jnp.arange(2)))
    params, *_ = adapter.split()
    assert len(jax.tree.leaves(params)) == 1
    model = adapter.merge(params, None, None, train=False)
    np.testing.assert_array_equal(adapter.call(model, jnp.ones(4)), 2 * np.ones(4))


def test_errors(nets):
    model, _ = eqx.nn.make_with_state(nets.equinox_norm)(jax.random.key(0))
    with pytest.raises(ValueError, match=r"no state was given.*jc\.with_state\(model, state\)"):
        adapt(model)
    with pytest.raises(ValueError, match="no parameters to train"):
        adapt(eqx.nn.Dropout(0.5))
