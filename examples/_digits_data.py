"""scikit-learn's handwritten digits, 1797 grey images of 8 x 8 pixels, and how they are varied in training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load() -> tuple[Any, Any, Any]:
    """Returns `(images, labels)` for training (1149), validation (288) and test (360).

    Each part has the digits in the same proportions. The split is always the same, so that no choice of a
    seed can move images from the test set into training.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    return (x_train, y_train), (x_val, y_val), (x_test, y_test)


def shift(images: jax.Array, key: jax.Array) -> jax.Array:
    """Moves each image by up to one pixel each way, at random."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 3)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (8, 8, 1)))(padded, corners)
