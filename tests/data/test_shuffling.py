"""The order of moments, as in Keras: in both executors, whatever ends the run."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped

import jaxcb as jc
from jaxcb._src.core.callback import HOOKS

EXECUTORS = ("looped", "stepped")
NEVER = 1000


class Moment(jc.actions.LogAction):
    epoch: int
    step: int
    hook: str = jc.static()


SEEN = []


@jc.writers.writer(Moment)
class MomentWriter(jc.writers.Writer):
    def write(self, record):
        action = record.action
        assert action.hook == record.hook
        assert (int(action.epoch), int(action.step)) == (record.epoch, record.step)
        SEEN.append((record.hook.removeprefix("on_"), record.epoch, record.step))


def record(hook):
    def run(state, metrics):
        return state, Moment(metrics.epoch, metrics.step, hook)

    return run


RECORDER = jc.make_callback(name="recorder", **{h: record(h) for h in HOOKS if h != "on_before_update"})


class StopAt(jc.Callback):
    """Stops at one moment; -1 for the run's begin."""

    train_begin: int = 0
    epoch_begin: int = NEVER
    step: int = NEVER
    eval_end: int = NEVER
    epoch_end: int = NEVER

    def on_train_begin(self, state, metrics):
        return state, jc.actions.Stop(jnp.asarray(self.train_begin) == 1, "at the train's begin")

    def on_epoch_begin(self, state, metrics):
        return state, jc.actions.Stop(metrics.epoch == self.epoch_begin, "at the epoch's begin")

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics.step == self.step, "at the step")

    def on_eval_end(self, state, metrics):
        return state, jc.actions.Stop(metrics.epoch == self.eval_end, "at the validation")

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics.epoch == self.epoch_end, "at the epoch's end")


X = np.linspace(-1, 1, 7, dtype=np.float32)[:, None]  # 3 steps an epoch: 3, 3 and 1 rows


def loss_fn(params, batch):
    return jnp.mean((params["w"] * batch - 1.0) ** 2)


def run(executor, stop, *, epochs=3, validation_data=X, **changes):
    SEEN.clear()
    given = {"optimizer": optax.sgd, "learning_rate": 0.1, "batch_size": 3, "verbose": 0} | changes
    result = jc.fit(
        {"w": jnp.zeros(())},
        loss_fn,
        changes.pop("data", X),
        **grouped(
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[RECORDER, stop],
            executor=executor,
            **{k: v for k, v in given.items() if k != "data"},
        ),
    )
    return result, list(SEEN)


def keras(epochs, *, steps=3, stop_step=None, stop_epoch=None):
    """The order of Keras's fit, told in a plain loop."""
    out, step = [("train_begin", 0, 0)], 0
    for epoch in range(epochs):
        out.append(("epoch_begin", epoch, step))
        for _ in range(steps):
            out.append(("batch_begin", epoch, step))
            step += 1
            out.append(("batch_end", epoch, step))
            if step == stop_step:
                break
        out += [(name, epoch, step) for name in ("eval_begin", "eval_end", "epoch_end")]
        if step == stop_step or epoch == stop_epoch:
            break
    return [*out, ("train_end", epoch, step)]


CASES = {
    "to the end": (StopAt(), keras(3), None),
    "amid an epoch": (StopAt(step=5), keras(3, stop_step=5), "StopAt: at the step"),
    "at an epoch's last step": (StopAt(step=6), keras(3, stop_step=6), "StopAt: at the step"),
    "at the first step": (StopAt(step=1), keras(3, stop_step=1), "StopAt: at the step"),
    "at a validation": (StopAt(eval_end=1), keras(3, stop_epoch=1), "StopAt: at the validation"),
    "at an epoch's end": (StopAt(epoch_end=0), keras(3, stop_epoch=0), "StopAt: at the epoch's end"),
    "at the train's begin": (
        StopAt(train_begin=1),
        [("train_begin", 0, 0), ("train_end", 0, 0)],
        "StopAt: at the train's begin",
    ),
    "at the first epoch's begin": (
        StopAt(epoch_begin=0),
        [("train_begin", 0, 0), ("epoch_begin", 0, 0), ("train_end", 0, 0)],
        "StopAt: at the epoch's begin",
    ),
    "several": (
        StopAt(eval_end=0, epoch_end=0, step=3),
        keras(3, stop_step=3),
        "StopAt: at the step; StopAt: at the validation; StopAt: at the epoch's end",
    ),
}


# the stepped executor freezes a run where it stops; what comes after is common to both
BOTH = ("to the end", "amid an epoch", "at an epoch's last step", "several")


@pytest.mark.parametrize(
    ("executor", "case"), [("looped", case) for case in CASES] + [("stepped", case) for case in BOTH]
)
def test_moments_come_in_keras_order(executor, case):
    stop, expected, reason = CASES[case]
    result, seen = run(executor, stop)
    assert seen == expected
    assert result.stop_reason == reason
    assert result.stopped_epoch == (None if reason is None else expected[-1][1])
    assert int(result.state.step) == expected[-1][2]
    assert len(result.history.step) == sum(name == "epoch_end" for name, _, _ in expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_stop_at_a_later_epochs_begin_runs_no_step_of_it(executor):
    result, seen = run(executor, StopAt(epoch_begin=1))
    assert seen == [*keras(1)[:-1], ("epoch_begin", 1, 3), ("train_end", seen[-1][1], 3)]
    assert result.history.step.tolist() == [3]
    assert result.stopped_epoch == 1


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("length", [1, 2])
def test_the_length_of_a_call_changes_no_order(executor, length):
    assert run(executor, StopAt(), steps_per_execution=length)[1] == keras(3)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("stop", [StopAt(), StopAt(step=5), StopAt(step=6)], ids=["end", "amid", "last step"])
def test_streams_come_in_the_same_order(executor, stop):
    batches = [X[:3], X[3:6], X[6:]]
    _, seen = run(executor, stop, data=batches, batch_size=None, validation_data=[X[:4], X[4:]])
    at = int(stop.step)
    assert seen == keras(3, stop_step=None if at == NEVER else at)


# What each moment sees


@pytest.fixture(scope="module")
def names():
    captured = {}

    def capture(hook):
        def look(state, metrics):
            captured[hook] = (set(metrics), metrics.total_steps)
            return state, None

        return look

    callback = jc.make_callback(**{h: capture(h) for h in HOOKS})
    jc.fit(
        {"w": jnp.zeros(())},
        loss_fn,
        X,
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=1,
        validation_data=X,
        callbacks=[callback],
        verbose=0,
    )
    return {hook: seen for hook, (seen, _) in captured.items()}


RATES = {"learning_rate", "base_learning_rate"}


def test_each_moment_sees_what_is_known_then(names):
    for hook in ("on_train_begin", "on_epoch_begin", "on_batch_begin"):
        assert names[hook] == RATES
    for hook in ("on_before_update", "on_batch_end"):
        assert names[hook] == RATES | {"loss"}
    for hook in ("on_eval_begin", "on_eval_end", "on_epoch_end", "on_train_end"):
        assert names[hook] == RATES | {"loss", "val_loss"}
