"""ModelCheckpoint: which moments save, and under which names."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcb as jc

NAN = float("nan")


# A run as Keras tells it, and the rule in plain Python


@dataclasses.dataclass(frozen=True)
class Moment:
    """One moment of a run, with what it reports anew."""

    hook: str
    step: int
    epoch: int
    batch: int
    new: dict[str, float]
    closes: bool = True


@st.composite
def runs(draw):
    """The moments of a run: batches, validations at the ends of epochs or every n steps, and the end."""
    value = st.sampled_from([NAN, math.inf, -math.inf, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    epochs, steps = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    freq, every = draw(st.integers(1, 2)), draw(st.none() | st.integers(1, 3))
    moments, step = [], 0
    for epoch in range(epochs):
        for batch in range(1, steps + 1):
            step += 1
            moments.append(Moment("on_batch_end", step, epoch, batch, {"loss": draw(value)}))
            closes = batch == steps
            if (step % every == 0) if every else (closes and (epoch + 1) % freq == 0):
                moments.append(Moment("on_eval_end", step, epoch, batch, {"val_loss": draw(value)}, closes))
        moments.append(Moment("on_epoch_end", step, epoch, steps, {"loss": draw(value)}))
    moments.append(Moment("on_train_end", step, epochs - 1, 0, {}))
    return moments


@st.composite
def arguments(draw):
    """Arguments that fit together."""
    given = {
        "monitor": draw(st.sampled_from(["loss", "val_loss"])),
        "save_best_only": draw(st.booleans()),
        "save_weights_only": draw(st.booleans()),
        "mode": draw(st.sampled_from(["auto", "min", "max"])),
        "initial_value_threshold": draw(st.sampled_from([None, 0.5])),
        "keep_best": draw(st.sampled_from([None, 2])),
    }
    cadence = draw(st.sampled_from(["epoch", "epochs", "steps", "minutes"]))
    match cadence:
        case "epochs":
            given["every_n_epochs"] = draw(st.integers(2, 3))
        case "steps":
            given["save_freq"] = draw(st.integers(1, 4))
        case "minutes":
            given["every_minutes"] = draw(st.sampled_from([0.5, 2.0]))  # a step takes one
    given["save_at_end"] = not given["save_best_only"] and draw(st.booleans())
    return given


def is_due(moment, given, saved_at):
    """Whether a save is due, if its value is good enough."""
    by_step, minutes = given.get("save_freq"), given.get("every_minutes")
    by_epoch = by_step is None and minutes is None
    if minutes is not None:
        due = moment.step - saved_at >= minutes
    elif by_step is not None:
        due = moment.step % by_step == 0
    else:
        due = (moment.epoch + 1) % given.get("every_n_epochs", 1) == 0
    match moment.hook:
        case "on_batch_end":
            return due and not by_epoch
        case "on_eval_end":
            return due and (by_epoch or given["save_best_only"]) and not (by_epoch and moment.closes)
        case "on_epoch_end":
            return due and by_epoch
        case "on_train_end":
            return given["save_at_end"]
    return due


def beats(value, best, mode):
    """Whether a value is better than the best so far, None for none."""
    return not math.isnan(value) and (best is None or (value > best if mode == "max" else value < best))


def reference(moments, template, given):
    """What is saved: place in the run, name, and the value that ranks it."""
    monitor = given["monitor"]
    by_epoch = given.get("save_freq") is None and given.get("every_minutes") is None
    compares = given["save_best_only"] or given["keep_best"] is not None
    best, saved_at, used = given["initial_value_threshold"], 0, -1
    last, seen, means, saves = (NAN, -1), {}, {}, []
    for at, moment in enumerate(moments):
        if moment.hook == "on_batch_end":  # values of batches and of epochs go by the same name
            visible = dict(moment.new)
        else:
            means |= moment.new
            visible = dict(means)
        seen |= moment.new if moment.hook == "on_batch_end" else visible
        if monitor in moment.new and moment.step > last[1] and (moment.hook != "on_batch_end" or not by_epoch):
            last = (moment.new[monitor], moment.step)
        due = is_due(moment, given, saved_at)
        if due and given["save_best_only"]:
            if not beats(last[0], best, given["mode"]):
                continue
            best = last[0]
        if due:
            saved_at = moment.step
            ranks = last[0] if last[1] > used or last[1] == moment.step else NAN
            used = last[1]
            known = {"loss": NAN, "val_loss": NAN} | (visible if by_epoch or moment.hook != "on_batch_end" else seen)
            place = {"epoch": moment.epoch + 1, "batch": moment.batch, "step": moment.step}
            saves.append((at, template.format(**place, **known), ranks if compares else None))
    return saves


def drive(callback, moments):
    """What the callback saves when its hooks run one by one."""
    chain = jc.chain(callback)
    state, values, reported, saves = chain.init(), {"loss": None, "val_loss": None}, {"loss": -1, "val_loss": -1}, []
    for at, moment in enumerate(moments):
        values |= moment.new if moment.hook != "on_batch_end" else {}
        reported |= dict.fromkeys(moment.new if moment.hook != "on_batch_end" else (), moment.step)
        batch = moment.hook == "on_batch_end"
        metrics = jc.Metrics(
            moment.new if batch else values,
            step=moment.step,
            epoch=moment.epoch,
            reported=None if batch else reported,
            closes_epoch=moment.closes,
            host={"elapsed": 60.0 * moment.step},
        )
        if moment.hook not in chain.hooks():
            continue
        state, actions = getattr(chain, moment.hook)(state, metrics)
        for action in jc.fired(actions):
            name = jc.actions.fill(action, step=moment.step, epoch=moment.epoch, batch=moment.batch)
            saves.append((at, name, None if action.value is None else float(action.value)))  # pyright: ignore[reportAttributeAccessIssue]
            assert action.what == ("model" if callback.save_weights_only else "state")  # pyright: ignore[reportAttributeAccessIssue]
    return saves


TEMPLATES = ["{epoch:02d}-{step}", "{epoch}.{batch}", "{step}-{val_loss:.2f}", "{epoch:03d}-{loss:.1f}-{val_loss:.1f}"]


@settings(max_examples=200)
@given(moments=runs(), template=st.sampled_from(TEMPLATES), given_=arguments())
def test_it_saves_what_keras_would_under_the_same_names_and_at_each_validation(moments, template, given_):
    saves = drive(jc.ModelCheckpoint(template, **given_), moments)
    np.testing.assert_equal(saves, reference(moments, template, given_))  # NaN equals NaN here


REFUSED = {
    "no path": ({"filepath": ""}, ValueError, "filepath is an empty string, expected a path"),
    "no template": ({"filepath": "{epoch"}, ValueError, "is not a valid template"),
    "freq": ({"save_freq": "batch"}, ValueError, "must be 'epoch' or a number of steps, got 'batch'"),
    "freq 0": ({"save_freq": 0}, ValueError, "save_freq must be a whole number of at least 1, got 0"),
    "keep 0": ({"keep_best": 0}, ValueError, "keep_best must be a whole number of at least 1, got 0"),
    "latest 0": ({"max_to_keep": 0}, ValueError, "max_to_keep must be a whole number of at least 1"),
    "minutes": ({"every_minutes": -1}, ValueError, "every_minutes must be a finite number of at least 0, got -1"),
    "two": ({"save_freq": 3, "every_minutes": 1}, ValueError, "save_freq=3 and every_minutes=1.0 conflict"),
    "end": ({"save_best_only": True, "save_at_end": True}, ValueError, "would save the last weights among the best"),
    "mode": ({"mode": "up"}, ValueError, "mode must be one of"),
    "auto": ({"monitor": "val_x", "keep_best": 1}, ValueError, "cannot tell from the name 'val_x'"),
    "threshold": ({"initial_value_threshold": "a"}, ValueError, "initial_value_threshold must be a finite number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_checked(case):
    given, kind, said = REFUSED[case]
    with pytest.raises(kind, match=said):
        jc.ModelCheckpoint(**{"filepath": "a"} | given)


def test_minutes_count_from_the_last_save():
    chain = jc.chain(jc.ModelCheckpoint("{step}", every_minutes=2))
    state, saved = chain.init(), []
    for step in range(1, 8):  # a step takes a minute
        metrics = jc.Metrics({"loss": 0.5}, step=step, host={"elapsed": 60.0 * step})
        state, actions = chain.on_batch_end(state, metrics)
        saved += [jc.actions.fill(action, step=step) for action in jc.fired(actions)]
    assert saved == ["2", "4", "6"]


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_without_a_step_saves_nothing_at_its_end(step):
    chain = jc.chain(jc.ModelCheckpoint("a", save_at_end=True))
    _, actions = chain.on_train_end(chain.init(), jc.Metrics({"loss": 0.5}, step=step))
    assert len(jc.fired(actions)) == step


def test_a_validation_in_the_middle_of_an_epoch_that_does_not_count_saves_nothing():
    chain = jc.chain(jc.ModelCheckpoint("{step}", save_best_only=True, every_n_epochs=2))
    state, saved = chain.init(), []
    for step, epoch in [(1, 0), (3, 1)]:
        metrics = jc.Metrics({"val_loss": 1.0 / step}, step=step, epoch=epoch, closes_epoch=False)
        state, actions = chain.on_eval_end(state, metrics)
        saved += [jc.actions.fill(action, step=step) for action in jc.fired(actions)]
    assert saved == ["3"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_saves_are_ranked_by_its_mode(mode):
    chain = jc.chain(jc.ModelCheckpoint("a", keep_best=1, mode=mode))
    _, (save,) = chain.on_epoch_end(chain.init(), jc.Metrics({"val_loss": 0.5}))
    assert save.mode == mode
