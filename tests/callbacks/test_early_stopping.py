"""EarlyStopping: Keras's decisions, and jaxcb's where Keras is wrong."""

import jax.numpy as jnp
import pytest

import jaxcb as jc

NAN = float("nan")


@pytest.mark.parametrize(
    ("patience", "stops"),
    [(0, 2), (1, 2), (2, 3), (3, 4), (4, None)],  # 0 acts as 1, as in Keras
)
def test_patience_is_not_off_by_one(play, patience, stops):
    played = play(jc.EarlyStopping(patience=patience), val_loss=[3.0, 2.0, 2.0, 2.5, 2.1])
    assert played.when(jc.actions.Stop)[:1] == ([] if stops is None else [stops])


def test_state_tells_best_and_wait(play):
    state = play(jc.EarlyStopping(patience=9), val_loss=[3.0, 1.0, 2.0, 2.0]).state
    assert (float(state.best), int(state.best_epoch), int(state.wait)) == (1.0, 1, 2)


@pytest.mark.parametrize(("min_delta", "stops"), [(0.0, []), (0.25, [2]), (-0.25, [2]), (0.05, [])])
def test_min_delta_is_used_by_its_absolute_value(play, min_delta, stops):
    played = play(jc.EarlyStopping(min_delta=min_delta, patience=2), val_loss=[1.0, 0.875, 0.75])
    assert played.when(jc.actions.Stop) == stops


def test_small_gains_add_up_against_the_old_best(play):
    played = play(jc.EarlyStopping(min_delta=0.25, patience=3), val_loss=[1.0, 0.875, 0.75, 0.625])
    assert played.when(jc.actions.Stop) == []
    assert float(played.state.best) == 0.625


def test_max_mode_follows_the_name(play):
    assert play(jc.EarlyStopping("val_accuracy", patience=1), val_accuracy=[0.1, 0.2, 0.3]).when(jc.actions.Stop) == []
    assert play(jc.EarlyStopping("val_accuracy", patience=1), val_accuracy=[0.3, 0.2]).when(jc.actions.Stop) == [1]


def test_negative_metrics(play):
    assert play(jc.EarlyStopping(patience=1), val_loss=[-1.0, -2.0, -3.0]).when(jc.actions.Stop) == []
    assert play(jc.EarlyStopping(patience=1), val_loss=[-3.0, -2.0]).when(jc.actions.Stop) == [1]


def test_nan_is_never_an_improvement(play):
    played = play(jc.EarlyStopping(patience=2, restore_best_weights=True), val_loss=[NAN, 2.0, NAN, 1.0, NAN, NAN])
    assert played.when(jc.actions.Snapshot) == [1, 3]
    assert played.when(jc.actions.Stop) == [5]
    assert float(played.state.best) == 1.0


def test_a_baseline_that_is_never_beaten_ends_the_run(play):
    callback = jc.EarlyStopping("val_accuracy", baseline=0.9, patience=3, restore_best_weights=True)
    played = play(callback, val_accuracy=[0.1, 0.2, 0.3, 0.4])
    assert played.when(jc.actions.Stop) == [2, 3]
    assert played.when(jc.actions.Snapshot) == [0, 1, 2, 3]  # best moves all the same


def test_a_baseline_that_is_beaten_counts(play):
    played = play(jc.EarlyStopping(baseline=1.0, patience=2), val_loss=[1.5, 0.9, 0.8, 0.85, 0.7])
    assert played.when(jc.actions.Stop) == []


def test_start_from_epoch(play):
    played = play(jc.EarlyStopping(patience=1, start_from_epoch=2), val_loss=[0.1, 0.2, 0.3, 0.2, 0.25])
    assert played.when(jc.actions.Stop) == [4]


def test_a_report_before_start_from_epoch_does_not_count_later(play):
    played = play(jc.EarlyStopping(patience=9, start_from_epoch=2), val_loss=[0.1, None, None, 0.5])
    assert (float(played.state.best), int(played.state.best_epoch)) == (0.5, 3)


def test_unreported_epochs_change_nothing(play):
    played = play(jc.EarlyStopping(patience=2), val_loss=[1.0, None, 2.0, None, None, 2.0])
    assert played.when(jc.actions.Stop) == [5]


def test_a_report_counts_once_though_two_hooks_see_it():
    chain = jc.chain(jc.EarlyStopping(patience=9))
    state = chain.init()
    for epoch, loss in enumerate([1.0, 2.0, 2.0]):
        metrics = jc.Metrics({"val_loss": loss}, epoch=epoch)
        state, _ = chain.on_eval_end(state, metrics)
        state, _ = chain.on_epoch_end(state, metrics)
    assert int(state["EarlyStopping"].wait) == 2


def test_a_derived_monitor(play):
    callback = jc.EarlyStopping(lambda m: m["val_loss"] - m["loss"], mode="min", patience=1)
    assert play(callback, val_loss=[2.0, 2.0, 3.0], loss=[1.0, 1.5, 1.0]).when(jc.actions.Stop) == [2]
    every = jc.EarlyStopping(lambda m: sum((m[n] for n in m), jnp.float32(0)), mode="min", patience=1)
    assert play(every, a=[2.0, 1.0, None], b=[1.0, 1.5, 9.0]).when(jc.actions.Stop) == []  # b alone is no report of it


@pytest.mark.parametrize("restore", [False, True])
def test_restores_the_best_at_the_end_only_where_asked(play, restore):
    callback = jc.EarlyStopping(restore_best_weights=restore, verbose=1)
    played = play(callback, hook="on_train_end", val_loss=[1.0])
    assert played.when(jc.actions.Restore) == ([0] if restore else [])
    assert callback.slots() == ({"best": "model"} if restore else {})


@pytest.mark.parametrize(("values", "lines"), [([1.0, 2.0], ["1"]), ([2.0, 1.0], ["2"]), ([NAN, NAN], [])])
def test_the_restored_epoch_is_told_from_1(values, lines):
    chain = jc.chain(jc.EarlyStopping(patience=9, verbose=1, restore_best_weights=True))
    state = chain.init()
    for epoch, value in enumerate(values):
        state, _ = chain.on_epoch_end(state, jc.Metrics({"val_loss": value}, epoch=epoch))
    _, actions = chain.on_train_end(state, jc.Metrics({"val_loss": values[-1]}, epoch=len(values) - 1))
    told = [jc.actions.fill(a) for a in jc.fired(actions) if isinstance(a, jc.actions.Print)]
    assert told == [f"Restored the model weights of the best epoch: {line}" for line in lines]


def test_patience_0_in_epochs_waits_for_an_epoch():
    """It acts as 1: a second validation in the same epoch uses up none of it."""
    chain = jc.chain(jc.EarlyStopping(patience=0, patience_in="epochs"))
    state, stops = chain.init(), []
    for step, epoch in [(1, 0), (2, 0), (3, 1)]:
        state, actions = chain.on_eval_end(state, jc.Metrics({"val_loss": 1.0}, step=step, epoch=epoch))
        stops.append(bool(jc.stop_requested(actions)))
    assert stops == [False, False, True]


def test_reason_and_line_are_filled(play):
    played = play(jc.EarlyStopping(patience=2, verbose=1), val_loss=[1.0, 2.0, 2.0])
    stop, line = played.actions[2]
    assert jc.actions.fill(stop) == "val_loss has not improved for 2 reports; best 1 at epoch 1"
    assert jc.actions.fill(line, epoch=2).startswith("Epoch 3: early stopping, val_loss")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"patience": -1}, "EarlyStopping: patience must be a whole number of at least 0, got -1"),
        ({"patience": 1.5}, "patience must be a whole number of at least 0, got 1.5"),
        ({"patience": float("inf")}, "patience must be a whole number of at least 0, got inf"),
        ({"patience": True}, "patience must be a whole number"),
        ({"start_from_epoch": -2}, "start_from_epoch must be a whole number"),
        ({"min_delta": NAN}, "min_delta must be a finite number, got nan"),
        ({"baseline": "0.5"}, "baseline must be a finite number, got '0.5'"),
        ({"mode": "maximum"}, "mode must be one of 'auto', 'min', 'max', got 'maximum'"),
        ({"monitor": "val_fancy"}, "cannot tell from the name 'val_fancy' .* Pass mode='min' or mode='max'"),
        ({"monitor": lambda m: m["a"]}, "cannot tell from a function"),
    ],
)
def test_arguments_are_checked_with_what_was_received(arguments, says):
    with pytest.raises(ValueError, match=says):
        jc.EarlyStopping(**arguments)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val_loss", "min"),
        ("val_c4_loss", "min"),
        ("val_accuracy", "max"),
        ("top_5_accuracy", "max"),
        ("ppl", "min"),
        ("val/f1", "max"),
    ],
)
def test_mode_follows_the_name(name, mode):
    assert jc.EarlyStopping(name).mode == mode


def test_a_monitor_must_be_a_scalar_and_read_something():
    metrics = jc.Metrics({"val_loss": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"monitor 'val_loss' has shape \(3,\), expected a scalar"):
        jc.EarlyStopping().on_epoch_end(jc.EarlyStopping().init(), metrics)
    callback = jc.EarlyStopping(lambda m: 1.0, mode="min")
    with pytest.raises(TypeError, match="its monitor function reads no metric"):
        callback.on_epoch_end(callback.init(), metrics)


# Options that Keras lacks


def test_the_first_report_that_counts_never_stops(play):
    """There is nothing to compare it with, whatever was passed over before."""
    passed_over = {"patience": 1, "start_from_epoch": 2}
    assert play(jc.EarlyStopping(**passed_over), val_loss=[1.0, 1.0, NAN, NAN]).when(jc.actions.Stop) == [3]
    assert play(jc.EarlyStopping(**passed_over, baseline=0.5), val_loss=[1.0] * 5).when(jc.actions.Stop) == [3, 4]


def test_stopping_threshold_is_reached_or_passed(play):
    callback = jc.EarlyStopping(patience=9, stopping_threshold=0.5)
    played = play(callback, val_loss=[1.0, 0.75, 0.5, NAN, 0.25])
    assert played.when(jc.actions.Stop) == [2, 4]
    assert [jc.actions.fill(a) for a in played.actions[2]] == ["val_loss is 0.5 and has reached 0.5"]
    accuracy = jc.EarlyStopping("val_accuracy", patience=9, stopping_threshold=1.0)
    assert play(accuracy, val_accuracy=[0.5, 0.75, 1.0]).when(jc.actions.Stop) == [2]


def test_divergence_threshold_must_be_passed(play):
    callback = jc.EarlyStopping(patience=9, divergence_threshold=2.0)
    played = play(callback, val_loss=[2.0, 1.0, NAN, 2.5])
    assert played.when(jc.actions.Stop) == [3]
    assert [jc.actions.fill(a) for a in played.actions[3]] == ["val_loss is 2.5, which is worse than 2"]


def test_check_finite_stops_at_nan_and_infinity(play):
    values = [1.0, NAN, float("inf"), float("-inf")]
    assert play(jc.EarlyStopping(patience=9), val_loss=values).when(jc.actions.Stop) == []
    played = play(jc.EarlyStopping(patience=9, check_finite=True, verbose=1), val_loss=values)
    assert played.when(jc.actions.Stop) == [1, 2, 3]
    assert [jc.actions.fill(a, epoch=1) for a in played.actions[1]] == [
        "val_loss is nan",
        "Epoch 2: early stopping, val_loss is nan",
    ]


def test_thresholds_wait_for_start_from_epoch_and_for_reports(play):
    callback = jc.EarlyStopping(patience=9, start_from_epoch=1, stopping_threshold=0.5, check_finite=True)
    assert play(callback, val_loss=[0.25, None, 0.25, None]).when(jc.actions.Stop) == [2]
    assert play(callback, val_loss=[NAN, None, NAN]).when(jc.actions.Stop) == [2]


def reasons(played):
    return [jc.actions.fill(action) for action in played.actions[-1] if isinstance(action, jc.actions.Stop)]


def test_every_reason_that_holds_is_given(play):
    assert reasons(play(jc.EarlyStopping(patience=1, divergence_threshold=2.0), val_loss=[1.0, 3.0])) == [
        "val_loss has not improved for 1 reports; best 1 at epoch 1",
        "val_loss is 3, which is worse than 2",
    ]


def test_reasons_name_the_baseline_and_a_function(play):
    def gap(metrics):
        return metrics["val_loss"] - metrics["loss"]

    played = play(jc.EarlyStopping(gap, mode="min", patience=1), val_loss=[1.0, 3.0], loss=[1.0, 1.0])
    assert reasons(played) == ["gap has not improved for 1 reports; best 0 at epoch 1"]
    (reason,) = reasons(play(jc.EarlyStopping(patience=2, baseline=0.5), val_loss=[1.0, 0.75]))
    assert "has not beaten both its best and the baseline 0.5 for 2 reports" in reason


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_relative_delta_is_a_share_of_the_best(play, mode, sign):
    """Also below zero, where `best * (1 - delta)`, as others write it, calls what is worse an improvement."""
    towards = -1.0 if mode == "min" else 1.0
    callback = jc.EarlyStopping(mode=mode, min_delta=0.25, patience=9, threshold_mode="rel")
    for gain, improves in [(0.5, False), (1.0, False), (1.25, True), (0.0, False), (-1.0, False)]:
        best = 4.0 * sign
        played = play(callback, val_loss=[best, best + towards * gain])
        assert int(played.state.best_epoch) == int(improves)


def test_a_relative_delta_at_infinity_and_zero(play):
    callback = jc.EarlyStopping(min_delta=0.25, patience=9, threshold_mode="rel")
    assert float(play(callback, val_loss=[float("inf"), 8.0]).state.best) == 8.0
    assert float(play(callback, val_loss=[0.0, -0.125]).state.best) == -0.125


def test_patience_in_epochs_and_steps(play):
    values = [1.0, None, 2.0, None, 2.0, 2.0]  # a step an epoch
    for unit in ("epochs", "steps"):
        for patience, stops in [(0, [2, 4, 5]), (2, [2, 4, 5]), (3, [4, 5]), (5, [5]), (6, [])]:
            callback = jc.EarlyStopping(patience=patience, patience_in=unit)
            assert play(callback, val_loss=values).when(jc.actions.Stop) == stops
    assert int(play(jc.EarlyStopping(patience_in="steps"), val_loss=[None, NAN]).state.wait) == 2  # since the beginning


def test_several_validations_in_an_epoch_use_up_one_epoch_of_patience():
    chain = jc.chain(jc.EarlyStopping(patience=1, patience_in="epochs"))
    state, stops = chain.init(), []
    for step, epoch in [(1, 0), (2, 0), (3, 0), (4, 1)]:
        state, actions = chain.on_eval_end(state, jc.Metrics({"val_loss": 1.0}, step=step, epoch=epoch))
        stops.append(bool(jc.stop_requested(actions)))
    assert stops == [False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"threshold_mode": "relative"}, "threshold_mode must be one of 'abs', 'rel', got 'relative'"),
        ({"patience_in": "batches"}, "patience_in must be one of 'reports', 'epochs', 'steps', got 'batches'"),
        ({"stopping_threshold": NAN}, "stopping_threshold must be a finite number, got nan"),
        ({"divergence_threshold": "1"}, "divergence_threshold must be a finite number, got '1'"),
    ],
)
def test_further_arguments_are_checked(arguments, says):
    for kind in (jc.EarlyStopping, jc.ReduceLROnPlateau)[: 2 if "threshold_mode" in arguments else 1]:
        with pytest.raises(ValueError, match=says):
            kind(**arguments)
