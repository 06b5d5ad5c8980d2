"""`drive`: a callback walked through a run by hand."""

import jax
import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc
from jaxcb.testing import drive


def test_decides_as_replay_does():
    callbacks = jc.chain(
        jc.EarlyStopping(patience=3, restore_best_weights=True),
        jc.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_lr=0.2),
        jc.LearningRateScheduler(lambda epoch, lr: lr * 0.75, verbose=1),
    )
    nan = float("nan")
    records = {
        "loss": [1.0, 2.0, None, nan, 0.5, 0.75, 0.75, 0.125],
        "val_loss": [None, 2.0, nan, 1.0, None, 1.0, 1.5, 2.0],
    }
    driven, replayed = drive(callbacks, records, show=None), jc.replay(callbacks, records)
    fired = [[] for _ in records["loss"]]
    for moment in driven.moments:
        if moment.hook != "on_train_end":
            fired[int(moment.metrics.epoch)] += moment.actions
    jax.tree.map(np.testing.assert_array_equal, fired, [list(actions) for actions in replayed.actions])
    jax.tree.map(np.testing.assert_array_equal, driven.moments[-1].actions, replayed.end)
    jax.tree.map(np.testing.assert_array_equal, driven.state, replayed.states)
    assert replayed.stopped_epoch == 7
    assert {type(a) for actions in fired for a in actions} >= {
        jc.actions.Stop,
        jc.actions.ScaleLearningRate,
        jc.actions.SetLearningRate,
    }


def every_hook(on):
    return jc.make_callback(**{hook: on(hook) for hook in jc.callbacks.HOOKS})


@pytest.mark.everyday(1)
@pytest.mark.parametrize("stop", [None, 2])
def test_takes_the_moments_of_a_run(stop):
    seen = []

    def note(hook):
        def fn(state, metrics):
            own = {name: value for name, value in metrics.values.items() if not name.endswith("learning_rate")}
            call = jc.actions.Call(lambda run: seen.append((hook, run.step, run.epoch, sorted(run.logs))), own)
            return state, (call, jc.actions.Stop(metrics.step == stop) if hook == "on_batch_end" and stop else None)

        return fn

    epochs, steps = 2, 5
    fit(epochs=epochs, callbacks=[every_hook(note)], verbose=0)
    ran, names = list(seen), sorted({name for *_, logs in seen for name in logs})
    driven = drive(every_hook(note), {name: [1.0] * epochs for name in names}, steps_per_epoch=steps, show=None)
    walked = []
    for m in driven.moments:
        own = sorted(name for name in m.metrics.values if not name.endswith("learning_rate"))
        walked.append((m.hook, int(m.metrics.step), int(m.metrics.epoch), own))
    assert walked == ran
    assert [hook for hook, *_ in ran].count("on_batch_end") == (stop or epochs * steps)


def test_values_are_there_in_the_hooks(capsys):
    class Look(jc.Callback):
        def init(self):
            return 0

        def on_batch_end(self, state, metrics):
            if metrics["loss"] < 0.75:  # a run would refuse this `if`
                print("low", float(metrics["loss"]), "rate", float(metrics["learning_rate"]))
            return state + 1, None

    driven = drive(Look(), {"loss": [1.0, 0.5]}, steps_per_epoch=2, learning_rate=0.25, show=None)
    assert capsys.readouterr().out == "low 0.5 rate 0.25\n" * 2
    assert [int(m.state) for m in driven.moments] == [1, 2, 3, 4]
    assert int(driven.state) == 4


def test_a_stop_ends_the_epoch_and_is_shown_in_words():
    lines = []
    rows = [{"loss": 1.0, "val_loss": 1.0}, {"loss": float("nan"), "val_loss": 0.5}, {"loss": 0.1, "val_loss": 0.1}]
    count = jc.make_callback(
        init=lambda: 0, on_eval_end=lambda n, _: (n + 1, None), on_epoch_end=lambda n, _: (n + 10, None)
    )
    driven = drive(jc.chain(jc.TerminateOnNaN(), count), rows, steps_per_epoch=3, show=lines.append)
    assert lines == [
        "epoch 1 step 3 on_eval_end: FunctionCallback 0 -> 1",
        "epoch 1 step 3 on_epoch_end: FunctionCallback 1 -> 11",
        'epoch 2 step 4 on_batch_end: TerminateOnNaN: Stop("loss is nan at step 4")',
        "epoch 2 step 4 on_eval_end: FunctionCallback 11 -> 12",
        "epoch 2 step 4 on_epoch_end: FunctionCallback 12 -> 22",
    ]
    assert driven.state["FunctionCallback"] == 22
    assert [type(a) for m in driven.moments for a in m.actions] == [jc.actions.Stop]


@pytest.mark.parametrize("validate", [True, False])
def test_validation_values_come_with_validations_alone(validate):
    driven = drive(
        every_hook(lambda _: lambda s, _: (s, None)),
        {"loss": [2.0, 1.0], "val_loss": [None, 3.0]},
        validate=validate,
        show=None,
    )
    assert [int(m.metrics.epoch) for m in driven.at("on_eval_end")] == ([1] if validate else [])
    ends = driven.at("on_epoch_end")
    assert all(("val_loss" in m.metrics) is validate for m in ends)
    if validate:
        assert [bool(m.metrics.fresh("val_loss")) for m in ends] == [False, True]
        (evaluated,) = driven.at("on_eval_end")
        assert float(evaluated.metrics["loss"]) == 2.0  # of the epoch before: this one's mean is not there yet
        assert not evaluated.metrics.fresh("loss")


def test_errors_name_what_is_wrong():
    with pytest.raises(jc.errors.MissingMetricError, match=r"EarlyStopping.on_eval_end: .*'val_loss'.*loss"):
        drive(jc.EarlyStopping(), {"loss": [1.0], "val_accuracy": [1.0]})
    with pytest.raises(ValueError, match="steps_per_epoch must be a whole number of at least 1, got 0"):
        drive(jc.EarlyStopping(), {"val_loss": [1.0]}, steps_per_epoch=0)
    with pytest.raises(TypeError, match="expected a jaxcb callback, got a list"):
        drive([jc.EarlyStopping()], {"val_loss": [1.0]})
    with pytest.raises(jc.errors.DataError, match="'elapsed' has 2 values, expected one per epoch: 1"):
        drive(jc.EarlyStopping(), {"val_loss": [1.0]}, host_metrics={"elapsed": [1.0, 2.0]})


def test_hooks_see_what_the_host_reads():
    lines = []
    drive(
        jc.callbacks.Timer(10),
        {"loss": [1.0, 0.5, 0.25]},
        host_metrics={"elapsed": [5.0, 12.0, 18.0]},
        show=lines.append,
    )
    assert lines == [
        'epoch 2 step 2 on_batch_end: Stop("the time limit of 10 s was reached after 12.0 s"); up -1 -> 10'
    ]
