"""jaxcb as a contestant."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from _networks import FOREVER, Network, loss_fn
from _race import Baton

import jaxcb as jc
from jaxcb._src.writers.orbax import CheckpointWriter

_WRITERS: list[CheckpointWriter] = []  # of this process


def _noted(self: CheckpointWriter, context: Any) -> None:
    _make(self, context)
    _WRITERS.append(self)


_make, CheckpointWriter.__init__ = CheckpointWriter.__init__, _noted


@contextlib.contextmanager
def compilation_cache() -> Iterator[None]:
    """Keeps compiled programs in a directory of its own for as long as a contestant lives."""
    with tempfile.TemporaryDirectory() as directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        yield


class HandOn(jc.Callback):
    """Ends a turn every so many epochs."""

    hand_on: Callable[[Any], None] = jc.static()
    epochs: int = jc.static()

    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> Any:
        return state, jc.actions.Call(self.hand_on, when=(metrics.epoch + 1) % self.epochs == 0)


def four(directory: str, *, best: bool = True) -> list[jc.Callback]:
    """Early stopping with best weights, plateau, CSV and TensorBoard's scalars; none of them ends or slows the run."""
    return [
        jc.EarlyStopping(patience=FOREVER, restore_best_weights=best),
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
    "four, no best": lambda directory: four(directory, best=False),
    "five": five,
    "four and ten": lambda directory: [*four(directory), *(Ticking(name=f"Ticking{i}") for i in range(10))],
}


HISTOGRAMS = ("params", "grads", "updates")
CALLBACKS |= {
    "TensorBoard": lambda directory: [jc.TensorBoard(directory)],
    "TensorBoard, each step": lambda directory: [jc.TensorBoard(directory, update_freq=1)],
    "TensorBoard, histograms": lambda directory: [jc.TensorBoard(directory, histogram_freq=1, histograms=HISTOGRAMS)],
}


def probed(network: Network, every: int, executor: str) -> Callable[[Baton], dict[str, Any]]:
    """Trains with a look at the gradients' norm every so many steps, and no callbacks."""
    metrics = {"grad_norm": jc.probes.grad_norm(every=every)}
    return contestant(network, "none", verbose=0, executor=executor, metrics=metrics)


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
            for writer in _WRITERS:
                writer._land()  # a save that is under way belongs to this turn
            baton.hand_on()

        data = network.batches() if streamed else None
        hand_on = HandOn(settled, baton.epochs)
        return fit(network, callbacks, epochs=baton.total, more=[hand_on], data=data, **arguments)

    return train


def whole_runs(network: Network, callbacks: str, *, epochs: int, cached: bool = False) -> Callable[[Baton], Any]:
    """A turn is a whole run, with all that it compiles, or takes from JAX's compilation cache."""

    def train(baton: Baton) -> dict[str, Any]:
        did = {}
        with compilation_cache() if cached else contextlib.nullcontext():
            for _ in baton.each():
                did = fit(network, callbacks, epochs=epochs)
        return did

    return train


def fit(  # noqa: PLR0913
    network: Network,
    callbacks: str,
    *,
    epochs: int,
    more: Sequence[jc.Callback] = (),
    data: Any = None,
    verbose: int = 1,
    executor: Literal["looped", "stepped"] | None = None,
    block: int | None = None,
    metrics: Any = None,
) -> dict[str, Any]:
    """One run, on the network's arrays where no other data is given; returns what it did."""
    training, validation = (jax.device_put(part) for part in network.data())
    with tempfile.TemporaryDirectory() as directory:
        own = list(CALLBACKS[callbacks](directory))
        result = jc.fit(
            jax.device_put(network.params()), loss_fn, training if data is None else data, optimizer=optax.adam,
            learning_rate=network.learning_rate, epochs=epochs, validation_data=validation,
            validation_batch_size=network.validation_rows, callbacks=[*own, *more], verbose=verbose,
            batch_size=network.batch_size if data is None else None, metrics=metrics,
            execution=jc.Execution(executor=executor, block=block),
        )  # fmt: skip
        saves = len(list(Path(directory).glob("saves/*")))
    return done(result) | ({"saves": saves} if any(isinstance(c, jc.ModelCheckpoint) for c in own) else {})


def done(result: jc.Result) -> dict[str, Any]:
    """What a run did."""
    history = result.history
    return {
        "steps": int(result.state.step),
        "losses": [float(x) for x in history["loss"][:8]],
        "loss": float(history["loss"][-1]),
        "accuracy": float(history["val_accuracy"][-1]),
    }
