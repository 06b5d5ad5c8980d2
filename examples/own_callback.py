"""A callback of your own: written, used in `fit`, replayed over the recorded run, and tested.

    python examples/own_callback.py
    pytest examples/own_callback.py      # holds it to the laws; needs jaxcb[testing]

It stops a run whose validation loss has pulled away from its training loss: the model only learns its
training rows by heart from there on.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxcb as jc


class GapState(NamedTuple):
    """What the callback remembers: arrays, whose form never changes."""

    wait: Any  # int32 (), validations in a row with too large a gap


class StopOnGap(jc.Callback):
    """Stops after `patience` validations in a row with `val_loss > ratio * loss`."""

    ratio: float = 2.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError(f"StopOnGap: ratio must be positive, got {self.ratio}.")

    def init(self) -> GapState:
        return GapState(wait=0)

    def on_epoch_end(self, state: GapState, metrics: jc.Metrics):
        gap = metrics["val_loss"] / metrics["loss"]
        wait = jnp.where(gap > self.ratio, state.wait + 1, 0)
        wait = jnp.where(metrics.fresh("val_loss"), wait, state.wait)  # an epoch without validation does not count
        stop = jc.actions.Stop(
            wait >= self.patience, "val_loss is {gap:.2f} times the training loss", values={"gap": gap}
        )
        return GapState(wait), stop


def test_stop_on_gap() -> None:
    import jaxcb.testing

    jaxcb.testing.check_callback(StopOnGap(patience=2), max_examples=20)
    assert (
        jc.replay(StopOnGap(2.0, patience=2), {"loss": [4.0, 1.0, 1.0], "val_loss": [4.0, 3.0, 3.0]}).stopped_epoch == 2
    )


def noisy_rows(seed: int, rows: int = 96):
    """Rows that follow a line, with noise: little data and many inputs, easily learned by heart."""
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (rows, 24))
    return x, x[:, 0] - x[:, 1] + 0.5 * jax.random.normal(keys[1], (rows,))


def network(seed: int, width: int = 64) -> dict[str, jax.Array]:
    """The parameters of a network with one hidden layer."""
    keys = jax.random.split(jax.random.key(seed), 2)
    hidden = jax.random.normal(keys[0], (24, width)) / jnp.sqrt(24.0)
    return {"hidden": hidden, "out": jax.random.normal(keys[1], (width,)) / jnp.sqrt(width)}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["out"] - y) ** 2)


def main(run_dir: Path = Path("runs/own_callback"), epochs: int = 200) -> None:
    result = jc.fit(
        network(seed=0),
        loss_fn,
        noisy_rows(seed=1),
        optimizer=optax.adam,
        learning_rate=3e-3,
        epochs=epochs,
        validation_data=noisy_rows(seed=2),
        callbacks=[StopOnGap(ratio=4.0)],
        run_dir=run_dir,
        verbose=0,
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    print(f"the run:    {result.stop_reason or 'all epochs done'} (epoch {len(result.history.epoch)})")
    for ratio in (1.5, 2.0, 3.0):
        replay = jc.replay(StopOnGap(ratio), run_dir)
        where = "not at all" if replay.stopped_epoch is None else f"in epoch {replay.stopped_epoch + 1}"
        print(f"ratio {ratio}:  would have stopped {where}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--run-dir", type=Path, default=Path("runs/own_callback"), help="where the files go (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=200, help="at most so many epochs (%(default)s)")
    main(**vars(parser.parse_args()))
