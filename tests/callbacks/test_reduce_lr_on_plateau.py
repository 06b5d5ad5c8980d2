"""ReduceLROnPlateau: when it cuts, how long it waits, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

NAN = float("nan")


@pytest.mark.parametrize(("patience", "cuts"), [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_patience_is_not_off_by_one(play, patience, cuts):
    callback = jc.ReduceLROnPlateau(patience=patience)
    assert play(callback, val_loss=[1.0] * 5).when(jc.actions.ScaleLearningRate) == cuts


@pytest.mark.parametrize(("cooldown", "cuts"), [(0, [1, 2, 3, 4, 5, 6]), (1, [1, 3, 5]), (2, [1, 4])])
def test_cooldown_skips_exactly_so_many_reports(play, cooldown, cuts):
    callback = jc.ReduceLROnPlateau(patience=1, cooldown=cooldown)
    assert play(callback, val_loss=[1.0] * 7).when(jc.actions.ScaleLearningRate) == cuts


def test_best_moves_during_cooldown(play):
    played = play(jc.ReduceLROnPlateau(patience=1, cooldown=2), val_loss=[1.0, 1.0, 0.5, 0.5, 0.75])
    assert played.when(jc.actions.ScaleLearningRate) == [1, 4]
    assert float(played.state.best) == 0.5


def test_an_unreported_epoch_ticks_nothing(play):
    played = play(jc.ReduceLROnPlateau(patience=1, cooldown=1), val_loss=[1.0, 1.0, None, None, 1.0, 1.0])
    assert played.when(jc.actions.ScaleLearningRate) == [1, 5]


def test_negative_metrics_and_max_mode(play):
    assert play(jc.ReduceLROnPlateau(patience=1), val_loss=[-1.0, -1.0]).when(jc.actions.ScaleLearningRate) == [1]
    assert play(jc.ReduceLROnPlateau(patience=1), val_loss=[-1.0, -2.0, -3.0]).when(jc.actions.ScaleLearningRate) == []
    played = play(jc.ReduceLROnPlateau("reward", patience=1), reward=[-3.0, -2.0, -2.5])
    assert played.when(jc.actions.ScaleLearningRate) == [2]


def test_nan_first_is_no_best(play):
    played = play(jc.ReduceLROnPlateau(patience=2), val_loss=[NAN, 1.0, NAN, NAN])
    assert played.when(jc.actions.ScaleLearningRate) == [3]
    assert float(played.state.best) == 1.0


def test_min_delta_is_used(play):
    values = [1.0, 0.875, 0.75]
    assert play(jc.ReduceLROnPlateau(patience=1, min_delta=0.25), val_loss=values).when(
        jc.actions.ScaleLearningRate
    ) == [1, 2]
    assert (
        play(jc.ReduceLROnPlateau(patience=1, min_delta=0.0625), val_loss=values).when(jc.actions.ScaleLearningRate)
        == []
    )


def cut_until(start: float, min_lr: float, factor: float, epochs: int) -> list[float]:
    """The effective rate after each epoch of a metric that never improves."""
    tx = jc.adjustable_lr(optax.sgd, learning_rate=start)
    chain = jc.chain(jc.ReduceLROnPlateau(factor=factor, patience=1, min_lr=min_lr))
    train, state, rates = jc.TrainState.create(params={}, tx=tx), chain.init(), []

    @jax.jit
    def epoch_end(state, train, epoch):
        metrics = jc.Metrics({"val_loss": 1.0, "learning_rate": train.learning_rate.effective()}, epoch=epoch)
        state, actions = chain.on_epoch_end(state, metrics)
        return state, jc.apply(actions, train)

    for epoch in range(epochs):
        state, train = epoch_end(state, train, epoch)
        rates.append(float(train.learning_rate.effective()))
    return rates


@pytest.mark.parametrize(("start", "min_lr", "factor"), [(1.0, 0.125, 0.5), (0.1, 1e-3, 0.3), (0.3, 0.007, 0.1)])
def test_the_floor_is_reached_and_kept(start, min_lr, factor):
    rates = cut_until(start, min_lr, factor, 9)
    assert rates[0] == np.float32(start)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] <= np.float32(min_lr)
    np.testing.assert_allclose(rates[-1], min_lr, rtol=3e-7)
    assert rates[-1] == rates[-2]


def test_the_floor_is_reached_exactly_where_it_is_a_power_of_the_factor():
    assert cut_until(1.0, 0.125, 0.5, 5) == [1.0, 0.5, 0.25, 0.125, 0.125]


def test_at_the_floor_nothing_is_cut_and_wait_goes_on(play):
    callback = jc.ReduceLROnPlateau(patience=1, min_lr=0.5)
    played = play(callback, val_loss=[1.0] * 4, learning_rate=[1.0, 1.0, 0.5, 0.5])
    assert played.when(jc.actions.ScaleLearningRate) == [1]
    assert int(played.state.wait) == 2


def test_a_floor_needs_the_rate_itself():
    from jaxcb._src.training.learning_rate import scaled_updates

    train = jc.TrainState.create(params={}, tx=scaled_updates(optax.sgd(0.1)))
    for min_lr in (0.0, 0.01):
        chain = jc.chain(jc.ReduceLROnPlateau(patience=1, min_lr=min_lr))
        _, actions = chain.on_epoch_end(chain.init(), jc.Metrics({"val_loss": 1.0, "learning_rate": 0.1}))
        if min_lr:
            with pytest.raises(
                ValueError, match=r"ReduceLROnPlateau needs the learning rate itself .*min_lr.*adjustable_lr"
            ):
                jc.apply(actions, train)
        else:
            jc.apply(actions, train)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"factor": 1.0}, "ReduceLROnPlateau: factor must lie strictly between 0.0 and 1.0, got 1.0"),
        ({"factor": -0.5}, "factor must lie strictly between"),
        ({"factor": 0}, "factor must lie strictly between"),
        ({"patience": -1}, "patience must be a whole number of at least 0, got -1"),
        ({"cooldown": 0.5}, "cooldown must be a whole number"),
        ({"min_lr": -1e-3}, "min_lr must be a finite number of at least 0.0, got -0.001"),
        ({"monitor": "mystery"}, "cannot tell from the name 'mystery'"),
    ],
)
def test_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        jc.ReduceLROnPlateau(**arguments)


def test_whole_numbers_may_come_as_floats(play):
    callback = jc.ReduceLROnPlateau(patience=1.0, cooldown=2.0)
    assert callback == jc.ReduceLROnPlateau(patience=1, cooldown=2)
    assert play(callback, val_loss=[1.0] * 5).when(jc.actions.ScaleLearningRate) == [1, 4]


def test_prints_a_line(play):
    played = play(jc.ReduceLROnPlateau(factor=0.5, patience=1, verbose=1), val_loss=[1.0, 1.0])
    assert (
        jc.actions.fill(played.actions[1][1], epoch=1)
        == "Epoch 2: ReduceLROnPlateau multiplies the learning rate by 0.5"
    )


def test_patience_and_factor_can_be_swept():
    def cut(patience, factor):
        chain = jc.chain(jc.ReduceLROnPlateau().replace(patience=patience, factor=factor))
        state, _ = chain.on_epoch_end(chain.init(), jc.Metrics({"val_loss": 1.0}, epoch=0))
        return chain.on_epoch_end(state, jc.Metrics({"val_loss": 1.0}, epoch=1))[1][0]

    cuts = jax.vmap(cut)(jnp.array([1, 2]), jnp.array([0.5, 0.25]))
    assert cuts.when.tolist() == [True, False]
    assert cuts.factor.tolist() == [0.5, 0.25]


def test_a_relative_delta_is_right_below_zero(play):
    """optax's own plateau, and torch's, compare with `best * (1 - delta)`."""
    callback = jc.ReduceLROnPlateau(patience=1, min_delta=0.25, threshold_mode="rel")
    values = [-4.0, -4.5, -6.0, -7.0]
    assert play(callback, val_loss=values).when(jc.actions.ScaleLearningRate) == [1, 3]


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_patience_and_cooldown_in_epochs_and_steps(play, unit):
    values = [1.0, None, 1.0, None, 1.0, None, 1.0, 1.0, 1.0]
    callback = jc.ReduceLROnPlateau(patience=2, cooldown=3, patience_in=unit)
    assert play(callback, val_loss=values).when(jc.actions.ScaleLearningRate) == [2, 6]
    callback = jc.ReduceLROnPlateau(patience=1, cooldown=0, patience_in=unit)
    assert play(callback, val_loss=values).when(jc.actions.ScaleLearningRate) == [2, 4, 6, 7, 8]


def test_several_validations_in_an_epoch_use_up_one_epoch_of_patience():
    chain = jc.chain(jc.ReduceLROnPlateau(patience=2, patience_in="epochs"))
    state, cuts = chain.init(), []
    for step, epoch in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)]:
        state, (cut,) = chain.on_eval_end(state, jc.Metrics({"val_loss": 1.0}, step=step, epoch=epoch))
        cuts.append(bool(cut.when))
    assert cuts == [False, False, False, False, True, False]
