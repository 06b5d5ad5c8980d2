"""A run that is worth splitting, and the layouts that the tests of this directory go through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _arguments import grouped
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxcb as jc

FEATURES, HIDDEN = 64, 128


def mesh(*shape: int, names: tuple[str, ...] = ("data",)) -> Mesh:
    return jax.make_mesh(shape or (8,), names)


def layouts() -> dict[str, dict[str, Any]]:
    """Arguments of `fit`, by the name of the layout."""
    two = mesh(4, 2, names=("data", "model"))
    rules = {"a/kernel": P(None, "model"), "b/*": P("model"), "*/bias": P()}
    return {
        "data": {"mesh": mesh()},
        "fsdp": {"mesh": mesh(), "sharding": "fsdp"},
        "rules": {"mesh": two, "sharding": rules},
    }


def make_params() -> dict[str, Any]:
    a, b = jax.random.split(jax.random.key(0))
    return {
        "a": {"kernel": jax.random.normal(a, (FEATURES, HIDDEN)) / 8, "bias": jnp.zeros(HIDDEN)},
        "b": {"kernel": jax.random.normal(b, (HIDDEN, 1)) / 8},
    }


def make_data(rows: int = 128 + 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return x, np.tanh(x[:, :1]) + 0.3 * rng.normal(size=(rows, 1)).astype(np.float32)


def batches(rows: int = 128 + 12) -> list[Any]:
    x, y = make_data(rows)
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, rows, 32)]


def loss_fn(params: Any, batch: Any, *, key: Any, train: bool) -> Any:
    x, y = batch
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    if train:  # dropout, which draws a number for each row
        hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden, 0.0)
    error = hidden @ params["b"]["kernel"] - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def control() -> list[Any]:
    return [
        jc.EarlyStopping(patience=3, min_delta=0.03, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05),
        jc.TerminateOnNaN(),
    ]


def fit(**changes: Any) -> jc.Result:
    given: dict[str, Any] = {
        "optimizer": optax.adam,
        "learning_rate": 0.01,
        "epochs": 12,
        "batch_size": 32,
        "validation_data": make_data(50, seed=1),
        "callbacks": control(),
        "verbose": 0,
    }
    given |= {"batch_size": None} if "data" in changes else {}
    given |= changes
    data, params, loss = given.pop("data", None), given.pop("params", None), given.pop("loss_fn", loss_fn)
    params = make_params() if params is None else params
    return jc.fit(params, loss, make_data() if data is None else data, **grouped(**given))


def check_same(found: jc.Result, expected: jc.Result) -> None:
    """The same decisions, and the same numbers within rounding."""
    assert (found.stop_reason is None) == (expected.stop_reason is None)
    assert found.stopped_epoch == expected.stopped_epoch
    assert found.history.keys() == expected.history.keys()
    for name in expected.history:
        np.testing.assert_allclose(found.history[name], expected.history[name], rtol=2e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found.history["learning_rate"], expected.history["learning_rate"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found.params, expected.params)
