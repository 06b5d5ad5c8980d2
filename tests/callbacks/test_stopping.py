"""`StoppingCallback`: no callback stops a run before its minimum of epochs and steps."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import jaxcb as jc
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.utils import as_actions
from jaxcb._src.testing.drive import Subject
from jaxcb._src.testing.registry import builtin_examples
from jaxcb._src.testing.streams import Stream, streams

THAT_STOP = [c for c in builtin_examples() if isinstance(c, jc.callbacks.StoppingCallback)]
ALONE = [c for c in THAT_STOP if not isinstance(c, jc.PopulationCallback)]
IDS = [f"{type(c).__name__}-{i}" for i, c in enumerate(ALONE)]


def stops(seen):
    return [np.asarray(a.when) for a in as_actions(seen["actions"]) if isinstance(a, Stop)]


def test_every_callback_that_stops_has_a_minimum():
    """Of all built-in callbacks, those that return a `Stop`, found by calling their hooks."""

    def can_stop(callback):
        subject, found = Subject(callback), []
        stream = dict.fromkeys(subject.names, (0.0,))
        (row,) = subject.row_list(Stream(stream, (True,), (1,)))
        for seen in subject.run_row(callback, subject.init(), row)[1].values():
            found += stops(seen)
        return bool(found)

    single = [c for c in builtin_examples() if not isinstance(c, jc.PopulationCallback)]
    assert {type(c) for c in single if can_stop(c)} == {type(c) for c in ALONE}
    assert {type(c).__name__ for c in THAT_STOP} - {type(c).__name__ for c in ALONE} == {
        "MedianStopping",
        "SuccessiveHalving",
    }


@pytest.mark.everyday(6)
@pytest.mark.parametrize("callback", ALONE, ids=IDS)
@settings(max_examples=4)
@given(data=st.data(), epochs=st.integers(0, 4), steps=st.integers(0, 8))
def test_nothing_stops_before_and_the_same_stops_after(callback, data, epochs, steps):
    """A minimum masks the stops and changes no other decision; `Timer` alone remembers whether it has stopped."""
    free = callback.replace(min_epochs=None, min_steps=None)
    held = callback.replace(min_epochs=epochs, min_steps=steps)
    subject = Subject(free)
    stream = data.draw(streams(subject.names, min_size=2, max_size=6))
    rows = subject.row_list(stream)
    without, within = list(subject.eager_moments(rows)), list(Subject(held, subject.names).eager_moments(rows))
    for row, one, other in zip(rows, without, within, strict=True):
        for hook, seen in one.items():
            now = row.now
            may = int(now.epoch) + bool(now.closes_epoch) >= epochs and int(now.step) >= steps
            for a, b in zip(stops(seen), stops(other[hook]), strict=True):
                assert not b or may
                if not isinstance(callback, jc.callbacks.Timer):
                    assert bool(b) == (bool(a) and may)


@pytest.mark.long
def test_members_are_not_stopped_before():
    losses = {"val_loss": jnp.array([0.3, 0.1, 0.2])}
    for make in (jc.callbacks.MedianStopping, jc.callbacks.SuccessiveHalving):
        for least, expected in ((None, True), (3, False)):
            callback = make(min_steps=least, **({"warmup": 0} if make is jc.callbacks.MedianStopping else {}))
            state = jax.tree.map(lambda x: jnp.broadcast_to(x, (3,)), callback.init())
            seen = jc.Metrics(losses, alive=jnp.ones(3, bool), member=jnp.arange(3), step=2)
            assert bool(callback.on_epoch_end(state, seen)[1].when.any()) == expected


LOSS = lambda w, b: jnp.mean(w * 0 + b)  # noqa: E731
RUN = {"epochs": 8, "batch_size": 1, "verbose": 0}


@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize(
    ("callback", "step"),
    [
        (jc.EarlyStopping("loss", patience=1, min_epochs=5), 10),
        (jc.EarlyStopping("loss", patience=1, patience_in="steps", min_epochs=2), 5),
        (jc.EarlyStopping("loss", patience=1, min_steps=7), 8),
        (jc.callbacks.Timer(0, min_epochs=3), 6),
        (jc.callbacks.Timer(0, min_steps=5), 5),
    ],
)
def test_a_run_goes_on_until_then(callback, step, executor):
    how = {"optimizer": optax.sgd(0.0), "callbacks": [callback], "execution": jc.Execution(executor=executor)}
    result = jc.fit(jnp.zeros(()), LOSS, jnp.ones(2), **RUN, **how)
    assert int(result.state.step) == step


def test_a_nan_before_the_minimum_stops_when_it_is_still_there():
    data = jnp.array([1.0, jnp.nan])
    result = jc.fit(
        jnp.zeros(()), LOSS, data, optimizer=optax.sgd(0.0), shuffle=False,
        callbacks=[jc.TerminateOnNaN(min_epochs=2)], **RUN,
    )  # fmt: skip
    assert int(result.state.step) == 6  # the NaN of step 2 and step 4 came before


@pytest.mark.long
def test_a_minimum_is_swept_as_a_number():
    result = jc.sweep(
        lambda seed: jnp.zeros(()), LOSS, jnp.ones(2), optimizer=optax.sgd(0.0),
        over={"callbacks.EarlyStopping.min_epochs": [0, 4, 6]},
        callbacks=[jc.EarlyStopping("loss", patience=1)], **RUN,
    )  # fmt: skip
    assert [result.member(i).stopped_epoch for i in range(3)] == [1, 3, 5]


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="Timer: min_epochs must be a whole number of at least 0, got -1"):
        jc.callbacks.Timer(1.0, min_epochs=-1)

    class Own(jc.callbacks.StoppingCallback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Stop(self.may_stop(metrics))

    with pytest.raises(ValueError, match="Own: min_steps must be"):
        Own(min_steps=0.5)
    assert jc.replay([Own(min_epochs=2)], {"loss": [1.0, 1.0, 1.0]}).stopped_epoch == 1


@pytest.mark.parametrize(("limit", "words"), [(0.125, "0.125 s"), (86400.5, "86400.5 s"), (5400, "5400 s")])
def test_a_timer_says_its_limit_as_it_was_given(limit, words):
    timer = jc.callbacks.Timer(limit)
    _, stop = timer.on_batch_end(timer.init(), jc.Metrics({}, host={"elapsed": 1e6}))
    text = jc.actions.fill(stop.replace(values={**stop.values, "elapsed": 1e6}))
    assert f"the time limit of {words} was reached" in text
