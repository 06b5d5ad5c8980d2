"""The traps of Keras 3 that only a training run shows: the same run by Keras's `fit` and by ours."""

import json
import threading

import keras
import numpy as np
import pytest
from against_keras import _theirs
from against_keras._small import stopping
from against_keras._twins import NAMES, jaxcb_fit, keras_fit, keras_model

import jaxcb as jc

pytestmark = pytest.mark.slow  # Keras compiles each of its models


def test_restoring_leaves_averages_alone():
    """Keras's restored weights overwrite what its optimizer averaged; our averages are named weights of their own."""
    raw = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: raw.append(model.get_weights()))
    model = keras_model(use_ema=True, ema_momentum=0.5)
    stop = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    keras_fit(model, epochs=2, callbacks=[note, stop])
    np.testing.assert_array_equal(model.get_weights()[0], raw[stop.best_epoch][0])  # not the averages

    callbacks = [jc.SwapEMAWeights(decay=0.5), jc.EarlyStopping(patience=9, restore_best_weights=True)]
    result = jaxcb_fit(epochs=2, callbacks=callbacks)
    kept = result.state.weights
    assert {"SwapEMAWeights/ema", "EarlyStopping/best"} <= set(kept)


def test_nothing_is_restored_after_an_exception_in_keras():
    def fail(epoch, *_):
        if epoch == 1:
            raise RuntimeError("broken")

    model, raw = keras_model(learning_rate=5.0), []  # diverges: the first epoch is the best
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: raw.append(model.get_weights()[0]))
    stop = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    with pytest.raises(RuntimeError, match="broken"):
        keras_fit(model, epochs=3, callbacks=[note, stop, keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    np.testing.assert_array_equal(model.get_weights()[0], raw[-1])


def test_checkpoints_are_directories(tmp_path):
    with pytest.raises(ValueError, match=r"filepath provided must end in `.keras`"):
        keras.callbacks.ModelCheckpoint("model")
    model = keras_model()
    keras_fit(model, epochs=1, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))])
    jaxcb_fit(epochs=1, callbacks=[jc.ModelCheckpoint(tmp_path / "model", save_weights_only=True)])
    assert (tmp_path / "model.keras").is_file()
    assert (tmp_path / "model").is_dir()
    assert set(jc.load(tmp_path / "model")["params"]) == set(NAMES)


def test_an_early_stop_ends_with_the_averages():
    """Keras swaps back at the planned last epoch alone."""
    raw = []
    model = keras_model(use_ema=True, ema_momentum=0.5)
    noted = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: raw.append(model.get_weights()[0]))
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1))
    keras_fit(model, epochs=9, callbacks=[noted, keras.callbacks.SwapEMAWeights(swap_on_epoch=True), stop])
    np.testing.assert_array_equal(model.get_weights()[0], raw[1])  # as they were before the swap

    stop = jc.make_callback(on_epoch_end=lambda state, m: (state, jc.actions.Stop(m.epoch >= 1)))
    swap = jc.SwapEMAWeights(True, decay=0.5)
    stopped, planned = (jaxcb_fit(epochs=n, callbacks=[swap, stop]) for n in (9, 2))
    np.testing.assert_array_equal(stopped.params["w1"], planned.params["w1"])
    assert abs(np.asarray(stopped.params["w1"]) - raw[1]).max() > 1e-4


def test_averages_need_no_optimizer_that_makes_them():
    with pytest.raises(ValueError, match="SwapEMAWeights must be used when `use_ema=True`"):
        keras_fit(keras_model(), epochs=1, callbacks=[keras.callbacks.SwapEMAWeights()])
    assert "SwapEMAWeights/ema" in jaxcb_fit(epochs=1, callbacks=[jc.SwapEMAWeights(decay=0.5)]).state.weights


def test_tensorboard_needs_no_tensorflow(tmp_path):
    with pytest.raises(ImportError, match=r"(?i)tensorflow|tensorboard"):
        keras_fit(keras_model(), epochs=1, callbacks=[keras.callbacks.TensorBoard(str(tmp_path / "a"))])
    jaxcb_fit(epochs=1, callbacks=[jc.TensorBoard(str(tmp_path / "b"))])
    assert list((tmp_path / "b").rglob("events.out.tfevents.*"))


def test_batch_hooks_see_the_steps_own_loss():
    """Keras hands its batch hooks the mean since the epoch began."""
    theirs, ours = [], []
    noted = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: theirs.append(float(logs["loss"])))
    keras_fit(keras_model(), epochs=1, callbacks=[noted])
    jaxcb_fit(epochs=1, callbacks=[jc.LambdaCallback(on_train_batch_end=lambda batch, logs: ours.append(logs["loss"]))])
    counts = np.array([16, 16, 16, 16, 6])
    np.testing.assert_allclose(theirs, np.cumsum(ours * counts) / np.cumsum(counts), rtol=1e-5)
    assert abs(theirs[1] - ours[1]) > 1e-3


def test_batch_hooks_come_in_order():
    """Keras runs batch hooks that are declared safe for it in a pool of threads."""
    threads = set()

    class Noted(keras.callbacks.Callback):
        async_safe = True

        def on_train_batch_end(self, batch, logs=None):
            threads.add(threading.current_thread())

    hooks = keras.callbacks.CallbackList([Noted()], model=_theirs.Model(stopping(1.0)))
    hooks.on_train_begin()
    for batch in range(4):
        hooks.on_train_batch_end(batch, {})
    hooks.on_train_end()
    assert threading.main_thread() not in threads
    seen = []
    jaxcb_fit(epochs=2, callbacks=[jc.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))])
    assert seen == [0, 1, 2, 3, 4] * 2


def test_a_stop_in_mid_epoch_still_validates_in_both():
    ours, theirs = [], []

    class Theirs(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            theirs.append(batch)
            self.model.stop_training = True

        def on_test_end(self, logs=None):
            theirs.append("validated")

        def on_epoch_end(self, epoch, logs=None):
            theirs.append(sorted(logs))

    class Ours(jc.HostCallback):
        def on_train_batch_end(self, batch, logs=None):
            ours.append(batch)
            self.stop()

        def on_test_end(self, logs=None):
            ours.append("validated")

        def on_epoch_end(self, epoch, logs=None):
            ours.append(sorted(n for n in logs if "rate" not in n))

    keras_fit(keras_model(), epochs=2, callbacks=[Theirs()])
    jaxcb_fit(epochs=2, callbacks=[Ours()])
    assert theirs == ours == [0, "validated", ["loss", "val_loss"]]


def test_a_backup_in_mid_epoch_replays_the_epoch_in_keras(tmp_path):
    """The batch is saved and never read; and after a second crash the epoch is 0 again."""
    seen, epochs = [], []

    def crash(batch, logs):
        seen.append(batch)
        if len(seen) in (8, 10):
            raise RuntimeError("killed")

    for _ in range(2):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "theirs"), save_freq=2)
        with pytest.raises(RuntimeError, match="killed"):
            keras_fit(
                keras_model(), epochs=2, callbacks=[backup, keras.callbacks.LambdaCallback(on_train_batch_end=crash)]
            )
        epochs.append(json.loads((tmp_path / "theirs" / "training_metadata.json").read_text())["epoch"])
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]  # the steps of epoch 1 anew
    assert epochs == [1, 0]

    seen.clear()
    ours = [jc.LambdaCallback(on_train_batch_end=crash), jc.BackupAndRestore(tmp_path / "ours", save_freq=1)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            jaxcb_fit(epochs=2, callbacks=ours)
    result = jaxcb_fit(epochs=2, callbacks=ours)
    assert seen[:8] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert seen[8] in (1, 2)  # what was done since the last save, and no more
    assert len(result.history["loss"]) == 2
    np.testing.assert_array_equal(result.params["w1"], jaxcb_fit(epochs=2).params["w1"])


def test_what_a_host_callback_changes_stays_outside():
    class Theirs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([0 * w for w in self.model.get_weights()])

    class Ours(jc.HostCallback):
        def on_epoch_end(self, epoch, logs=None):
            for name in NAMES:
                self.model[name] = 0 * self.model[name]

    model = keras_model()
    keras_fit(model, epochs=1, callbacks=[Theirs()])
    assert not np.any(model.get_weights()[0])
    np.testing.assert_array_equal(
        jaxcb_fit(epochs=1, callbacks=[Ours()]).params["w1"], jaxcb_fit(epochs=1).params["w1"]
    )
