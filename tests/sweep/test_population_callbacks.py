"""Callbacks that see a whole population: their laws, and what they do to a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit, loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb import testing

RATES = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0]


def sweep(callbacks, over=None, **more):
    given = {
        "optimizer": optax.sgd,
        "epochs": 9,
        "batch_size": 16,
        "validation_data": make_data(20, seed=1),
        "strategy": "vmap",
        "repack": True,
        "verbose": 0,
    }
    over = {"optimizer.learning_rate": RATES} if over is None else over
    return jc.sweep(make_params, loss_fn, make_data(), over=over, callbacks=callbacks, **given | more)


class Selfish(jc.PopulationCallback):
    """Treats the first row better than the others."""

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(
            metrics.alive & (jnp.arange(len(metrics.alive)) > 0) & (metrics["loss"] > 0.5), "not first"
        )


class LooksAtTheDead(jc.PopulationCallback):
    """Compares with members that train no more."""

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(
            metrics.alive & (metrics["loss"] > jnp.nanmean(metrics["loss"])), "worse than the mean"
        )


class StopsTheDead(jc.PopulationCallback):
    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics["loss"] > 0.5, "too high")


@pytest.mark.parametrize(
    ("callback", "law"), [(Selfish(), "equal treatment"), (LooksAtTheDead(), "packing"), (StopsTheDead(), "packing")]
)
def test_each_law_finds_the_callback_that_breaks_it(callback, law):
    with pytest.raises(AssertionError, match=f"The law of {law} is broken by {type(callback).__name__}"):
        testing.check_callback(callback)


def test_halving_stops_the_worse_part_at_each_rung():
    result = sweep([jc.callbacks.SuccessiveHalving(first=1, factor=2)])
    alone = sweep([])
    curves = np.stack([m.history["val_loss"] for m in alone], axis=1)
    left = list(range(8))
    ends = {}
    for rung in (1, 2, 4, 8):
        order = sorted(left, key=lambda i: curves[rung - 1, i])
        left = order[: -(-len(left) // 2)]
        ends |= dict.fromkeys(set(order) - set(left), rung)
    assert result.table()["epochs"] == [ends.get(i, 9) for i in range(8)]
    assert result.parts[0].sizes[-1] == 1, "members that have stopped leave the program"
    winner = result.member(left[0])
    assert winner.stop_reason is None
    np.testing.assert_allclose(winner.history["val_loss"], curves[:, left[0]], rtol=1e-4)


def test_training_a_population_copies_the_best_and_perturbs(monkeypatch):
    pbt = jc.callbacks.PopulationBasedTraining(every=3, fraction=0.25, factors=(0.5, 2.0))
    result = sweep([pbt], epochs=4)
    before = np.stack([m.history["val_loss"][:3] for m in result], axis=1)
    order = np.argsort(before[2])
    for worst, best in zip(order[::-1][:2], order[:2], strict=True):
        copy, source = result.member(int(worst)), result.member(int(best))
        rate = copy.history["learning_rate"][3] / source.history["learning_rate"][3]
        assert any(np.isclose(rate, f) for f in (0.5, 2.0)), "the rate is the best one's, perturbed"
        # they train on from the same weights, on the same batches
        assert copy.history["val_loss"][3] < before[2, worst]
    for i in order[2:-2]:
        own = result.member(int(i))
        np.testing.assert_allclose(own.history["learning_rate"], RATES[i], rtol=1e-5)


def test_an_exchange_is_the_same_in_any_strategy():
    points = [
        {"optimizer.weight_decay": d, "controls.beta": b} for d, b in ((0.0, 1.0), (0.1, 0.5), (1.0, 2.0), (9.0, 1.0))
    ]
    pbt = jc.callbacks.PopulationBasedTraining(
        every=1, fraction=0.5, numbers=("optimizer.weight_decay", "controls.beta")
    )
    common = {"over": points, "controls": {"beta": 1.0}, "optimizer": optax.adamw, "learning_rate": 0.05, "epochs": 4}
    one, other = (sweep([pbt], strategy=s, **common) for s in ("vmap", "map"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.history["val_loss"], b.history["val_loss"], rtol=1e-4)
        np.testing.assert_allclose(a.history["beta"], b.history["beta"], rtol=1e-6)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), a.params, b.params)


@pytest.mark.long
def test_the_median_stops_who_is_worse():
    result = sweep([jc.callbacks.MedianStopping(warmup=2)])
    epochs = result.table()["epochs"]
    assert epochs[-1] == 3, "a member that learns nothing ends as soon as it may"
    assert result.best().stop_reason is None
    assert any("median" in (m.stop_reason or "") for m in result)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7, 1.7])
def test_members_that_are_all_the_same_are_not_worse_than_their_median(value):
    """Whatever rounding does to the mean of what they have reported."""
    callback, members = jc.callbacks.MedianStopping(warmup=0), 4
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape)), callback.init())
    for epoch in range(50):
        metrics = jc.Metrics({"val_loss": jnp.full(members, value, jnp.float32)}, step=epoch, epoch=epoch)
        state, stop = callback.on_epoch_end(state, metrics.replace(alive=jnp.ones(members, bool)))
        assert not stop.when.any(), epoch


def test_a_run_by_itself_refuses_them():
    with pytest.raises(ValueError, match="SuccessiveHalving acts on a population: pass it to"):
        fit(callbacks=[jc.callbacks.SuccessiveHalving()])
    with pytest.raises(ValueError, match="SuccessiveHalving"):
        jc.replay([jc.callbacks.SuccessiveHalving()], {"val_loss": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.callbacks.SuccessiveHalving(factor=1), "above 1"),
        (lambda: jc.callbacks.SuccessiveHalving(first=0), "at least 1"),
        (lambda: jc.callbacks.PopulationBasedTraining(fraction=0.6), "at most 0.5"),
        (lambda: jc.callbacks.PopulationBasedTraining(numbers=("seed",)), "paths such as"),
        (lambda: jc.callbacks.PopulationBasedTraining(factors=()), "a tuple of at least one number"),
        (lambda: jc.callbacks.MedianStopping(least=1), "at least 2"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_number_that_does_not_live_in_the_optimizer():
    with pytest.raises(ValueError, match=r"scales the optimizer's 'weight_decay', which is not kept"):
        sweep([jc.callbacks.PopulationBasedTraining(numbers=("optimizer.weight_decay",))], epochs=1)
