"""Conversion of arrays to images."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array


def as_pixels(image: Any, what: str, *, axes: int = 0) -> Array:
    """Converts images to uint8. Pure, works under jit.

    Args:
        image: uint8, or floats in [0, 1] (clipped): (height, width), or (height, width, channels) with 1, 3 or 4
            channels.
        what: its name in errors.
        axes: number of leading axes.

    Returns:
        uint8, same shape.

    Raises:
        ValueError: for another shape.
        TypeError: for another dtype.

    Example:
        >>> as_pixels([[0.0, 0.5, 2.0]], "a line").tolist()
        [[0, 128, 255]]
    """
    image = jnp.asarray(image)
    shape = image.shape[axes:]
    if image.ndim < axes or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) or not image.size:
        before = "rows, " * axes
        raise ValueError(
            f"{what} has shape {image.shape}, expected ({before}height, width), or ({before}height, width, channels) "
            "with 1, 3 or 4 channels."
        )
    if jnp.issubdtype(image.dtype, jnp.floating):
        bright = jnp.clip(jnp.nan_to_num(image.astype(jnp.float32)), 0.0, 1.0)
        image = jnp.round(bright * 255.0).astype(jnp.uint8)
    if image.dtype != jnp.uint8:
        raise TypeError(f"{what} is of {image.dtype}, expected uint8, or floats in [0, 1].")
    return image


def as_picture(values: Any, largest: int = 512) -> Array:
    """Converts an array to a grayscale image, from black (minimum) to white (maximum). Pure, works under jit.

    A matrix is drawn as it is, transposed if it is higher than wide; a vector as one row. With more axes, the last two
    are inputs and outputs of a convolution, and the filters are drawn as a grid: outputs from left to right, inputs
    from top to bottom.

    Args:
        values: numbers, of any shape. NaN and infinities are black.
        largest: maximum pixels per side; of larger arrays evenly spaced rows and columns are drawn.

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
    flat = _as_matrix(bright)
    rows, columns = (_spaced_indices(size, largest) for size in flat.shape)
    return flat[rows][:, columns]


def _as_matrix(x: Array) -> Array:
    if x.ndim <= 1:
        return x.reshape(1, -1)
    if x.ndim == 2:
        return x if x.shape[0] <= x.shape[1] else x.T
    height, width = (math.prod(x.shape[:-3]), x.shape[-3])
    filters = jnp.transpose(x.reshape(height, width, *x.shape[-2:]), (2, 0, 3, 1))  # inputs, height, outputs, width
    lined = jnp.pad(filters, ((0, 0), (0, 1), (0, 0), (0, 1)))
    inputs, tall, outputs, wide = lined.shape
    return lined.reshape(inputs * tall, outputs * wide)[:-1, :-1]


def _spaced_indices(size: int, largest: int) -> Any:
    """Returns the indices of at most `largest` evenly spaced rows."""
    return jnp.arange(size) if size <= largest else jnp.linspace(0, size - 1, largest).round().astype(jnp.int32)
