"""Keras 3 on JAX as a contestant, with its own callbacks."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from _networks import FOREVER, Network
from _race import Baton
from keras import callbacks as kc
from keras import layers


class _HandOn(kc.Callback):
    """Ends a turn every so many epochs."""

    def __init__(self, baton: Baton) -> None:
        super().__init__()
        self._baton = baton

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._baton.epoch_done(epoch)


def model_of(network: Network) -> Any:
    """The network, with the weights that the others start from."""
    own: list[Any] = [layers.Input((8, 8, 1) if network.convolutions else network.sizes[:1])]
    own += [layers.Conv2D(n, 3, padding="same", activation="relu") for n in network.convolutions]
    if network.convolutions:
        own += [layers.MaxPooling2D(2), layers.Flatten()]
    own += [layers.Dense(n, activation="relu") for n in network.sizes[1:-1]]
    model = keras.Sequential([*own, layers.Dense(network.sizes[-1])])
    model.set_weights([layer[name] for layer in network.params() for name in ("w", "b")])
    return model


def contestant(network: Network, *, five: bool, steps_per_execution: int = 1) -> Callable[[Baton], dict[str, Any]]:
    """`fit` on arrays, with early stopping, plateau, CSV, TensorBoard and perhaps checkpoints, and the bar on."""

    def train(baton: Baton) -> dict[str, Any]:
        (x, y), validation = network.data()
        model = model_of(network)
        model.compile(
            keras.optimizers.Adam(network.learning_rate, epsilon=1e-8),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=steps_per_execution,
        )
        with tempfile.TemporaryDirectory() as directory:
            own = [
                kc.EarlyStopping("val_loss", patience=FOREVER, restore_best_weights=True),
                kc.ReduceLROnPlateau("val_loss", patience=FOREVER),
                kc.CSVLogger(f"{directory}/log.csv"),
                kc.TensorBoard(f"{directory}/events", write_graph=False),
            ]
            if five:
                Path(f"{directory}/saves").mkdir()
                own.append(
                    kc.ModelCheckpoint(
                        f"{directory}/saves/{{epoch:05d}}.weights.h5",
                        "val_accuracy",
                        mode="max",
                        save_best_only=True,
                        save_weights_only=True,
                    )
                )
            history = model.fit(
                x, y, batch_size=network.batch_size, epochs=baton.total, validation_data=validation,
                validation_batch_size=network.validation_rows, callbacks=[*own, _HandOn(baton)], verbose=1,
            )  # fmt: skip
            saves = len(list(Path(directory).glob("saves/*")))
        return {
            "steps": network.steps * len(history.history["loss"]),
            "losses": [float(x) for x in history.history["loss"][:8]],
            "loss": float(history.history["loss"][-1]),
            "accuracy": float(history.history["val_accuracy"][-1]),
        } | ({"saves": saves} if five else {})

    return train
