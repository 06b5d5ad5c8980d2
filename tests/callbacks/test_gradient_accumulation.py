"""`GradientAccumulation`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop import _runs

import jaxcb as jc


@pytest.fixture(autouse=True)
def _strict():
    """The losses here promote dtypes, as users' losses do."""


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_small_batches_accumulated_are_a_large_batch(executor):
    """With a schedule in updates, a plateau's scale and Adam: as one run on batches of four times the rows."""
    schedule = optax.linear_schedule(0.1, 0.01, 8)
    data = _runs.make_data(64)
    given = {"data": data, "shuffle": False, "learning_rate": schedule, "validation_data": None}
    small = _runs.fit(executor, batch_size=4, epochs=4, callbacks=[jc.callbacks.GradientAccumulation(4)], **given)
    large = _runs.fit(executor, batch_size=16, epochs=4, callbacks=[], **given)
    for name in ("w", "b"):
        np.testing.assert_allclose(small.params[name], large.params[name], rtol=2e-4)
    np.testing.assert_allclose(small.history["base_learning_rate"], large.history["base_learning_rate"], rtol=1e-6)
    assert small.history["updates"].tolist() == [4, 8, 12, 16]
    assert int(small.state.step) == 4 * int(large.state.step)


def test_the_number_of_steps_may_follow_the_updates():
    result = _runs.fit(
        data=_runs.make_data(64),
        batch_size=8,
        epochs=3,
        callbacks=[jc.callbacks.GradientAccumulation(lambda updates: jnp.where(updates < 4, 2, 4))],
    )
    assert result.history["updates"].tolist() == [4, 6, 8]


def test_callbacks_scale_the_rate_of_the_accumulated_update():
    result = _runs.fit(
        epochs=3,
        callbacks=[jc.callbacks.GradientAccumulation(5), jc.LearningRateScheduler(lambda epoch, lr: lr * 0.5)],
        validation_data=None,
    )
    rates = result.history["learning_rate"]
    np.testing.assert_allclose(rates, 0.05 * np.asarray([0.5, 0.25, 0.125]), rtol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        jc.callbacks.GradientAccumulation(0)
    state = jc.TrainState.create(params=jax.numpy.zeros(()))
    with pytest.raises(ValueError, match="needs a train state with an optimizer"):
        jc.callbacks.GradientAccumulation(2).setup(state)


def test_a_second_run_accumulates_as_the_first_one():
    loop = jc.Loop(jc.Step(_runs.loss_fn), callbacks=[jc.callbacks.GradientAccumulation(2)])
    given = {"batch_size": 16, "epochs": 1, "verbose": 0, "execution": jc.Execution(drop_remainder=True)}
    first = loop.run(_runs.make_state(), _runs.make_data(64), **given)
    second = loop.run(first.state, _runs.make_data(64), **given)
    assert second.history["updates"].tolist() == [4]
