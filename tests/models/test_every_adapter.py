"""What holds for the adapter of every library, under every transformation that a run uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcb as jc
from jaxcb._src.models.adapter import Adapter
from jaxcb.models import adapt


def data(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_equal(a, b, *, exact=True):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if exact:
            np.testing.assert_array_equal(data(x), data(y))
        else:
            np.testing.assert_allclose(data(x), data(y), rtol=1e-5, atol=1e-6)


def form(tree):
    leaves, structure = jax.tree.flatten(tree)
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves], structure


def copies(tree):
    return jax.tree.map(jnp.copy, tree)


def test_it_is_an_adapter_and_hashable(case):
    assert isinstance(case.adapter, Adapter)
    assert adapt(case.adapter) is case.adapter
    assert hash(case.adapter) == hash(case.adapter)
    assert case.adapter == case.adapter
    hash(jax.tree.structure(case.adapter.split()))


def test_parts_are_strongly_typed_arrays(case):
    for leaf in jax.tree.leaves(case.adapter.split()):
        assert isinstance(leaf, jax.Array)
        assert not getattr(leaf, "weak_type", False)


def test_a_step_changes_the_params_and_keeps_the_form(case):
    parts = case.adapter.split()
    new, _ = case.compiled(parts, jax.random.key(3))
    assert form(new) == form(parts)
    changed = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (new[0], parts[0])), strict=True)]
    assert any(changed)


def test_an_evaluation_changes_nothing(case):
    parts = case.adapter.split()

    @jax.jit
    def evaluate(parts, key):
        model = case.adapter.merge(*parts, train=False, key=key)
        value, _ = case.loss(model, case.batch, key=key, state=jax.tree.map(lambda x: x, parts[1]))
        return value, *case.adapter.carried(model)

    value, model_state, rngs = evaluate(parts, jax.random.key(3))
    if not case.adapter.explicit_state:  # otherwise the state is what the loss function makes of it
        assert_equal((model_state, rngs), parts[1:])
    again, *_ = evaluate(parts, jax.random.key(4))
    np.testing.assert_allclose(value, again, rtol=1e-5)


def test_while_loop(case):
    parts = case.adapter.split()

    def body(carry):
        i, parts = carry
        return i + 1, case.step(parts, jax.random.fold_in(jax.random.key(0), i))[0]

    looped = jax.jit(lambda p: jax.lax.while_loop(lambda c: c[0] < 2, body, (0, p))[1])(parts)
    by_hand = parts
    for i in range(2):
        by_hand, _ = case.compiled(by_hand, jax.random.fold_in(jax.random.key(0), i))
    assert_equal(looped, by_hand, exact=False)


def test_members(case):
    parts = case.adapter.split()
    scaled = jax.tree.map(lambda x: 0.5 * x, parts[0]), *parts[1:]
    members = jax.tree.map(lambda *x: jnp.stack(x), parts, scaled)
    keys = jax.random.split(jax.random.key(0), 2)
    stacked, _ = jax.jit(jax.vmap(case.step))(members, keys)
    for i, member in enumerate((parts, scaled)):
        alone, _ = case.compiled(member, keys[i])
        assert_equal(jax.tree.map(lambda x, i=i: x[i], stacked), alone, exact=False)


def test_shape_evaluation_and_donation(case):
    parts = copies(case.adapter.split())
    shapes, _ = jax.eval_shape(case.step, parts, jax.random.key(0))
    step = jax.jit(case.step, donate_argnums=0)
    for i in range(2):
        parts, value = step(parts, jax.random.fold_in(jax.random.key(0), i))
    assert form(shapes) == form(parts)
    assert np.isfinite(value)
    assert np.isfinite(jax.tree.leaves(case.adapter.split()[0])[0]).all()  # the caller's arrays are alive


def test_nothing_leaks_out_of_a_trace(case):
    with jax.checking_leaks():
        jax.make_jaxpr(case.step)(case.adapter.split(), jax.random.key(0))


def test_one_trace_serves_all_steps(case):
    parts = case.adapter.split()
    for i in range(2):
        parts, _ = case.compiled(parts, jax.random.fold_in(jax.random.key(0), i))
    assert case.compiled._cache_size() == 1


def test_as_a_static_field_of_a_train_state(case):
    params, model_state, rngs = case.adapter.split()
    state = jc.TrainState.create(params=params, model_state=model_state, rngs=rngs, adapter=case.adapter)

    @jax.jit
    def loss(state):
        value, _ = case.loss(state.model(train=True), case.batch, key=state.step_key(), state=state.model_state)
        return value

    assert np.isfinite(loss(state))


def test_delivered_weights_are_the_given_ones(case):
    parts, _ = case.compiled(case.adapter.split(), jax.random.key(0))
    model = case.adapter.deliver(*parts)
    assert model is not None
    merged = case.adapter.merge(*parts, train=False)
    if callable(merged):
        expected = case.adapter.call(merged, case.batch["x"], parts[1])
        assert expected.shape == (6, 3)
        np.testing.assert_allclose(
            jax.jit(lambda p: case.adapter.call(case.adapter.merge(*p, train=False), case.batch["x"], p[1]))(parts),
            expected,
            rtol=1e-5,
            atol=1e-6,
        )
    else:
        with pytest.raises(TypeError, match="cannot be called"):
            case.adapter.call(merged, case.batch["x"])
