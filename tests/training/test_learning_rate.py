"""The learning rate: a schedule times scales, inside any optax optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
from jaxcb._src.training.learning_rate import LearningRate, scaled_updates

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": lambda learning_rate: optax.adamw(learning_rate, weight_decay=0.1),
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9, nesterov=True),
    "adafactor": lambda learning_rate: optax.adafactor(learning_rate, min_dim_size_to_factor=2),
    "lion": optax.lion,
    "clipped": lambda learning_rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate)),
}
SCHEDULE = optax.cosine_decay_schedule(0.1, 10)


def params(dtype=jnp.float32):
    return {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4).astype(dtype), "b": jnp.ones(4, dtype)}


def train(tx, start, steps=4, actions=None):
    state = jc.TrainState.create(params=start, tx=tx)
    step = jax.jit(lambda s: s.apply_gradients(jax.tree.map(lambda p: p * 2 + 0.5, s.params)))
    for i in range(steps):
        state = step(state)
        if actions is not None and i == 1:
            state = jc.apply(actions, state)
    return state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_scale_one_it_is_plain_optax(name):
    plain = train(OPTIMIZERS[name](SCHEDULE), params())
    ours = train(jc.adjustable_lr(OPTIMIZERS[name], learning_rate=SCHEDULE), params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), ours.params, plain.params)
    assert int(ours.learning_rate.count) == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scale_is_another_rate_from_then_on(name):
    halved = train(OPTIMIZERS[name](lambda count: SCHEDULE(count) * jnp.where(count < 2, 1.0, 0.5)), params())
    ours = train(
        jc.adjustable_lr(OPTIMIZERS[name], learning_rate=SCHEDULE), params(), actions=jc.actions.ScaleLearningRate(0.5)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), ours.params, halved.params)


@pytest.mark.parametrize("name", ["adam", "momentum", "adafactor", "lion"])
def test_small_params_keep_their_dtypes_and_the_scale_is_float32(name):
    plain = OPTIMIZERS[name](0.1).init(params(jnp.bfloat16))
    state = train(jc.adjustable_lr(OPTIMIZERS[name], learning_rate=0.1), params(jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    rate = state.learning_rate
    assert {x.dtype for x in (rate.scale, rate.override, rate.applied)} == {jnp.dtype(jnp.float32)}
    dtypes = [x.dtype for x in jax.tree.leaves(state.opt_state.inner_state)]
    assert dtypes == [x.dtype for x in jax.tree.leaves(plain)]


def test_no_change_of_rate_retraces():
    state = jc.TrainState.create(params=params(), tx=jc.adjustable_lr(optax.adam, learning_rate=SCHEDULE))
    step = jax.jit(lambda s: s.apply_gradients(s.params))
    change = jax.jit(
        lambda s, x: jc.apply(
            (jc.actions.ScaleLearningRate(x, when=x < 0.9), jc.actions.SetLearningRate(x, when=x > 0.5)), s
        )
    )
    for x in (0.1, 0.7, 0.95):
        state = change(step(state), jnp.float32(x))
    jc.apply(jc.actions.ScaleLearningRate(0.5), state)
    step(state)
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert change._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def rate_after(actions, learning_rate=1.0):
    state = jc.TrainState.create(params={}, tx=jc.adjustable_lr(optax.sgd, learning_rate=learning_rate))
    return float(jc.apply(actions, state).learning_rate.effective())


def test_scales_multiply_and_the_later_set_holds():
    half, quarter = jc.actions.ScaleLearningRate(0.5), jc.actions.ScaleLearningRate(0.25)
    assert rate_after((half, quarter)) == 0.125
    assert rate_after((jc.actions.SetLearningRate(8.0), half, jc.actions.SetLearningRate(2.0))) == 1.0
    assert (
        rate_after((half, jc.actions.ScaleLearningRate(0.5, when=False), jc.actions.SetLearningRate(3, when=False)))
        == 0.5
    )
    assert rate_after(jc.actions.ScaleLearningRate(2)) == 2.0


def test_floors_hold_after_all_scales_of_the_moment():
    assert rate_after((jc.actions.ScaleLearningRate(0.1, 0.25), jc.actions.ScaleLearningRate(0.5))) == 0.25
    assert rate_after((jc.actions.ScaleLearningRate(0.5, 0.25), jc.actions.ScaleLearningRate(0.5, 0.125))) == 0.25
    assert rate_after(jc.actions.ScaleLearningRate(0.1, 0.25, when=False)) == 1.0
    assert rate_after(jc.actions.ScaleLearningRate(0.5, 3.0)) == 1.0  # a floor above the rate raises nothing


@pytest.mark.parametrize("base", [0.1, 0.3, 1e-3, 7e-5])
@pytest.mark.parametrize("floor", [1e-3, 0.007, 3.3e-6])
def test_a_floor_is_never_passed_upwards(base, floor):
    rate = rate_after(jc.actions.ScaleLearningRate(1e-6, floor), base)
    assert rate <= np.float32(max(floor, 0.0)) or rate == np.float32(base)
    if floor < base:
        np.testing.assert_allclose(rate, floor, rtol=3e-7)


def test_a_set_holds_over_the_schedule():
    state = jc.TrainState.create(params=params(), tx=jc.adjustable_lr(optax.sgd, learning_rate=SCHEDULE))
    state = jc.apply((jc.actions.SetLearningRate(0.25), jc.actions.ScaleLearningRate(0.5)), state)
    for _ in range(3):
        state = state.apply_gradients(state.params)
    assert float(state.learning_rate.base()) == 0.25
    assert float(state.learning_rate.applied) == 0.125


def test_applied_is_the_rate_of_the_last_update():
    state = jc.TrainState.create(params=params(), tx=jc.adjustable_lr(optax.sgd, learning_rate=lambda c: 1.0 / (c + 1)))
    assert float(state.learning_rate.applied) == 1.0
    for expected in (1.0, 0.5):
        state = state.apply_gradients(state.params)
        assert float(state.learning_rate.applied) == expected


def test_a_ready_made_optimizer_is_scaled_at_its_updates():
    plain = train(optax.adam(lambda count: jnp.where(count < 2, 0.1, 0.05)), params())
    ours = train(scaled_updates(optax.adam(0.1)), params(), actions=jc.actions.ScaleLearningRate(0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours.params, plain.params)
    bf16 = train(scaled_updates(optax.adam(0.1)), params(jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(bf16.params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "action",
    [jc.actions.SetLearningRate(0.1, owner="mine"), jc.actions.ScaleLearningRate(0.5, floor=0.01, owner="mine")],
)
def test_a_ready_made_optimizer_hides_its_rate(action):
    state = jc.TrainState.create(params={}, tx=scaled_updates(optax.adam(0.1)))
    with pytest.raises(ValueError, match=r"mine needs the learning rate itself .*jc.adjustable_lr\(optax.adam"):
        jc.apply(action, state)


def test_without_a_rate_the_error_says_what_to_do():
    state = jc.TrainState.create(params={}, tx=optax.adam(0.1))
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau: a callback changes the learning rate.*adjustable_lr"):
        jc.apply(jc.actions.ScaleLearningRate(0.5, owner="ReduceLROnPlateau"), state)
    with pytest.raises(ValueError, match=r"does not support that"):
        _ = state.learning_rate


def test_adjustable_lr_says_what_it_takes():
    with pytest.raises(
        TypeError, match=r"takes a function of the learning rate, .* got GradientTransformationExtraArgs"
    ):
        jc.adjustable_lr(optax.adam(0.1), learning_rate=0.1)
    with pytest.raises(TypeError, match=r"takes no argument, expected learning_rate"):
        jc.adjustable_lr(lambda: optax.adam(0.1), learning_rate=0.1)


def test_equal_constants_are_equal_structures():
    trees = [jax.tree.structure(jc.adjustable_lr(optax.sgd, learning_rate=0.1).init({})) for _ in range(2)]
    assert trees[0] == trees[1]


def test_an_optimizer_within_others_is_found():
    tx = optax.chain(
        optax.clip(1.0), optax.masked(jc.adjustable_lr(optax.adam, learning_rate=0.1), {"w": True, "b": False})
    )
    state = jc.apply(jc.actions.ScaleLearningRate(0.5), jc.TrainState.create(params=params(), tx=tx))
    assert isinstance(state.learning_rate, LearningRate)
    np.testing.assert_allclose(state.learning_rate.effective(), 0.05)
