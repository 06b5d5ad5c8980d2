"""The learning-rate range test."""

import numpy as np
import optax
import pytest
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.sweep.lr_find import _steepest


def test_each_loss_is_that_of_a_run_with_that_rate(tmp_path):
    found = jc.lr_find(
        make_params, loss_fn, make_data(), optimizer=optax.sgd, low=1e-4, high=100.0, rates=7, steps=12, batch_size=16
    )
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 100.0, 7))
    losses = []
    jc.fit(
        make_params(0),
        loss_fn,
        make_data(),
        optimizer=optax.sgd,
        learning_rate=float(found.rates[3]),
        steps=12,
        batch_size=16,
        callbacks=[jc.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))],
        verbose=0,
    )
    weights = 0.9 ** np.arange(len(losses))[::-1]
    np.testing.assert_allclose(found.losses[3], np.average(losses, weights=weights), rtol=1e-4)
    assert found.losses[-1] > found.losses[0] or not np.isfinite(found.losses[-1]), "the largest one diverges"
    assert found.suggestion in found.rates
    found.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 0


def test_a_loss_that_stays_is_told_as_it_is():
    found = jc.lr_find(
        {"w": np.zeros((), np.float32)},
        lambda params, batch: 0.0 * params["w"] + np.float32(0.1),
        np.ones((8, 1), np.float32),
        optimizer=optax.sgd,
        rates=3,
        steps=9,
        batch_size=4,
    )
    assert found.losses.tolist() == [np.float32(0.1)] * 3
    assert found.suggestion is None


def test_the_suggestion_is_where_the_loss_falls_most():
    rates = np.geomspace(1e-4, 1e2, 7)
    assert _steepest(rates, np.float32([5, 4.9, 4.5, 2, 1, 3, np.nan])) == rates[3]
    assert _steepest(rates, np.float32([1, 2, 3, 4, 5, 6, np.inf])) is None
    assert _steepest(rates, np.full(7, np.nan, np.float32)) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none(low, high):
    with pytest.raises(ValueError, match="low"):
        jc.lr_find(make_params, loss_fn, make_data(), optimizer=optax.sgd, low=low, high=high)
