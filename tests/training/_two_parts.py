"""A small network of two parts and its data, for tests that train one of them, or each with its own optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
DATA = (X, X @ np.array([[1.0], [-2.0], [0.5]], np.float32))


def pytree(seed: int = 0) -> Any:
    keys = jax.random.split(jax.random.key(seed))
    return {
        "body": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jax.random.normal(keys[1], (4, 1)), "bias": jnp.zeros(1)},
    }


def apply_pytree(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def close(one: Any, other: Any) -> None:
    """Equal up to rounding, which other programs do otherwise."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, other)
