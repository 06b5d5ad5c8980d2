"""The networks and data that the benchmarks train, and what they share of a run."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc


class Network(NamedTuple):
    """A multilayer perceptron, and as much data as an epoch needs."""

    sizes: tuple[int, ...]
    batch_size: int
    rows: int
    epochs: int  # that last about a second on two slow cores

    def params(self):
        rng = np.random.default_rng(0)
        return [
            {"w": jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(m), jnp.float32), "b": jnp.zeros(n)}
            for m, n in itertools.pairwise(self.sizes)
        ]

    def data(self):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(self.rows, self.sizes[0])).astype(np.float32)
        return x, rng.integers(0, self.sizes[-1], self.rows).astype(np.int32)

    def run(self, executor="auto", callbacks=(), **arguments):
        """A function for `take_turns`: trains with its baton and these callbacks."""

        def train(baton, epochs):
            jc.fit(
                self.params(), loss_fn, self.data(), optimizer=optax.adam, learning_rate=1e-3,
                batch_size=self.batch_size, epochs=epochs, executor=executor, callbacks=[*callbacks, baton],
                verbose=0, **arguments,
            )  # fmt: skip

        return train


NETWORKS = {
    "32-32-10": Network((32, 32, 10), 32, 4096, 80),
    "784-128-10": Network((784, 128, 10), 128, 8192, 24),
}


def loss_fn(params, batch):
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
