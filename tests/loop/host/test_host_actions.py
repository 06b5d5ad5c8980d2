"""Functions on the host, amid a compiled run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from loop._runs import fit, make_data

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
X = np.linspace(-1, 1, 7, dtype=np.float32)[:, None]  # 3 steps an epoch


def loss_fn(params, batch):
    return jnp.mean((params["w"] * batch - 1.0) ** 2)


def run(executor, callbacks, **changes):
    given = {"optimizer": optax.sgd, "learning_rate": 0.1, "batch_size": 3, "epochs": 2, "validation_data": X} | changes
    return jc.fit(
        {"w": jnp.ones(())}, loss_fn, X, **grouped(executor=executor, callbacks=callbacks, verbose=0, **given)
    )


class Every(jc.Callback):
    """Calls one function at every moment that there is."""

    fn: object = jc.static()

    def _call(self, state, metrics):
        return state, jc.actions.Call(self.fn, dict(metrics.values))

    on_train_begin = on_epoch_begin = on_batch_begin = on_batch_end = _call
    on_eval_begin = on_eval_end = on_epoch_end = on_train_end = _call


KERAS_ORDER = [
    ("train begin",),
    *[
        moment
        for epoch in range(2)
        for moment in [
            ("epoch begin", epoch),
            *[m for batch in range(3) for m in [("batch begin", batch), ("batch end", batch)]],
            ("epoch end", epoch),
        ]
    ],
    ("train end",),
]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_lambda_callback_is_called_as_keras_calls_it(executor):
    seen, logs_of = [], {}

    def note(name):
        def fn(*args):
            *counter, logs = args
            seen.append((name, *counter))
            logs_of[name] = logs

        return fn

    callback = jc.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: note("epoch begin")(epoch, logs),
        on_epoch_end=lambda epoch, logs: note("epoch end")(epoch, logs),
        on_train_begin=lambda logs: note("train begin")(logs),
        on_train_end=lambda logs: note("train end")(logs),
        on_train_batch_begin=lambda batch, logs: note("batch begin")(batch, logs),
        on_train_batch_end=lambda batch, logs: note("batch end")(batch, logs),
    )
    result = run(executor, [callback])
    assert seen == KERAS_ORDER
    assert all(type(v) is float for logs in logs_of.values() for v in logs.values())
    assert logs_of["epoch end"]["val_loss"] == pytest.approx(float(result.history["val_loss"][-1]))
    assert logs_of["epoch end"]["loss"] == pytest.approx(float(result.history["loss"][-1]))
    assert "loss" in logs_of["batch end"]
    assert "val_loss" not in logs_of["batch end"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_live_run_tells_where_it_stands_and_its_state_stays_valid(executor):
    states = []

    def note(run):
        states.append((run.step, run.epoch, run.state, run.model))

    result = run(executor, [Every(note)])
    assert len(states) == 2 + 2 * (1 + 3 * 2 + 3)
    assert [int(s.step) for _, _, s, _ in states][-1] == int(result.state.step) == 6
    weights = [float(s.params["w"]) for _, _, s, _ in states]  # donated buffers would be gone
    assert weights[0] == 1.0
    assert weights[-1] == float(result.params["w"])
    assert [float(m["w"]) for _, _, _, m in states] == weights
    ends = [(step, epoch) for step, epoch, s, _ in states if step == int(s.step)]
    assert ends[0] == (0, 0)
    assert ends[-1] == (6, 1)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_host_actions_change_no_result(executor):
    watched = run(executor, [Every(lambda run: None)])
    alone = run(executor, [])
    np.testing.assert_allclose(watched.params["w"], alone.params["w"], rtol=1e-6)
    np.testing.assert_allclose(watched.history["val_loss"], alone.history["val_loss"], rtol=1e-6)


class CallAt(jc.Callback):
    """Calls a function after one step, or at one epoch's end."""

    fn: object = jc.static()
    step: int = -1
    epoch: int = -1
    begin: int = -1

    def on_epoch_begin(self, state, metrics):
        return state, jc.actions.Call(self.fn, when=metrics.epoch == self.begin)

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Call(self.fn, when=metrics.step == self.step)

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Call(self.fn, when=metrics.epoch == self.epoch)


STOPS = {
    "amid an epoch": ({"step": 4}, [3, 4], 1),
    "at an epoch's last step": ({"step": 3}, [3], 0),
    "at an epoch's end": ({"epoch": 0}, [3], 0),
    "at an epoch's begin": ({"begin": 1}, [3], 1),
}


def asks_to_stop(run):
    run.stop("seen enough")


HARD = ("amid an epoch", "at an epoch's last step")  # for streams: what was handed out and not used


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("where", "streamed"), [(w, False) for w in STOPS] + [(w, True) for w in HARD])
def test_a_host_function_can_stop_the_run(executor, streamed, where):
    at, steps, epoch = STOPS[where]
    changes = {"batch_size": None} if streamed else {}
    data = [X[:3], X[3:6], X[6:]] if streamed else X
    result = jc.fit(
        {"w": jnp.ones(())},
        loss_fn,
        data,
        **grouped(
            validation_data=X,
            executor=executor,
            callbacks=[CallAt(asks_to_stop, **at)],
            **({"optimizer": optax.sgd, "learning_rate": 0.1, "batch_size": 3, "epochs": 5, "verbose": 0} | changes),
        ),
    )
    assert result.history.step.tolist() == steps
    assert result.history.reported("val_loss").all()
    assert (result.stop_reason, result.stopped_epoch) == ("CallAt: seen enough", epoch)


class Mine(Exception):
    pass


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end", "on_train_begin"])
def test_what_a_function_raises_names_its_callback_and_moment(hook):
    def fails(*args):
        raise Mine("oh")

    with pytest.raises(Mine, match="oh") as caught:
        run("looped", [jc.LambdaCallback(**{hook: fails}, name="fragile")])
    note = "\n".join(caught.value.__notes__)
    assert f"fragile.{hook.replace('_train_batch', '_batch')}" in note
    assert "in epoch 1 at step" in note


def test_logs_are_performed_before_the_host_actions_of_the_same_moment(tmp_path):
    lines = []
    path = tmp_path / "log.csv"
    run(
        "looped",
        [
            jc.LambdaCallback(on_epoch_end=lambda epoch, logs: lines.append(path.read_text().count("\n"))),
            jc.CSVLogger(path),
        ],
    )
    assert lines == [2, 3]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_snapshot_taken_at_the_best_epoch_is_what_is_restored(executor):
    weights = {}

    def keep(run):
        weights[run.epoch] = jax.tree.map(np.asarray, run.state.params)

    class Keep(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Call(keep)

    # a rate so high that the loss soon rises
    result = fit(
        executor,
        learning_rate=1.0,
        epochs=8,
        callbacks=[jc.EarlyStopping(patience=1, restore_best_weights=True), Keep()],
        data=make_data(),
    )
    state = result.callback_states["EarlyStopping"]
    best = int(state.best_epoch)
    assert result.stopped_epoch == best + 1
    assert best == int(np.argmin(result.history["val_loss"]))
    jax.tree.map(np.testing.assert_array_equal, result.params, weights[best])
    assert not np.array_equal(weights[best]["w"], weights[best + 1]["w"])
    # the run's named weights are still there, in buffers of their own
    jax.tree.map(
        np.testing.assert_array_equal, result.state.weights["EarlyStopping/best"].value["params"], weights[best]
    )


@pytest.mark.parametrize("executor", EXECUTORS)
def test_terminate_on_nan_may_raise_at_once(executor):
    """As Keras's `raise_error=True`: no hook runs any more."""
    ended = []
    callbacks = [
        jc.LearningRateScheduler(lambda epoch: jnp.where(epoch < 1, 0.1, jnp.inf)),
        jc.TerminateOnNaN(raise_error=True),
        jc.LambdaCallback(on_epoch_end=lambda epoch, logs: ended.append(epoch), on_train_end=ended.append),
    ]
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) at step 5 \(epoch 2\).* raise_error=True") as caught:
        run(executor, callbacks, epochs=3)
    assert ended == [0]
    assert "TerminateOnNaN.on_batch_end" in caught.value.__notes__[0]
