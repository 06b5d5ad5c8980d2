"""What a review found: each was wrong once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _patience import PATIENCE
from flax import nnx
from loop._runs import fit, loss_fn, make_data, make_params

import jaxcb as jc


class Epochs:
    """Epochs of different lengths, in one buffer that is used again for each batch."""

    def __init__(self, lengths):
        self.lengths, self.walk, self.told = lengths, 0, []

    def set_epoch(self, epoch):
        self.told.append(epoch)

    def __iter__(self):
        length = self.lengths[self.walk % len(self.lengths)]
        self.walk += 1
        buffer = np.zeros((2, 1), np.float32)
        for i in range(length):
            buffer[:] = i
            yield buffer


def mean_loss(params, batch):
    return params["w"] * 0 + jnp.mean(batch)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_streams_of_uneven_epochs_close_each_epoch_at_its_own_length_when_records_fill_up(executor, monkeypatch):
    monkeypatch.setattr("jaxcb._src.loop.compiled.record_buffer._MOST", 2)

    class Line(jc.actions.LogAction):
        pass

    @jc.writers.writer(Line)
    class Lines(jc.writers.Writer):
        def write(self, record):
            seen.append(record.step)

    seen = []
    data = Epochs([6, 3, 6, 3])
    result = jc.fit(
        {"w": jnp.zeros(())},
        mean_loss,
        data,
        optimizer=optax.sgd(0.1),
        epochs=4,
        callbacks=[jc.make_callback(on_batch_end=lambda state, metrics: (state, Line()))],
        verbose=0,
        execution=jc.Execution(executor=executor),
    )
    assert result.history.step.tolist() == [6, 9, 15, 18]
    assert seen == list(range(1, 19))
    np.testing.assert_allclose(result.history["loss"], [2.5, 1.0, 2.5, 1.0])
    assert data.told[:4] == [0, 1, 2, 3]


def test_python_integers_of_a_schedule_do_not_overflow():
    for schedule in (
        lambda epoch: 0.1 / 2**epoch,
        lambda epoch: 10 ** -(epoch + 1),
        lambda epoch: 0.1 / (1 + epoch**7),
    ):
        callback = jc.LearningRateScheduler(schedule)
        for epoch in (0, 3, 31, 32, 40):
            _, (action,) = jax.jit(callback.on_epoch_begin)((), jc.Metrics({}, epoch=epoch))
            np.testing.assert_allclose(action.value, schedule(epoch), rtol=1e-5, atol=1e-30)


def test_restoring_the_optimizer_keeps_what_callbacks_asked_of_the_rate():
    class RollBack(jc.Callback):
        def slots(self):
            return {"good": "optimizer"}

        def on_epoch_end(self, state, metrics):
            return state, (
                jc.actions.Snapshot("good", when=metrics.epoch == 0),
                jc.actions.ScaleLearningRate(0.5),
                jc.actions.Restore("good"),
            )

    result = fit(callbacks=[RollBack()], validation_data=None, epochs=3)
    np.testing.assert_allclose(result.history["learning_rate"], [0.05, 0.025, 0.0125])


def test_a_validation_draws_keys_of_its_own():
    def noisy(params, batch, key):
        return params["w"] * 0 + jax.random.normal(key)

    x = np.zeros((4, 1), np.float32)
    result = jc.fit(
        {"w": jnp.zeros(())}, noisy, x, optimizer=optax.sgd(0.1), epochs=3, batch_size=4, validation_data=x, verbose=0
    )
    assert not set(result.history["loss"].tolist()) & set(result.history["val_loss"].tolist())


def test_a_module_is_up_to_date_in_host_actions_and_after_an_error():
    class Line(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.layer(x)

    model = Line(nnx.Rngs(0))
    seen = [model.layer.kernel.get_value().copy()]

    def look(epoch, logs):
        seen.append(model.layer.kernel.get_value().copy())
        if epoch == 2:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        jc.fit(
            model,
            lambda model, batch: jnp.mean((model(batch[0]) - batch[1]) ** 2),
            make_data(),
            optimizer=optax.adam,
            learning_rate=0.05,
            epochs=5,
            callbacks=[jc.LambdaCallback(on_epoch_end=look)],
            verbose=0,
        )
    assert len({np.asarray(kernel).tobytes() for kernel in seen}) == 4
    assert np.array_equal(model.layer.kernel.get_value(), seen[-1])


def test_what_was_computed_is_recorded_when_the_data_fails(tmp_path):
    class Fails:
        walks = 0

        def __iter__(self):
            self.walks += 1
            if self.walks == 2:
                raise OSError("no such shard")
            yield from [np.ones((2, 1), np.float32)] * 3

    with pytest.raises(OSError, match="no such shard"):
        jc.fit(
            {"w": jnp.zeros(())}, mean_loss, Fails(), optimizer=optax.sgd(0.1), epochs=3, run_dir=tmp_path, verbose=0
        )
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("length", [1, None])
def test_a_stop_before_the_data_is_used_up_is_a_stop(length):
    batches = (np.ones((2, 1), np.float32) for _ in range(10))
    stop = jc.make_callback(on_batch_end=lambda state, metrics: (state, jc.actions.Stop(metrics.step >= 3, "enough")))
    result = jc.fit(
        {"w": jnp.zeros(())},
        mean_loss,
        batches,
        optimizer=optax.sgd(0.1),
        steps=20,
        callbacks=[stop],
        verbose=0,
        execution=jc.Execution(steps_per_execution=length),
    )
    assert result.history.step.tolist() == [3]


def test_a_field_that_is_no_number_names_the_cure():
    class Watch(jc.Callback):
        monitor: str = "loss"

    class Loud(jc.Callback):
        loud: bool = True

    with pytest.raises(jc.errors.CallbackError, match=r"Watch.monitor is a str, 'loss'.*monitor: str = jc.static"):
        jc.chain(Watch())
    with pytest.raises(jc.errors.CallbackError, match=r"Loud.loud is a bool.*jc.static"):
        jc.chain(Loud())


def test_the_first_two_parameters_of_a_loss_are_its_own():
    import functools

    def named_state(state, key):
        return loss_fn(state, key)

    def flagged(params, batch, train):
        assert train is False
        return loss_fn(params, batch)

    for loss in (named_state, functools.partial(flagged, train=False)):
        step = jc.Step(loss)
        state = jc.TrainState.create(params=make_params(), tx=optax.sgd(0.1))
        step(state, make_data())


def test_a_text_that_cannot_be_filled_is_found_before_the_first_step():
    stop = jc.make_callback(
        name="odd", on_epoch_end=lambda state, m: (state, jc.actions.Stop(m["loss"] < 0, "loss {loss:d}"))
    )
    with pytest.raises(ValueError, match=r"odd: the text of its Stop, 'loss \{loss:d\}', cannot be formatted"):
        fit(callbacks=[stop], validation_data=None)


def test_optax_multi_steps_and_optimizers_that_want_the_loss_are_taken():
    for optimizer in (optax.MultiSteps(optax.sgd(0.1), 2), optax.polyak_sgd()):
        result = fit(optimizer=optimizer, learning_rate=None, callbacks=None, validation_data=None, epochs=2)
        assert result.history["loss"][-1] < result.history["loss"][0]


def test_keras_lists_of_arrays_and_halves_of_data_are_refused():
    x, y = make_data()
    with pytest.raises(jc.errors.DataError, match=r"A list is an iterable of batches.*\(x, y\)"):
        fit(data=[x, y], batch_size=None)
    with pytest.raises(jc.errors.DataError, match="on the first rows only"):
        fit(shuffle=False, steps_per_epoch=2)
    with pytest.raises(jc.errors.DataError, match="leaves nothing to train on"):
        fit(batch_size=100, drop_remainder=True)


def test_a_ready_made_optimizer_says_how_it_is_scaled(capsys):
    callbacks = [jc.ReduceLROnPlateau("loss", patience=1)]
    fit(optimizer=optax.sgd(0.1), learning_rate=None, callbacks=callbacks, validation_data=None, epochs=1, verbose=2)
    assert "optimizer was passed as an instance" in capsys.readouterr().out


def test_an_overwritten_run_leaves_no_history_of_the_last_one(tmp_path):
    fit(run_dir=tmp_path, epochs=2, validation_data=None, callbacks=[])

    def fails(epoch, logs):
        raise OSError("early")

    with pytest.raises(OSError, match="early"):
        fit(
            run_dir=tmp_path,
            overwrite=True,
            epochs=2,
            validation_data=None,
            callbacks=[jc.LambdaCallback(on_epoch_begin=fails)],
        )
    assert not (tmp_path / "history.csv").exists()


def test_the_results_of_a_slow_stream_are_told_while_it_is_waited_for():
    import threading

    told = threading.Event()

    class Told(jc.actions.LogAction):
        pass

    @jc.writers.writer(Told)
    class Tells(jc.writers.Writer):
        def write(self, record):
            told.set()

    def slow():
        yield np.ones((2, 1), np.float32)
        yield np.ones((2, 1), np.float32)
        # the run must tell of what it did before it is given more
        assert told.wait(PATIENCE), "nothing was told"
        yield from itertools.repeat(np.ones((2, 1), np.float32), 3)

    jc.fit(
        {"w": jnp.zeros(())},
        mean_loss,
        slow(),
        optimizer=optax.sgd(0.1),
        steps=5,
        steps_per_epoch=5,
        callbacks=[jc.make_callback(on_batch_end=lambda state, metrics: (state, Told()))],
        verbose=0,
        execution=jc.Execution(steps_per_execution=1),
    )


def test_what_is_static_in_a_callback_may_hold_arrays():
    """A holder that fills up with arrays as the run goes on has no simple equality, and needs none."""

    class Keep(jc.Callback):
        kept: dict = jc.static()

        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Call(self.keep)

        def keep(self, run):
            self.kept[run.epoch] = np.array(run.state.params["w"])

    kept = {}
    fit(callbacks=[Keep(kept)], validation_data=None, epochs=3)
    assert sorted(kept) == [0, 1, 2]
