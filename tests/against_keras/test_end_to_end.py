"""The same network trained by Keras's `fit` and by ours: the same epochs, rates, losses and weights."""

import keras
import numpy as np
import pytest
from against_keras._twins import NAMES, jaxcb_fit, keras_fit, keras_model

import jaxcb as jc

PLATEAU = {"factor": 0.5, "patience": 1, "min_delta": 1e-3, "min_lr": 0.0125}
STOPPING = {"patience": 4, "min_delta": 1e-3, "restore_best_weights": True}


@pytest.fixture(scope="module")
def keras_run():
    """A `cooldown` of c in Keras skips c - 1 epochs, so it is one more there."""
    model, stopping = keras_model(), keras.callbacks.EarlyStopping(**STOPPING)
    plateau = keras.callbacks.ReduceLROnPlateau(**PLATEAU, cooldown=2)
    return model, stopping, keras_fit(model, epochs=60, callbacks=[plateau, stopping]).history


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_plateau_and_early_stopping_end_alike(executor, keras_run):
    model, stopping, theirs = keras_run
    callbacks = [jc.ReduceLROnPlateau(**PLATEAU, cooldown=1), jc.EarlyStopping(**STOPPING)]
    result = jaxcb_fit(epochs=60, callbacks=callbacks, executor=executor)

    assert result.stopped_epoch == stopping.stopped_epoch
    assert 10 < len(theirs["loss"]) < 60
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(result.history[name], theirs[name], rtol=2e-5)
    rates = result.history["learning_rate"]
    np.testing.assert_array_equal(rates, np.float32(theirs["learning_rate"]))
    assert len(set(rates.tolist())) == 4  # 0.1, two halves and the floor
    assert int(result.callback_states["EarlyStopping"].best_epoch) == stopping.best_epoch
    for name, kept in zip(NAMES, model.get_weights(), strict=True):
        np.testing.assert_allclose(result.params[name], kept, rtol=2e-4, atol=2e-6)


def test_a_schedule_by_epoch_sets_the_same_rates():
    def schedule(epoch, lr):
        return lr if epoch < 2 else lr * 0.5

    class Rates(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.rates = []

        def on_epoch_begin(self, epoch, logs=None):
            self.rates.append(float(self.model.optimizer.learning_rate))

    noted = Rates()
    theirs = keras_fit(keras_model(), epochs=5, callbacks=[keras.callbacks.LearningRateScheduler(schedule), noted])
    result = jaxcb_fit(epochs=5, callbacks=[jc.LearningRateScheduler(schedule)])
    np.testing.assert_allclose(result.history["learning_rate"], noted.rates, rtol=1e-6)
    np.testing.assert_allclose(result.history["val_loss"], theirs.history["val_loss"], rtol=2e-5)
