"""The same small network in both libraries: same weights, same batches, same optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from _arguments import grouped

import jaxcb as jc

ROWS, BATCH = 70, 16  # the last batch is smaller
NAMES = ("w1", "b1", "w2", "b2")


def make_data(seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    y = np.tanh(x @ np.array([[1.0], [-2.0], [0.5]], np.float32)) + 0.3 * rng.normal(size=(rows, 1)).astype(np.float32)
    return x, y


def weights(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(3, 8), (8,), (8, 1), (1,)]
    return [0.5 * rng.normal(size=shape).astype(np.float32) for shape in shapes]


def keras_model(*, learning_rate: Any = 0.1, **optimizer: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
    model.set_weights(weights())
    model.compile(keras.optimizers.SGD(learning_rate, **optimizer), loss="mse")
    return model


def keras_fit(model: keras.Model, **given: Any) -> keras.callbacks.History:
    x, y = make_data()
    defaults: dict[str, Any] = {"batch_size": BATCH, "shuffle": False, "validation_data": make_data(1), "verbose": 0}
    with jax.numpy_rank_promotion("allow"):  # its layers broadcast their biases
        return model.fit(x, y, **(defaults | given))


def params() -> dict[str, jax.Array]:
    return dict(zip(NAMES, map(jnp.asarray, weights()), strict=True))


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((hidden @ params["w2"] + params["b2"][None] - y) ** 2)


def jaxcb_fit(**given: Any) -> jc.Result:
    defaults: dict[str, Any] = {
        "optimizer": optax.sgd,
        "learning_rate": 0.1,
        "batch_size": BATCH,
        "shuffle": False,
        "validation_data": make_data(1),
        "verbose": 0,
        "executor": "looped",
    }
    return jc.fit(params(), loss_fn, make_data(), **grouped(**(defaults | given)))
