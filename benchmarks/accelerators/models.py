"""The models that are compiled: initial state, loss function and data, the same for jaxcb and for the loops by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxcb as jc

MARK = "marked_update"  # the scope of the optimizer's update, by which a step is found in a compiled program


def adam(learning_rate: Any) -> optax.GradientTransformation:
    """Adam, whose update is marked in the compiled program."""
    inner = optax.adam(learning_rate)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        with jax.named_scope(MARK):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)


@dataclass(frozen=True)
class Model:
    """A model with its data.

    Attributes:
        name: as the table shows it.
        fit: what `jc.fit` gets as a model.
        fit_loss: the loss function for `jc.fit`.
        variables: (parameters, other state) of the loop by hand.
        loss: `loss(params, state, batch, train) -> (loss, (metrics, new state))` of the loop by hand.
        train: rows to train on.
        validation: rows to validate on.
        batch_size: rows of a batch.
    """

    name: str
    fit: Callable[[], Any]
    fit_loss: Callable[..., Any]
    variables: tuple[Any, Any]
    loss: Callable[..., Any]
    train: Any
    validation: Any
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.train[0]) // self.batch_size


def _classified(logits: Any, labels: Any) -> tuple[Any, dict[str, Any]]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def _of_function(name: str, params: Any, logits_of: Callable[..., Any], data: Any, batch_size: int) -> Model:
    """A model that is a function of its parameters."""

    def fit_loss(params: Any, batch: Any) -> Any:
        return _classified(logits_of(params, batch[0]), batch[1])

    def loss(params: Any, state: Any, batch: Any, train: bool) -> Any:
        value, metrics = fit_loss(params, batch)
        return value, (metrics, state)

    return Model(name, lambda: params, fit_loss, (params, {}), loss, *data, batch_size)


def _rows(shape: tuple[int, ...], label: tuple[int, ...], rows: int, validation: int, dtype: Any = np.float32) -> Any:
    """Zeros: nothing runs, so only shapes matter."""
    both = np.zeros((rows + validation, *shape), dtype), np.zeros((rows + validation, *label), np.int32)
    return tuple(x[:rows] for x in both), tuple(x[rows:] for x in both)


def mlp(width: int = 1024) -> Model:
    """Two hidden layers of a width, for images of 28 x 28."""
    sizes = (784, width, width, 10)
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    params = [
        {"w": jax.random.normal(key, (m, n)) * np.sqrt(2 / m), "b": jnp.zeros(n)}
        for key, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]

    def logits_of(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return _of_function(f"MLP 784-{width}-{width}-10", params, logits_of, _rows((784,), (), 12800, 512), 128)


def transformer(width: int = 256) -> Model:
    """Two layers of a width with heads of 64, over 64 tokens of 256."""
    heads, layers, length, tokens = width // 64, 2, 64, 256
    normal = jax.nn.initializers.normal(0.02)
    keys = iter(jax.random.split(jax.random.key(0), 3 + 4 * layers))

    def block() -> dict[str, Any]:
        shapes = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }
        weights = {name: normal(next(keys), shape) for name, shape in shapes.items()}
        return weights | {name: jnp.ones(width) for name in ("norm1", "norm2")}

    params = {
        "embedding": normal(next(keys), (tokens, width)),
        "positions": normal(next(keys), (length, width)),
        "blocks": [block() for _ in range(layers)],
        "head": normal(next(keys), (width, tokens)),
    }

    def normed(x: Any, scale: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale[None, None]

    def logits_of(params: Any, x: Any) -> Any:
        h = params["embedding"][x] + params["positions"][None]
        for p in params["blocks"]:
            q, k, v = jnp.split((normed(h, p["norm1"]) @ p["qkv"]).reshape(*x.shape, heads, -1), 3, -1)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            h = h + mixed.reshape(*x.shape, width) @ p["out"]
            h = h + jax.nn.gelu(normed(h, p["norm2"]) @ p["up"]) @ p["down"]
        return h @ params["head"]

    data = _rows((length,), (length,), 3200, 128, np.int32)
    return _of_function(f"transformer, 2 layers of {width}", params, logits_of, data, 32)


class _Network(nn.Module):
    """Three convolutions with batch normalization."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for channels in (32, 64, 128):
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


def cnn() -> Model:
    """Three convolutions with batch statistics, over images of 32 by 32."""
    module, example = _Network(), jnp.zeros((1, 32, 32, 3))
    variables = module.init(jax.random.key(0), example, train=False)

    def fit_loss(model: Any, batch: Any) -> Any:
        return _classified(model(batch[0]), batch[1])

    def loss(params: Any, state: Any, batch: Any, train: bool) -> Any:
        of = {"params": params, **state}
        if train:
            logits, state = module.apply(of, batch[0], train=True, mutable=["batch_stats"])
        else:
            logits = module.apply(of, batch[0], train=False)
        value, metrics = _classified(logits, batch[1])
        return value, (metrics, state)

    data = _rows((32, 32, 3), (), 12800, 512)
    split = variables["params"], {"batch_stats": variables["batch_stats"]}
    return Model(
        "CNN with batch statistics", lambda: jc.models.linen(module, example), fit_loss, split, loss, *data, 128
    )


MODELS: dict[str, Callable[[], Model]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "mlp of width 4096": lambda: mlp(4096),
    "transformer of width 1024": lambda: transformer(1024),
}
