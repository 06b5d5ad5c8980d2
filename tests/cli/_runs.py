"""Real runs that the tests of the command line share. As a program, it trains a run and kills itself."""

import os
import sys
from typing import Any

import jax.numpy as jnp
import optax
from loop._runs import loss_fn, make_data

import jaxcb as jc

EPOCHS = 14
KILLED_IN = 5


def callbacks(patience: int = 4) -> list[jc.Callback]:
    """Callbacks that stop, cut the rate, save, and log."""
    return [
        jc.EarlyStopping(patience=patience, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=2, factor=0.5),
        jc.ModelCheckpoint("best", save_best_only=True, save_weights_only=True),
        jc.CSVLogger("log.csv"),
    ]


def train(run_dir: Any, *, learning_rate: float = 0.3, patience: int = 4, more: Any = (), **arguments: Any) -> Any:
    """Trains a small run; with this rate, its validation gets worse after some epochs."""
    given = {"epochs": EPOCHS, "verbose": 0, "callbacks": [*callbacks(patience), *more]} | arguments
    return jc.fit(
        {"w": jnp.zeros((3, 1)), "b": jnp.zeros(())},
        loss_fn,
        make_data(48),
        optimizer=optax.sgd,
        learning_rate=learning_rate,
        batch_size=8,
        validation_data=make_data(20, seed=1),
        run_dir=run_dir,
        **given,
    )


def kill(epoch: Any, logs: Any) -> None:
    """Ends the process at once, as an out-of-memory killer does."""
    if epoch == KILLED_IN:
        os._exit(9)


if __name__ == "__main__":
    deadly = jc.LambdaCallback(on_epoch_end=kill, name="kill")
    train(sys.argv[1], patience=20, more=[deadly])
