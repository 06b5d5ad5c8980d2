"""LearningRateScheduler: Python functions as tables, jnp functions traced, by epoch or by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc


def rates(schedule, epochs=6, start=1.0, **kwargs):
    """The base rate that a run has at each epoch, in one compiled program."""
    chain = jc.chain(jc.LearningRateScheduler(schedule, **kwargs))
    hook = next(iter(chain.hooks()))
    train = jc.TrainState.create(params={}, tx=jc.adjustable_lr(optax.sgd, learning_rate=start))

    @jax.jit
    def begin(train, epoch):
        metrics = jc.Metrics({"base_learning_rate": train.learning_rate.base()}, epoch=epoch, step=10 * epoch)
        return jc.apply(getattr(chain, hook)(chain.init(), metrics)[1], train)

    out = []
    for epoch in range(epochs):
        train = begin(train, jnp.int32(epoch))
        out.append(float(train.learning_rate.base()))
    return out


def test_a_python_function_of_the_epoch_becomes_a_table():
    def schedule(epoch):
        return 0.1 if epoch < 2 else 0.1 * math.exp(-0.5 * (epoch - 1))

    np.testing.assert_allclose(rates(schedule), [schedule(e) for e in range(6)], rtol=1e-6)


def test_the_table_is_made_once():
    calls = []

    def schedule(epoch):
        calls.append(epoch)
        return 0.1 if epoch < 2 else 0.2

    callback = jc.LearningRateScheduler(schedule)
    for epoch in (1, 2):
        callback.on_epoch_begin((), jc.Metrics({}, epoch=epoch))
    assert [c for c in calls if isinstance(c, int)].count(5) == 1


def test_a_list_of_rates_keeps_its_last():
    assert rates([1.0, 0.5, 0.25].__getitem__) == [1.0, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_epoch_and_rate_as_kerass_example():
    def schedule(epoch, lr):
        return lr if epoch < 3 else lr * math.exp(-0.1)

    expected = [1.0, 1.0, 1.0, *(math.exp(-0.1 * n) for n in (1, 2, 3))]
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-6)


def test_a_jnp_function_is_traced():
    def schedule(epoch, lr):
        return jnp.where(epoch < 3, lr, jnp.maximum(lr * 0.5, 0.25))

    assert rates(schedule) == [1.0, 1.0, 1.0, 0.5, 0.25, 0.25]


def test_by_step_takes_an_optax_schedule():
    schedule = optax.linear_schedule(1.0, 0.0, 40)
    assert jc.LearningRateScheduler(schedule, by="step").hooks() == {"on_batch_begin"}
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        np.testing.assert_allclose(rates(schedule, by="step"), [1.0, 0.75, 0.5, 0.25, 0.0, 0.0], atol=1e-7)


def test_a_plateaus_cut_stays_in_force():
    train = jc.TrainState.create(params={}, tx=jc.adjustable_lr(optax.sgd, learning_rate=1.0))
    train = jc.apply(
        (jc.actions.ScaleLearningRate(0.5), jc.actions.SetLearningRate(0.5), jc.actions.SetLearningRate(0.25)), train
    )
    assert float(train.learning_rate.base()) == 0.25
    assert float(train.learning_rate.effective()) == 0.125


def test_verbose_prints():
    _, (_, line) = jc.chain(jc.LearningRateScheduler(lambda epoch: 0.5, verbose=1)).on_epoch_begin(
        {"LearningRateScheduler": ()}, jc.Metrics({}, epoch=1)
    )
    assert jc.actions.fill(line, epoch=1) == "Epoch 2: LearningRateScheduler sets the learning rate to 0.5"


def test_what_cannot_be_a_schedule_is_refused():
    with pytest.raises(TypeError, match=r"schedule must be a function, got 0\.1"):
        jc.LearningRateScheduler(0.1)
    with pytest.raises(ValueError, match="by must be one of 'epoch', 'step', got 'batch'"):
        jc.LearningRateScheduler(lambda e: e, by="batch")
    with pytest.raises(TypeError, match="uses lr in a way that is not linear"):
        rates(lambda epoch, lr: max(lr, 0.5) if epoch < 3 else lr)
    with pytest.raises(TypeError, match=r"returned shape \(2,\), expected a scalar"):
        rates(lambda epoch: jnp.ones(2))


def test_errors_in_the_schedule_are_the_users_own():
    with pytest.raises(KeyError, match="nope"):
        rates(lambda epoch: {}["nope"])


def test_by_step_needs_what_jax_can_trace():
    callback = jc.LearningRateScheduler(lambda step: 0.1 if step < 3 else 0.2, by="step")
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        callback.on_batch_begin((), jc.Metrics({}))
    assert "by='step') needs a schedule that jax can trace" in "".join(caught.value.__notes__)


def test_a_state_without_a_rate_says_what_to_do():
    actions = jc.LearningRateScheduler(lambda e: 0.1).on_epoch_begin((), jc.Metrics({}))[1]
    with pytest.raises(ValueError, match=r"does not support that. Use fit\(optimizer=optax.adam, learning_rate=1e-3\)"):
        jc.apply(actions, jc.TrainState.create(params={}, tx=optax.sgd(0.1)))
