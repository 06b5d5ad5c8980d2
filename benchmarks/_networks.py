"""The networks and data that the benchmarks train, the same for every contestant."""

import itertools
from typing import Any, NamedTuple

import numpy as np

FOREVER = 10**6  # of patience: a callback that watches, and never acts


class Network(NamedTuple):
    """A network, its data, and the epochs of a turn: about a second on two slow cores."""

    sizes: tuple[int, ...]  # of a multilayer perceptron
    batch_size: int
    rows: int
    epochs: int
    validation_rows: int = 512
    learning_rate: float = 1e-3
    convolutions: tuple[int, ...] = ()  # channels of 3x3 convolutions in front, over 8x8 images

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.rows // self.batch_size

    def params(self) -> list[dict[str, np.ndarray]]:
        """The weights at the start, convolutions first."""
        rng = np.random.default_rng(0)
        shapes = [(3, 3, m, n) for m, n in itertools.pairwise((1, *self.convolutions))] if self.convolutions else []
        shapes += list(itertools.pairwise(self.sizes))
        return [
            {
                "w": (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32),
                "b": np.zeros(shape[-1], np.float32),
            }
            for shape in shapes
        ]

    def data(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Rows to train on and rows to validate on."""
        rows = self.rows + self.validation_rows
        if self.convolutions:
            from sklearn.datasets import load_digits

            images, labels = load_digits(return_X_y=True)
            order = np.random.default_rng(1).permutation(len(images))[:rows]
            x, y = (images[order] / 16).reshape(-1, 8, 8, 1).astype(np.float32), labels[order].astype(np.int32)
        else:  # of a teacher, so that there is something to learn for many epochs
            rng = np.random.default_rng(1)
            x = rng.normal(size=(rows, self.sizes[0])).astype(np.float32)
            hidden = np.tanh(x @ rng.normal(size=(self.sizes[0], 24)) / np.sqrt(self.sizes[0]) * 2)
            y = (hidden @ rng.normal(size=(24, self.sizes[-1]))).argmax(-1).astype(np.int32)
        return (x[: self.rows], y[: self.rows]), (x[self.rows :], y[self.rows :])

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows to train on as batches on the host, in their order."""
        (x, y), _ = self.data()
        cuts = range(0, self.rows, self.batch_size)
        return [(x[i : i + self.batch_size], y[i : i + self.batch_size]) for i in cuts]


NETWORKS = {
    "32-32-10": Network((32, 32, 10), 32, 4096, 160, learning_rate=2e-4),
    "784-128-10": Network((784, 128, 10), 128, 8192, 16, learning_rate=1e-4),
    "digits CNN": Network((4 * 4 * 32, 10), 64, 1472, 8, 256, convolutions=(16, 32)),
    "784-1024-1024-10": Network((784, 1024, 1024, 10), 128, 12800, 64),
    "784-6144-6144-10": Network((784, 6144, 6144, 10), 32, 256, 1),
}


def logits_of(params: Any, x: Any) -> Any:
    """The network's outputs."""
    import jax

    for layer in params[:-1]:
        if layer["w"].ndim == 4:
            x = jax.lax.conv_general_dilated(x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["b"])
        else:
            x = jax.nn.relu(x.reshape(len(x), -1) @ layer["w"] + layer["b"])
    if params[0]["w"].ndim == 4:
        x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ params[-1]["w"] + params[-1]["b"]


def loss_fn(params: Any, batch: Any) -> Any:
    """The loss, and the accuracy."""
    import optax

    x, labels = batch
    logits = logits_of(params, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}
