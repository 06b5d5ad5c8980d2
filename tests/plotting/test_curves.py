"""`Result.plot`: what is drawn, and where."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit, make_data

import jaxcb as jc

WARMUP = optax.warmup_cosine_decay_schedule(0.0, 0.1, 6, 20)


def rate_axes(figure):
    return [axis for axis in figure.axes if axis.get_ylabel() == "learning rate"]


def test_a_schedule_is_drawn_at_each_step_so_that_a_warm_up_within_an_epoch_is_seen():
    result = fit(epochs=2, learning_rate=WARMUP, callbacks=[], data=make_data(160))  # 10 steps an epoch
    (axis,) = rate_axes(result.plot())
    (line,) = axis.lines
    at, rates = line.get_xdata(), line.get_ydata()
    assert len(at) == 20
    np.testing.assert_allclose(at, np.arange(1, 21) / 10)
    np.testing.assert_allclose(rates, WARMUP(np.arange(20)), rtol=1e-5, atol=1e-9)
    assert rates.argmax() == 6


def test_what_callbacks_have_scaled_is_drawn_beside_the_schedule():
    plateau = jc.ReduceLROnPlateau("loss", patience=1, min_delta=1e9, factor=0.5)
    result = fit(epochs=4, learning_rate=WARMUP, callbacks=[plateau])
    (axis,) = rate_axes(result.plot())
    alone, force, *_ = axis.lines
    assert (alone.get_label(), force.get_label()) == ("schedule alone", "in force")
    np.testing.assert_allclose(force.get_ydata()[[4, 9, 14, 19]], result.history["learning_rate"], rtol=1e-5)


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("learning_rate", "callbacks", "drawn"),
    [
        (0.05, [], False),  # constant
        (0.05, [jc.LearningRateScheduler(lambda epoch, rate: rate * 0.5)], True),
        (WARMUP, [jc.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))], True),  # the schedule is replaced
        (WARMUP, [jc.callbacks.GradientAccumulation(5)], True),  # it counts updates, not steps
    ],
)
def test_a_constant_rate_is_left_out_and_one_that_callbacks_set_is_that_of_the_rows(learning_rate, callbacks, drawn):
    result = fit(epochs=3, learning_rate=learning_rate, callbacks=callbacks)
    axes = rate_axes(result.plot())
    assert bool(axes) == drawn
    for axis in axes:
        np.testing.assert_array_equal(axis.lines[-1].get_ydata(), result.history["learning_rate"])


def test_names_choose_what_is_drawn_and_in_which_order(tmp_path):
    result = fit(epochs=3, callbacks=[])
    figure = result.plot(tmp_path / "a.png", names=["val_mae", "loss"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["mae", "loss"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 1]
    assert [axis.get_ylabel() for axis in result.plot(names="learning_rate").axes] == ["learning rate"]
    for names, words in (
        (["los"], "names has 'los', expected names of recorded scalars: .* Did you mean 'loss'"),
        ([], "names is empty"),
        (3, "names has 3"),
        ([jnp.zeros(2)], "names has Array"),
    ):
        with pytest.raises(ValueError, match=words):
            result.plot(names=names)


def test_a_run_without_rows_is_an_empty_plot():
    result = jc.fit(
        jnp.zeros(()), lambda w, x: jnp.mean(w * x), jnp.ones(4), optimizer=optax.sgd(0.1), steps=1, verbose=0,
        batch_size=1,
    )  # fmt: skip
    assert result.plot().axes
