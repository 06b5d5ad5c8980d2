"""The means that a run reports, exact: epochs, validations, `evaluate`, members, in both executors."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
SIZES = [(41, 41), (41, 7), (100, 41), (9, 3)]  # rows, and rows of a batch; the last one is smaller in some
CONSTANTS, HALVES = 5, 3  # columns of the data
NAMES = [f"c{i}" for i in range(CONSTANTS + HALVES)]
VALUES = st.floats(2.0**-90, 2.0**90, width=32) | st.sampled_from(np.float32([0.1, -0.3, 1 / 3, 5e20, 0.0]).tolist())
constants = st.lists(VALUES, min_size=CONSTANTS - 1, max_size=CONSTANTS - 1).map(lambda values: [1.0, *values])


def loss_fn(params, batch):
    """The loss moves nothing, and the metrics are the numbers of the batch's first row."""
    return 0.0 * params["w"], {name: batch[0, i] for i, name in enumerate(NAMES)}


def make_rows(values, count, seed):
    halves = np.random.default_rng(seed).integers(-1000, 1000, (count, HALVES)) / 2
    return np.concatenate([np.tile(values, (count, 1)), halves], axis=1).astype(np.float32)


def cut(rows, size):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def exact(rows, size):
    """The mean of what the batches report, rounded once, by name."""
    sums = [sum(Fraction(float(batch[0, i])) * len(batch) for batch in cut(rows, size)) for i in range(len(NAMES))]
    return {name: float(np.float32(float(total / len(rows)))) for name, total in zip(NAMES, sums, strict=True)}


def fit(rows, size, executor, **more):
    given = {"optimizer": optax.sgd(0.0), "batch_size": size, "shuffle": False, "executor": executor, "verbose": 0}
    return jc.fit({"w": jnp.zeros(())}, loss_fn, rows, **grouped(**(given | more)))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("count", "size"), SIZES)
def test_means_of_constants_and_halves(count, size, executor):
    @settings(max_examples=3)
    @given(constants, st.integers(0, 2**32 - 1))
    def holds(values, seed):
        rows = make_rows(values, count, seed)
        sets = {"resident": rows, "streamed": cut(rows, size)}
        history = fit(rows, size, executor, epochs=2, validation_data=sets).history
        for name, mean in exact(rows, size).items():
            for prefix in ("", "val_resident_", "val_streamed_"):
                assert history[prefix + name].tolist() == [mean] * 2, prefix + name
        assert history["c0"].tolist() == [1.0] * 2

    holds()


@pytest.mark.parametrize(("count", "size"), SIZES)
def test_evaluate_of_constants_and_halves(count, size):
    @settings(max_examples=5)
    @given(constants, st.integers(0, 2**32 - 1))
    def holds(values, seed):
        rows = make_rows(values, count, seed)
        expected = {"loss": 0.0} | exact(rows, size)
        assert jc.evaluate({"w": jnp.zeros(())}, loss_fn, rows, batch_size=size) == expected
        assert jc.evaluate({"w": jnp.zeros(())}, loss_fn, cut(rows, size)) == expected

    holds()


@pytest.mark.parametrize(("executor", "strategy"), [("looped", "vmap"), ("looped", "map"), ("stepped", "vmap")])
def test_means_of_members(executor, strategy):
    values, rows = np.float32([0.1, -0.3, 1 / 3, 5e20, 1.0]), np.ones((41, 1), np.float32)
    result = jc.sweep(
        lambda seed: {"w": jnp.asarray(values[seed])},
        lambda params, batch: (0.0 * params["w"], {"own": params["w"]}),
        rows,
        over={"seed": range(len(values))},
        optimizer=optax.sgd(0.0),
        epochs=2,
        batch_size=7,
        validation_data=rows,
        strategy=strategy,
        verbose=0,
        execution=jc.Execution(executor=executor),
    )
    for name in ("own", "val_own"):
        np.testing.assert_array_equal(result.history[name], np.stack([values] * 2))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_threshold_of_exactly_one_is_reached(executor):
    rows = make_rows([1.0] * CONSTANTS, 41, seed=0)
    stop = jc.EarlyStopping("val_c0", mode="max", patience=9, stopping_threshold=1.0)
    assert fit(rows, 41, executor, epochs=3, validation_data=rows, callbacks=[stop]).stopped_epoch == 0
