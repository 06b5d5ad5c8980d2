"""Each trap of Keras 3: what its own objects do, and what ours do with the same arguments.

Rules of `rules.py` name the test here that shows them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from against_keras import _ours, _theirs, rules
from against_keras._case import NAN, Case, Schedule
from against_keras._small import PLATEAU, checkpoint, stopping, val_losses
from against_keras._twins import jaxcb_fit

import jaxcb as jc


def both(case):
    """What Keras does, and what jaxcb does."""
    return _theirs.outcome(case), _ours.outcome(case)


def stops(case):
    return tuple(outcome["stopped in epoch"] for outcome in both(case))


def rates(*values, **given):
    return tuple(o["rates"].tolist() for o in both(Case("ReduceLROnPlateau", PLATEAU | given, val_losses(*values))))


def files(case):
    return tuple([name.removesuffix(".keras") for _, _, name in o["saves"]] for o in both(case))


# Improvement


def test_gains_smaller_than_min_delta_add_up_in_both():
    assert stops(stopping(1.0, 0.875, 0.75, 0.625, min_delta=0.25, patience=3)) == (None, None)
    assert stops(stopping(1.0, 0.875, 0.75, min_delta=0.25, patience=2)) == (2, 2)


def test_equality_is_no_improvement_in_both():
    assert stops(stopping(1.0, 1.0)) == (1, 1)
    assert stops(stopping(1.0, 0.75, 0.5, min_delta=0.25)) == (1, 1)


def test_a_first_nan_is_the_best_for_ever_in_keras_alone():
    assert stops(stopping(NAN, 2.0, 1.0, 0.5, patience=2)) == (2, None)
    kept = both(stopping(NAN, 2.0, restore_best_weights=True, patience=9))
    assert [k["ends with the weights of epoch"] for k in kept] == [0, 1]
    assert files(checkpoint(val_losses(NAN, 2.0, 1.0), save_best_only=True)) == (["1"], ["2", "3"])


def test_auto_mode_is_known_before_the_run():
    model = _theirs.Model(stopping(1.0))
    theirs = keras.callbacks.EarlyStopping("val_fancy")  # accepted
    theirs.set_model(model)
    theirs.on_train_begin()
    with pytest.raises(ValueError, match="isn't able to automatically determine"):
        theirs.on_epoch_end(0, {"val_fancy": 1.0})
    with pytest.raises(ValueError, match=r"mode='auto' cannot tell from the name 'val_fancy'"):
        jc.EarlyStopping("val_fancy")
    # of several outputs, Keras knows the metrics of none by their names
    with pytest.raises(ValueError, match="isn't able"):
        keras.callbacks.EarlyStopping("val_head_accuracy", mode="auto")._set_monitor_op()
    assert jc.EarlyStopping("val_head_accuracy").mode == "max"


# EarlyStopping


def test_patience_0_acts_as_1_in_both():
    for patience in (0, 1):
        assert stops(stopping(1.0, 2.0, 0.5, patience=patience)) == (1, 1)


def test_patience_counts_reports_at_any_cadence():
    """Where epochs alone report, both count epochs with a report; ours counts validations within an epoch, too."""
    assert stops(stopping(1.0, None, 2.0, None, 2.0, patience=2)) == (4, 4)
    within = jc.replay(jc.EarlyStopping(patience=2), {"epoch": [0, 0, 0, 1], "val_loss": [1.0, 1.0, 1.0, 1.0]})
    assert within.stopped_epoch == 0


def test_start_from_epoch_passes_reports_over_in_both():
    assert stops(stopping(0.1, 0.2, 0.3, 0.2, 0.25, start_from_epoch=2)) == (4, 4)


def test_a_baseline_that_is_never_beaten_stops_nothing_in_keras():
    assert stops(stopping(5.0, 4.0, 3.0, 2.0, baseline=1.0, patience=2)) == (None, 1)


def test_a_missing_monitor_is_a_warning_in_keras_and_an_error_here():
    case = stopping(None, None, names=("loss",))
    assert both(case) == (
        {"stopped in epoch": None, "ends with the weights of epoch": 1},
        "refused: a metric is missing",
    )


# ReduceLROnPlateau


def test_cooldown_1_equals_0_in_keras():
    zero, one = rates(*[1.0] * 5), rates(*[1.0] * 5, cooldown=1)
    assert zero == ([1.0, 0.5, 0.25, 0.125, 0.0625], [1.0, 0.5, 0.25, 0.125, 0.0625])
    assert one == ([1.0, 0.5, 0.25, 0.125, 0.0625], [1.0, 0.5, 0.5, 0.25, 0.25])
    theirs, _ = rates(*[1.0] * 5, cooldown=2)
    assert theirs == one[1]


def test_a_plateaus_patience_0_acts_as_1_and_best_moves_in_cooldown_in_both():
    assert rates(1.0, 1.0, patience=0) == rates(1.0, 1.0, patience=1)
    theirs, _ = rates(1.0, 1.0, 0.5, 0.75, 0.75, cooldown=3)
    _, ours = rates(1.0, 1.0, 0.5, 0.75, 0.75, cooldown=2)
    assert theirs == ours == [1.0, 0.5, 0.5, 0.5, 0.25]


def test_a_missing_report_does_not_tick_the_cooldown_in_both():
    theirs, _ = rates(1.0, 1.0, None, None, 1.0, 1.0, cooldown=2)
    _, ours = rates(1.0, 1.0, None, None, 1.0, 1.0, cooldown=1)
    assert theirs == ours == [1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_at_min_lr_nothing_is_cut_in_both():
    assert rates(*[1.0] * 4, min_lr=0.25) == ([1.0, 0.5, 0.25, 0.25],) * 2


def test_a_plateau_over_a_schedule():
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    model, plateau = _theirs.Model(stopping(1.0)), keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5)
    model.optimizer = keras.optimizers.SGD(decay)
    plateau.set_model(model)
    plateau.on_train_begin()
    plateau.on_epoch_end(0, {"val_loss": 1.0})
    with pytest.raises(TypeError, match="created with a `LearningRateSchedule` object"):
        plateau.on_epoch_end(1, {"val_loss": 1.0})
    ours = jc.ReduceLROnPlateau(patience=1, factor=0.5, min_lr=0.1)
    replay = jc.replay(ours, {"val_loss": [1.0, 1.0, 1.0]}, learning_rate=optax.exponential_decay(0.5, 1, 0.5))
    assert replay.lr_scale.tolist() == [1.0, pytest.approx(0.8), pytest.approx(0.8)]  # 0.125 * 0.8 is the floor


def test_the_plateau_writes_the_rate_into_the_logs_of_those_behind_it():
    logs = {"val_loss": 1.0}
    plateau = keras.callbacks.ReduceLROnPlateau()
    plateau.set_model(_theirs.Model(stopping(1.0)))
    plateau.on_train_begin()
    plateau.on_epoch_end(0, logs)
    assert logs == {"val_loss": 1.0, "learning_rate": 1.0}
    metrics = jc.Metrics({"val_loss": 1.0})
    chain = jc.chain(jc.ReduceLROnPlateau())
    chain.on_epoch_end(chain.init(), metrics)
    assert list(metrics) == ["val_loss"]


# LearningRateScheduler


def test_a_scheduler_undoes_the_plateau_in_keras():
    arguments = PLATEAU | {"schedule": Schedule("constant", lambda epoch: 1.0)}
    case = Case("LearningRateScheduler with ReduceLROnPlateau", arguments, val_losses(1.0, 1.0, 1.0))
    assert [o["rates"].tolist() for o in both(case)] == [[1.0, 0.5, 0.5], [1.0, 0.5, 0.25]]


@pytest.mark.parametrize("value", [jnp.float32(0.5), 1, np.int64(1)])
def test_schedules_that_return_arrays_or_whole_numbers_are_refused_by_keras(value):
    case = Case("LearningRateScheduler", {"schedule": Schedule(repr(value), lambda epoch: value)}, val_losses(1.0))
    theirs, ours = both(case)
    assert theirs == "fails: ValueError"
    assert ours["rates"].tolist() == [float(value)]


def test_a_type_error_inside_a_schedule_comes_out():
    def schedule(epoch, lr):
        return lr * [0.5]  # the user's mistake

    theirs = keras.callbacks.LearningRateScheduler(schedule)
    theirs.set_model(_theirs.Model(stopping(1.0)))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'lr'"):  # not what is wrong
        theirs.on_epoch_begin(0)
    with pytest.raises(TypeError, match="can't multiply sequence by non-int"):
        jc.LearningRateScheduler(schedule).on_epoch_begin((), jc.Metrics({"base_learning_rate": 0.1}))


# ModelCheckpoint


def by_step(*losses_by_epoch, **given):
    epochs = tuple({"loss": losses[-1]} for losses in losses_by_epoch)
    return checkpoint(epochs, batches=losses_by_epoch, names=("loss",), filepath="{epoch}-{batch}.keras", **given)


def test_save_freq_counts_across_epochs_in_both():
    """4 steps an epoch, every 3."""
    case = by_step(*[(0.0,) * 4] * 3, save_freq=3)
    assert files(case) == (["1-3", "2-2", "3-1", "3-4"],) * 2


def test_save_freq_drifts_with_steps_per_execution_in_keras():
    case = by_step(*[(0.0,) * 4] * 3, save_freq=3, steps_per_execution=2)
    assert files(case) == (["1-4", "2-4", "3-4"], ["1-3", "2-2", "3-1", "3-4"])


def test_best_only_by_steps_fails_or_saves_everything_in_keras():
    theirs, ours = both(by_step((3.0, 1.0, 2.0), monitor="loss", save_best_only=True, save_freq=1))
    assert theirs == "fails: TypeError"
    assert [name for _, _, name in ours["saves"]] == ["1-1.keras", "1-2.keras"]
    case = checkpoint(
        val_losses(1.0, 2.0),
        batches=((0.5,), (0.5,)),
        save_best_only=True,
        save_freq=1,
        filepath="{epoch}-{batch}.keras",
    )
    assert files(case) == (["1-1", "2-1"], ["1-1"])


def test_best_only_saves_an_epoch_without_validation_in_keras():
    assert files(checkpoint(val_losses(1.0, None, 2.0), save_best_only=True)) == (["1", "2"], ["1"])


def test_the_best_value_is_lost_in_a_new_process_in_keras():
    case = checkpoint(val_losses(0.5), save_best_only=True)
    again = case.replace(epochs=val_losses(0.75))  # worse
    assert [files(c)[0] for c in (case, again)] == [["1"], ["1"]]
    # ours is part of the run's checkpoint, and decides from there on
    chain = jc.chain(jc.ModelCheckpoint("{epoch}", save_best_only=True))
    state, _ = chain.on_epoch_end(chain.init(), jc.Metrics({"val_loss": 0.5}, epoch=0))
    _, actions = chain.on_epoch_end(state, jc.Metrics({"val_loss": 0.75}, epoch=1))
    assert jc.fired(actions) == ()


# Others


def test_terminate_on_nan_looks_at_a_running_mean_in_keras():
    case = Case("TerminateOnNaN", {}, ({"loss": 0.0},), ("loss",), ((3e38, 3e38, 1.0),), running_mean=True)
    assert both(case) == ({"stopped at": (0, 1)}, {"stopped at": None})


def test_terminate_on_nan_may_raise_in_both():
    theirs = keras.callbacks.TerminateOnNaN(raise_error=True)
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered at batch 3"):
        theirs.on_batch_end(3, {"loss": NAN})
    chain = jc.chain(jc.TerminateOnNaN(raise_error=True))
    _, actions = chain.on_batch_end(chain.init(), jc.Metrics({"loss": NAN}, step=4))
    with (
        jc.Recorder(callbacks=chain, verbose=0) as recorder,
        pytest.raises(RuntimeError, match="loss is nan at step 4"),
    ):
        recorder.perform(actions, step=4)


def test_csv_invents_columns_in_keras_and_drops_late_ones():
    theirs, ours = both(Case("CSVLogger", {"separator": ","}, ({"loss": 0.5}, {"loss": 0.25, "val_loss": 1.0})))
    assert theirs["rows"] == [["epoch", "loss", "val_loss"], ["0", "0.5", "NA"], ["1", "0.25", "1.0"]]
    assert ours["rows"] == [["epoch", "step", "loss", "val_loss"], ["0", "1", "0.5", "NA"], ["1", "2", "0.25", "1.0"]]
    epochs = ({"loss": 0.5, "val_loss": 0.5}, {"loss": 0.25, "val_loss": 1.0, "late": 2.0})
    theirs, _ = both(Case("CSVLogger", {"separator": ","}, epochs))
    assert theirs["rows"][0] == ["epoch", "loss", "val_loss"]


def test_csv_append_looks_at_the_header(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,accuracy,loss\n0,0.5,0.25\n")
    theirs = keras.callbacks.CSVLogger(str(path), append=True)
    theirs.on_train_begin()
    theirs.on_epoch_end(1, {"loss": 0.125, "val_loss": 1.0})
    theirs.on_train_end()
    assert path.read_text().splitlines() == ["epoch,accuracy,loss", "0,0.5,0.25", "1,0.125,1.0"]  # below accuracy
    callback = jc.CSVLogger(path, append=True)
    with pytest.raises(ValueError, match=r"has the columns \['epoch', 'accuracy', 'loss'\]"):
        jaxcb_fit(epochs=1, callbacks=[callback])


def test_what_a_callback_sees_does_not_depend_on_its_place():
    class Changes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = 0.0

    def stopped(*callbacks):
        model = _theirs.Model(stopping(1.0))
        hooks = keras.callbacks.CallbackList(list(callbacks), model=model)
        hooks.on_train_begin()
        for epoch, value in enumerate([3.0, 2.0, 1.0]):
            hooks.on_epoch_end(epoch, {"val_loss": value})
        return model.stop_training

    assert stopped(Changes(), keras.callbacks.EarlyStopping(patience=1))
    assert not stopped(keras.callbacks.EarlyStopping(patience=1), Changes())

    plateau, stop = jc.ReduceLROnPlateau(patience=1, min_lr=0.25), jc.EarlyStopping(patience=2)
    values = {"val_loss": [1.0, 1.0, 2.0, 3.0]}
    one, other = jc.replay([plateau, stop], values), jc.replay([stop, plateau], values)
    assert one.stopped_epoch == other.stopped_epoch == 2
    assert one.lr_scale.tolist() == other.lr_scale.tolist()


def test_keras_hook_names_are_refused_with_the_new_ones():
    with pytest.raises(jc.errors.CallbackError, match=r"which is not a hook\. The hook's name here is 'on_batch_end'"):
        type("Mine", (jc.Callback,), {"on_train_batch_end": lambda self, state, metrics: (state, None)})
    with pytest.raises(jc.errors.CallbackError, match="has Keras's signature"):
        type("Mine", (jc.Callback,), {"on_epoch_end": lambda self, epoch, logs: None})


def test_arguments_out_of_range_are_refused():
    keras.callbacks.ReduceLROnPlateau(factor=-0.5, patience=-1, epsilon=0.1)  # the last one does not exist
    keras.callbacks.EarlyStopping(patience=-1)
    for arguments in ({"factor": -0.5}, {"patience": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            jc.ReduceLROnPlateau(**arguments)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        jc.ReduceLROnPlateau(epsilon=0.1)
    with pytest.raises(ValueError, match="patience must be a whole number of at least 0, got -1"):
        jc.EarlyStopping(patience=-1)


def test_what_callbacks_remember_survives():
    """Keras's early stopping begins anew in a run that is started again; ours goes on."""
    losses = (1.0, 1.0, 1.0, 1.0, 1.0)
    whole = stopping(*losses, patience=3)
    assert stops(whole) == (3, 3)
    rest = whole.replace(epochs=val_losses(*losses[2:]))
    assert _theirs.outcome(rest)["stopped in epoch"] is None  # killed after 2 epochs: the 3 others are not enough
    chain = jc.chain(jc.EarlyStopping(patience=3))
    state = chain.init()
    for epoch in range(2):
        state, _ = chain.on_epoch_end(state, jc.Metrics({"val_loss": 1.0}, epoch=epoch))
    kept = jax.tree.map(np.asarray, state)  # what a checkpoint holds
    stopped = []
    for epoch in (2, 3):
        kept, actions = chain.on_epoch_end(kept, jc.Metrics({"val_loss": 1.0}, epoch=epoch))
        stopped.append(bool(jc.stop_requested(actions)))
    assert stopped == [False, True]


# Rules


def test_rules_name_the_tests_that_show_them():
    here = Path(__file__)
    for rule in rules.RULES:
        if rule.bites is not None:
            assert rule.amend or rule.instead
            assert rule.kinds
            continue
        file, _, test = rule.shown_by.rpartition("::")
        text = (here.parent.parent / file if file else here).read_text()
        assert f"def {test}(" in text, rule.shown_by
