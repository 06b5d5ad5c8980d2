"""`GradientAccumulation`."""

import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
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


BY_EPOCH = {0: 2, 2: 3, 4: 1}


def squares(w, x):
    return jnp.mean((w - x) ** 2)


def by_hand(steps_of_epoch, epochs, epoch_len, data):
    """The weights after a loop by hand, in which a number holds from the first update on that begins in its epoch."""
    tx, w, waiting = optax.adam(0.1), jnp.zeros(()), []
    state, updates, number = tx.init(w), [], 0
    for epoch in range(epochs):
        for batch in range(epoch_len):
            if not waiting:
                number = steps_of_epoch(epoch)
            waiting.append(jax.grad(squares)(w, data[batch : batch + 1]))
            if len(waiting) == number:
                change, state = tx.update(jnp.mean(jnp.stack(waiting)), state, w)
                w, waiting = w + change, []
                updates.append(epoch)
    return float(w), len(updates), len(waiting)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("steps", "executor"), [(BY_EPOCH, "looped"), ({1: 4}, "stepped"), ({0: 7, 1: 2}, "looped")])
def test_the_number_of_steps_may_follow_the_epochs(steps, executor):
    data = jnp.arange(5.0)
    given = {"optimizer": optax.adam, "learning_rate": 0.1, "epochs": 6, "batch_size": 1, "shuffle": False}
    accumulate = jc.callbacks.GradientAccumulation(steps)
    expected, updates, left = by_hand(accumulate.steps_in, 6, 5, data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = jc.fit(
            jnp.zeros(()), squares, data, verbose=0, callbacks=[accumulate],
            execution=jc.Execution(executor=executor), **given,
        )  # fmt: skip
    np.testing.assert_allclose(float(result.params), expected, rtol=1e-5)
    assert result.history["updates"][-1] == updates
    assert accumulate.updates_in(30, 5) == (updates, 30 - left)
    assert [f"the gradients of the last {left} are" in str(w.message) for w in seen] == ([True] if left else [])


@settings(max_examples=30)
@given(
    steps=st.dictionaries(st.integers(0, 6), st.integers(1, 9), min_size=1, max_size=4),
    epoch_len=st.integers(1, 7),
    total=st.integers(1, 60),
)
def test_complete_updates_are_counted_as_one_by_one(steps, epoch_len, total):
    accumulate = jc.callbacks.GradientAccumulation(steps)
    updates = used = 0
    while used + accumulate.steps_in(used // epoch_len) <= total:
        used += accumulate.steps_in(used // epoch_len)
        updates += 1
    assert accumulate.updates_in(total, epoch_len) == (updates, used)


def test_members_and_a_resumed_run_follow_the_epochs(tmp_path):
    data, given = jnp.arange(6.0), {"batch_size": 1, "shuffle": False, "verbose": 0}
    callbacks = [jc.callbacks.GradientAccumulation({0: 1, 1: 2, 2: 3})]
    how = {"optimizer": optax.adam, "learning_rate": 0.1, "callbacks": callbacks, **given}
    whole = jc.fit(jnp.zeros(()), squares, data, epochs=4, **how)
    jc.fit(jnp.zeros(()), squares, data, epochs=2, run_dir=tmp_path, **how)
    resumed = jc.fit(jnp.zeros(()), squares, data, epochs=4, run_dir=tmp_path, resume=True, **how)
    assert float(resumed.params) == float(whole.params)
    members = jc.sweep(
        lambda seed: jnp.zeros(()), squares, data, epochs=4, over={"optimizer.learning_rate": [0.1, 0.2]}, **how
    )
    np.testing.assert_allclose(float(members.member(0).params), float(whole.params), rtol=1e-6)
    assert members.member(1).history["updates"].tolist() == whole.history["updates"].tolist() == [6, 9, 11, 13]


def test_the_end_says_what_could_not_be_known_before(capsys):
    how = {"optimizer": optax.sgd(0.1), "batch_size": 1, "epochs": 1}
    with pytest.warns(RuntimeWarning, match="the gradients of the last 2 steps were accumulated"):
        jc.fit(jnp.zeros(()), squares, jnp.ones(5), verbose=0, **how,
               callbacks=[jc.callbacks.GradientAccumulation(lambda updates: 3)])  # fmt: skip
    with pytest.warns(RuntimeWarning, match="the gradients of the last 1 steps were accumulated"):
        jc.fit(jnp.zeros(()), squares, jnp.ones(5), batch_size=1, epochs=1, verbose=0,
               optimizer=optax.MultiSteps(optax.sgd(0.1), 2))  # fmt: skip
    stop = jc.TerminateOnNaN()
    jc.fit(jnp.zeros(()), squares, jnp.array([1.0, 1, jnp.nan, 1]), shuffle=False, verbose=2, **how,
           callbacks=[jc.callbacks.GradientAccumulation(2), stop])  # fmt: skip
    assert "the gradients of the last 1 steps were accumulated" in capsys.readouterr().out


def test_bad_epochs_are_named():
    for steps, words in (
        ({}, "steps is an empty dict"),
        ({-1: 2}, "each epoch of steps must be a whole number of at least 0, got -1"),
        ({0: 0}, "steps from epoch 0 on must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            jc.callbacks.GradientAccumulation(steps)
    with pytest.raises(ValueError, match="sets the steps of an update, which this optimizer has not"):
        jc.apply(jc.actions.SetAccumulation(2), jc.TrainState.create(params={}, tx=optax.sgd(0.1)))
