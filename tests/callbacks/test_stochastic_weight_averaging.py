"""StochasticWeightAveraging: the equal average of epochs' ends, and the rate that goes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit

import jaxcb as jc


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax and flax promote dtypes. The laws look at the callback's own arithmetic."""


def mean_of(weights):
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *weights)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def run(callback, executor="looped", epochs=6, stop=None, **more):
    """The result, and the weights at the end of each epoch."""
    ends = []

    def note(run):
        ends.append(jax.device_get(run.state.params))

    def end(state, metrics):
        return state, (jc.actions.Call(note), jc.actions.Stop(False if stop is None else metrics.epoch == stop))

    result = fit(executor, epochs=epochs, callbacks=[callback, jc.make_callback(on_epoch_end=end)], **more)
    return result, ends


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize(
    ("start", "every", "epochs"), [(2, 1, [2, 3, 4, 5]), (1, 2, [1, 3, 5]), (0, 5, [0, 5]), (5, 1, [5])]
)
def test_ends_with_the_equal_average_of_the_epochs_due(executor, start, every, epochs):
    result, ends = run(jc.callbacks.StochasticWeightAveraging(start, every=every), executor)
    assert_close(result.params, mean_of([ends[epoch] for epoch in epochs]))
    assert int(result.callback_states["StochasticWeightAveraging"].count) == len(epochs)


def test_ends_averaged_when_it_is_stopped_early():
    result, ends = run(jc.callbacks.StochasticWeightAveraging(1), stop=3)
    assert len(ends) == 4
    assert_close(result.params, mean_of(ends[1:]))


def test_training_and_validation_go_on_with_the_raw_weights():
    plain, raw = run(jc.make_callback())
    result, ends = run(jc.callbacks.StochasticWeightAveraging(1))
    jax.tree.map(np.testing.assert_array_equal, ends, raw)
    np.testing.assert_array_equal(result.history["val_loss"], plain.history["val_loss"])


@pytest.mark.filterwarnings("ignore:.*StochasticWeightAveraging does nothing in this run:RuntimeWarning")
def test_a_run_that_ends_before_keeps_its_weights():
    result, ends = run(jc.callbacks.StochasticWeightAveraging(6))
    jax.tree.map(np.testing.assert_array_equal, result.params, ends[-1])


def test_the_rate_is_set_from_the_first_epoch_on_and_factors_still_multiply():
    plateau = jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    chain = jc.chain(plateau, jc.callbacks.StochasticWeightAveraging(2, learning_rate=0.25))
    rates = fit(epochs=5, callbacks=[chain]).history["learning_rate"]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.125, 0.0625, 0.03125], rtol=1e-6)


def test_without_a_rate_of_its_own_it_leaves_it():
    assert "on_epoch_begin" not in jc.callbacks.StochasticWeightAveraging(1).hooks()
    fit(epochs=1, optimizer=optax.adam(0.1), learning_rate=None, callbacks=[jc.callbacks.StochasticWeightAveraging(0)])


def test_a_rate_needs_the_exact_form():
    swa = jc.callbacks.StochasticWeightAveraging(0, learning_rate=0.1)
    with pytest.raises(ValueError, match="StochasticWeightAveraging needs the learning rate itself"):
        fit(epochs=1, optimizer=optax.adam(0.1), learning_rate=None, callbacks=[swa])


@pytest.mark.parametrize(("of", "mean"), [("params", 4.0), ("model", 2.5)])
def test_of_model_averages_the_statistics(of, mean):
    chain = jc.chain(jc.callbacks.StochasticWeightAveraging(0, of=of))
    train = jc.TrainState.create(params=jnp.float32(0), model_state=jnp.float32(0), callbacks=chain)
    state = chain.init()
    for epoch in range(4):
        train = train.replace(params=jnp.float32(epoch), model_state=jnp.float32(epoch + 1))
        state, actions = chain.on_epoch_end(state, jc.Metrics({}, epoch=epoch))
        train = jc.apply(actions, train)
    train = jc.apply(chain.on_train_end(state, jc.Metrics({}, epoch=3))[1], train)
    np.testing.assert_allclose([train.params, train.model_state], [1.5, mean], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"start_epoch": -1}, "StochasticWeightAveraging: start_epoch must be a whole number of at least 0, got -1"),
        ({"start_epoch": 0.5}, "start_epoch must be a whole number"),
        ({"start_epoch": 1, "every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"start_epoch": 1, "learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"start_epoch": 1, "of": "best"}, "of must be one of 'params', 'model', got 'best'"),
    ],
)
def test_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        jc.callbacks.StochasticWeightAveraging(**arguments)
