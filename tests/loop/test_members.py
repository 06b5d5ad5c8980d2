"""A population of runs in one program: each member does what it would do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop._runs import control, make_driver, make_state

import jaxcb as jc
from jaxcb._src.writers.history import HistoryWriter

SEEDS = (0, 1, 2)
RATES = (0.05, 0.2, 0.02)


def keys_of(seeds):
    return jnp.stack([jax.random.key(100 + s) for s in seeds])


def stacked(values):
    return jax.tree.map(lambda *x: jnp.stack(x), *values)


@pytest.fixture(scope="module")
def single_runs():
    out = []
    for seed, rate in zip(SEEDS, RATES, strict=True):
        state = jc.apply(jc.actions.SetLearningRate(rate), make_state(seed))
        driver = make_driver(control(), state, keys=keys_of((seed,))[0])
        driver.train()
        out.append(driver)
    return out


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_each_member_does_what_it_would_do_alone(executor, single_runs):
    state = stacked(
        [jc.apply(jc.actions.SetLearningRate(rate), make_state(seed)) for seed, rate in zip(SEEDS, RATES, strict=True)]
    )
    driver = make_driver(control(), state, executor=executor, members=len(SEEDS), keys=keys_of(SEEDS))
    driver.train()
    population = driver.device.live.carry()
    history = driver.writer(HistoryWriter).history
    assert len({single.results.stops[0].epoch for single in single_runs}) > 1, (
        "the members should stop at different epochs"
    )
    for member, single in enumerate(single_runs):
        alone = single.device.live.carry()
        own = [s for s in driver.results.stops if s.member == member]
        assert [(s.owner, s.epoch, s.step, s.reason) for s in own] == [
            (s.owner, s.epoch, s.step, s.reason) for s in single.results.stops
        ]
        for x, y in zip(jax.tree.leaves(population.train.params), jax.tree.leaves(alone.train.params), strict=True):
            np.testing.assert_allclose(x[member], y, rtol=1e-4, atol=1e-5)
        assert int(population.train.step[member]) == int(alone.train.step)
        waits = population.callbacks["EarlyStopping"].wait[member], alone.callbacks["EarlyStopping"].wait
        assert int(waits[0]) == int(waits[1])
        curve = single.writer(HistoryWriter).history["val_loss"]
        np.testing.assert_allclose(history["val_loss"][: len(curve), member], curve, rtol=1e-4)


def test_the_run_ends_when_all_members_have_stopped(single_runs):
    state = stacked(
        [jc.apply(jc.actions.SetLearningRate(rate), make_state(seed)) for seed, rate in zip(SEEDS, RATES, strict=True)]
    )
    driver = make_driver(control(), state, members=len(SEEDS), keys=keys_of(SEEDS))
    driver.train()
    assert int(driver.device.live.carry().epoch) == 1 + max(s.epoch for s in driver.results.stops)


def test_a_member_stopped_in_mid_epoch_is_frozen_there():
    class StopAt(jc.Callback):
        at: int

        def on_batch_end(self, state, metrics):
            return state, jc.actions.Stop(metrics.step >= self.at, "far enough")

    callbacks = [StopAt(jnp.array([3, 7, 100]))]
    state = stacked([make_state(0)] * 3)
    driver = make_driver(callbacks, state, members=3, epochs=2)
    driver.train()
    alone = make_driver([StopAt(7)], make_state(0), epochs=2)
    alone.train()
    carry = driver.device.live.carry()
    assert carry.train.step.tolist() == [3, 7, 10]
    np.testing.assert_allclose(carry.train.params["w"][1], alone.device.live.carry().train.params["w"], rtol=1e-5)


def test_a_swept_number_gives_each_member_its_own_patience():
    patience = jnp.array([1, 4], jnp.int32)
    one_of_them = jc.EarlyStopping(patience=1, min_delta=50.0)
    callbacks = [jax.tree.map(lambda x: patience if x == 1 else x, one_of_them)]
    driver = make_driver(callbacks, stacked([make_state(0)] * 2), members=2, epochs=20)
    driver.train()
    single = []
    for p in (1, 4):
        one = make_driver([jc.EarlyStopping(patience=p, min_delta=50.0)], make_state(0), epochs=20)
        one.train()
        single.append(one.results.stops[0].epoch)
    assert [next(s.epoch for s in driver.results.stops if s.member == m) for m in (0, 1)] == single
    assert single == [1, 4]


def test_a_member_that_diverges_harms_no_other(single_runs):
    bad = make_state(1)
    bad = bad.replace(params={**bad.params, "w": bad.params["w"] * jnp.nan})
    state = stacked([jc.apply(jc.actions.SetLearningRate(RATES[0]), make_state(SEEDS[0])), bad])
    driver = make_driver(control(), state, members=2, keys=keys_of((SEEDS[0], 1)))
    driver.train()
    carry = driver.device.live.carry()
    alone = single_runs[0].device.live.carry()
    np.testing.assert_allclose(carry.train.params["w"][0], alone.train.params["w"], rtol=1e-4, atol=1e-5)
    assert next((s.owner, s.step) for s in driver.results.stops if s.member == 1) == ("TerminateOnNaN", 1)
