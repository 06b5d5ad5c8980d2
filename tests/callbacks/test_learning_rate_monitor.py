"""LearningRateMonitor: the rate of compiled runs, read back by TensorBoard's own reader."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcb as jc


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax promotes dtypes. The laws look at the callback's own arithmetic."""


def curve(directory, tag="learning_rate"):
    reader = EventAccumulator(str(directory / "logs" / "train"), size_guidance={"scalars": 0})
    reader.Reload()
    points = reader.Scalars(tag)
    return [p.step for p in points], np.array([p.value for p in points], np.float32)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_point_an_epoch_is_the_rate_of_its_last_update(executor, tmp_path):
    schedule = optax.linear_schedule(0.1, 0.0, 20)
    cut = jc.make_callback(on_epoch_end=lambda state, m: (state, jc.actions.ScaleLearningRate(0.5, when=m.epoch == 1)))
    fit(
        executor,
        epochs=3,
        learning_rate=schedule,
        callbacks=[jc.callbacks.LearningRateMonitor(), cut],
        run_dir=tmp_path,
    )
    steps, rates = curve(tmp_path)
    assert steps == [5, 10, 15]
    np.testing.assert_allclose(rates, [schedule(4), schedule(9), 0.5 * schedule(14)], rtol=1e-6)


def test_a_point_every_n_steps(tmp_path):
    schedule = optax.linear_schedule(0.1, 0.0, 20)
    fit(epochs=2, learning_rate=schedule, callbacks=[jc.callbacks.LearningRateMonitor(4)], run_dir=tmp_path)
    steps, rates = curve(tmp_path)
    assert steps == [4, 8]
    np.testing.assert_allclose(rates, [schedule(3), schedule(7)], rtol=1e-6)


def test_of_a_ready_made_optimizer_the_factor_is_shown(tmp_path):
    cut = jc.make_callback(on_epoch_begin=lambda state, m: (state, jc.actions.ScaleLearningRate(0.5)))
    callbacks = [jc.callbacks.LearningRateMonitor(), cut]
    fit(epochs=2, optimizer=optax.adam(0.1), learning_rate=None, callbacks=callbacks, run_dir=tmp_path)
    assert curve(tmp_path, "lr_scale")[1].tolist() == [0.5, 0.25]


def test_an_optimizer_without_a_rate_is_an_error_before_the_first_step():
    state = jc.TrainState.create(params=jnp.zeros(3), tx=optax.sgd(0.1))
    loop = jc.Loop(jc.Step(lambda w, batch: jnp.mean(batch @ w)), callbacks=[jc.callbacks.LearningRateMonitor()])
    with pytest.raises(jc.errors.MissingMetricError, match=r"no metric 'learning_rate' here.*adjustable_lr"):
        loop.run(state, jnp.ones((4, 3)), epochs=1, verbose=0)


@pytest.mark.parametrize(("every", "hook"), [("epoch", "on_epoch_end"), (5, "on_batch_end")])
def test_it_has_one_hook(every, hook):
    assert jc.callbacks.LearningRateMonitor(every).hooks() == {hook}


@pytest.mark.parametrize(("every", "says"), [("step", "'epoch' or a number of steps, got 'step'"), (0, "got 0")])
def test_arguments_are_checked(every, says):
    with pytest.raises(ValueError, match=says):
        jc.callbacks.LearningRateMonitor(every)
