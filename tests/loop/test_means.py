"""The means that a run reports, exact: epochs, validations, `evaluate`, members, in both executors."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
SIZES = [(41, 41), (41, 7), (100, 41), (9, 3)]  # rows, and rows of a batch; the last one is smaller in some
VALUES = st.floats(2.0**-90, 2.0**90, width=32) | st.sampled_from([1.0, 0.1, -0.3, 1 / 3, 5e20])


def loss_fn(params, batch):
    """The loss moves nothing, and the metric is the batch's first value."""
    return 0.0 * params["w"], {"one": jnp.float32(1.0), "first": batch[0, 0]}


def fit(rows, size, executor, *, streamed=False, **more):
    val = [rows[i : i + size] for i in range(0, len(rows), size)] if streamed else rows
    return jc.fit(
        {"w": jnp.zeros(())},
        loss_fn,
        rows,
        optimizer=optax.sgd(0.0),
        epochs=2,
        batch_size=size,
        shuffle=False,
        validation_data=val,
        executor=executor,
        verbose=0,
        **more,
    )


def exact(rows, size):
    """The mean of what the batches report, rounded once."""
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return np.float32(float(sum(Fraction(float(b[0, 0])) * len(b) for b in batches) / len(rows)))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize(("count", "size"), SIZES)
def test_means_of_constants_and_halves(count, size, streamed, executor):
    @given(VALUES, st.integers(0, 2**32 - 1))
    def holds(value, seed):
        halves = np.random.default_rng(seed).integers(-1000, 1000, (count, 1)).astype(np.float32) / 2
        for rows in (np.full((count, 1), value, np.float32), halves):
            history = fit(rows, size, executor, streamed=streamed).history
            for name in ("one", "val_one"):
                assert history[name].tolist() == [1.0] * 2
            for name in ("first", "val_first"):
                assert history[name].tolist() == [exact(rows, size)] * 2

    holds()


@pytest.mark.parametrize(("count", "size"), SIZES)
def test_evaluate_of_constants_and_halves(count, size):
    @given(VALUES)
    def holds(value):
        halves = np.arange(count, dtype=np.float32)[:, None] / 2
        for rows in (np.full((count, 1), value, np.float32), halves):
            got = jc.evaluate({"w": jnp.zeros(())}, loss_fn, rows, batch_size=size)
            assert (got["one"], got["first"]) == (1.0, exact(rows, size))

    holds()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_means_of_members(executor, strategy):
    values = np.float32([0.1, -0.3, 1 / 3, 5e20, 1.0])
    result = jc.sweep(
        lambda seed: {"w": jnp.asarray(values)[seed]},
        lambda params, batch: (0.0 * params["w"], {"own": params["w"]}),
        np.ones((41, 1), np.float32),
        over={"seed": list(range(len(values)))},
        optimizer=optax.sgd(0.0),
        epochs=2,
        batch_size=7,
        validation_data=np.ones((41, 1), np.float32),
        executor=executor,
        strategy=strategy,
        verbose=0,
    )
    for name in ("own", "val_own"):
        np.testing.assert_array_equal(result.history[name], np.stack([values] * 2))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_threshold_of_exactly_one_is_reached(executor):
    stop = jc.EarlyStopping("val_one", patience=9, stopping_threshold=1.0)
    assert fit(np.ones((41, 1), np.float32), 41, executor, callbacks=[stop]).stopped_epoch == 0
