"""Arrays as pictures: what is drawn of a weight."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array


def as_picture(values: Any, largest: int = 512) -> Array:
    """Draws an array in grey: its smallest value is black, its largest white. Pure, and jittable.

    A matrix is drawn as it is, lying down where it is higher than wide; a vector as one row; of more axes the last
    two are (inputs, outputs) of a convolution, whose filters stand side by side with a line between them: outputs
    from left to right, inputs downwards.

    Args:
        values: numbers, of any shape. NaN and infinities are drawn black.
        largest: pixels that a side may have; of larger arrays evenly spaced rows and columns are drawn.

    Returns:
        uint8 (height, width).

    Example:
        >>> import jax.numpy as jnp
        >>> as_picture(jnp.array([-1.0, 0.0, 1.0])).tolist()
        [[0, 128, 255]]
    """
    x = jnp.asarray(values).astype(jnp.float32)
    finite = jnp.isfinite(x)
    low, high = jnp.min(x, where=finite, initial=jnp.inf), jnp.max(x, where=finite, initial=-jnp.inf)
    span = jnp.where(high > low, high - low, 1.0)
    bright = jnp.round(jnp.where(finite, (x - low) / span, 0.0) * 255.0).astype(jnp.uint8)
    flat = _laid_flat(bright)
    rows, columns = (_spread(size, largest) for size in flat.shape)
    return flat[rows][:, columns]


def _laid_flat(x: Array) -> Array:
    if x.ndim <= 1:
        return x.reshape(1, -1)
    if x.ndim == 2:
        return x if x.shape[0] <= x.shape[1] else x.T
    height, width = (math.prod(x.shape[:-3]), x.shape[-3])
    filters = jnp.transpose(x.reshape(height, width, *x.shape[-2:]), (2, 0, 3, 1))  # inputs, height, outputs, width
    lined = jnp.pad(filters, ((0, 0), (0, 1), (0, 0), (0, 1)))
    inputs, tall, outputs, wide = lined.shape
    return lined.reshape(inputs * tall, outputs * wide)[:-1, :-1]


def _spread(size: int, largest: int) -> Any:
    """Indices of at most so many evenly spaced rows."""
    return jnp.arange(size) if size <= largest else jnp.linspace(0, size - 1, largest).round().astype(jnp.int32)
