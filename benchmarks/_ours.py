"""jaxcb as a contestant."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _networks import FOREVER, Network, loss_fn
from _race import Baton

import jaxcb as jc
from jaxcb._orbax import EXCLUSIVE


class HandOn(jc.Callback):
    """Ends a turn every so many epochs."""

    hand_on: Callable[[Any], None] = jc.static()
    epochs: int = jc.static()

    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> Any:
        return state, jc.Call(self.hand_on, when=(metrics.epoch + 1) % self.epochs == 0)


def four(directory: str) -> list[jc.Callback]:
    """Early stopping with best weights, plateau, CSV and TensorBoard's scalars; none of them ends or slows the run."""
    return [
        jc.EarlyStopping(patience=FOREVER, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=FOREVER),
        jc.CSVLogger(f"{directory}/log.csv"),
        jc.TensorBoard(f"{directory}/events"),
    ]


def checkpoint(directory: str) -> jc.Callback:
    """The fifth one: it saves the weights that are better than any before, in the background."""
    path = f"{directory}/saves/{{epoch:05d}}"
    return jc.ModelCheckpoint(path, "val_accuracy", save_best_only=True, save_weights_only=True, async_=True)


def five(directory: str) -> list[jc.Callback]:
    """All of them."""
    return [*four(directory), checkpoint(directory)]


class Ticking(jc.Callback):
    """Ten of these are the extra ones: a state that changes at every batch."""

    every: float = 3.0

    def init(self) -> Any:
        return jnp.zeros(()), jnp.zeros((), jnp.int32)

    def on_batch_end(self, state: Any, metrics: jc.Metrics) -> Any:
        mean, count = state
        return (0.9 * mean + 0.1 * metrics["loss"], count + (metrics["loss"] > self.every * mean)), None


CALLBACKS: dict[str, Callable[[str], Sequence[jc.Callback]]] = {
    "none": lambda _: [],
    "four": four,
    "five": five,
    "four and ten": lambda directory: [*four(directory), *(Ticking(name=f"Ticking{i}") for i in range(10))],
}


def contestant(
    network: Network,
    callbacks: str = "four",
    *,
    streamed: bool = False,
    **arguments: Any,
) -> Callable[[Baton], dict[str, Any]]:
    """Trains with the progress bar on; arrays are on the device, unless batches are streamed from the host."""

    def train(baton: Baton) -> dict[str, Any]:
        def settled(run: Any) -> None:
            with EXCLUSIVE:  # a save that is under way belongs to this turn
                pass
            baton.hand_on()

        training, validation = network.data()
        given = {"verbose": 1, **arguments}
        if streamed:
            training = network.batches()
        else:
            training = jax.device_put(training)
            given["batch_size"] = network.batch_size
        with tempfile.TemporaryDirectory() as directory:
            own = list(CALLBACKS[callbacks](directory))
            result = jc.fit(
                jax.device_put(network.params()), loss_fn, training, optimizer=optax.adam,
                learning_rate=network.learning_rate, epochs=baton.total, validation_data=jax.device_put(validation),
                validation_batch_size=network.validation_rows, callbacks=[*own, HandOn(settled, baton.epochs)],
                **given,
            )  # fmt: skip
            saves = len(list(Path(directory).glob("saves/*")))
        return done(result) | ({"saves": saves} if any(isinstance(c, jc.ModelCheckpoint) for c in own) else {})

    return train


def done(result: jc.Result) -> dict[str, Any]:
    """What a run did."""
    history = result.history
    return {
        "steps": int(result.state.step),
        "losses": [float(x) for x in history["loss"][:8]],
        "loss": float(history["loss"][-1]),
        "accuracy": float(history["val_accuracy"][-1]),
    }
