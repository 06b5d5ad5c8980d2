"""Sums and quotients of float32 numbers with compensated rounding errors.

A number is a pair of a float32 and its error, about 48 bits together. All products are exact, since each factor has at
most 12 significant bits. So the results do not depend on whether the compiler fuses a multiplication with an addition,
or replaces a division by a multiplication with the reciprocal: they are equal in every program.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_BITS = 12  # significant bits of a factor; a float32 has 24
_HEAD = np.uint32(0xFFFFF000)  # all bits of a float32 except the last 12 of its significand


def add_product(total: Array, rest: Array, values: Array, count: int) -> tuple[Array, Array]:
    """Adds `values * count` to a sum.

    Args:
        total: the sum, float32.
        rest: its error; the exact sum is `total + rest`.
        values: float32, same shape.
        count: integer factor.

    Returns:
        The new `total` and `rest`. The result is exact as long as values and sums are multiples of one number and the
            sums are less than 2**46 times this number; so sums of a constant, of integers and of halves are exact.
            Otherwise the error of an addition is about 2**-47 of the sum.
    """
    head, tail = _split(values)
    for digit in _digits(count):
        for part in (head, tail):
            total, lost = _two_sum(total, part * digit)
            rest = rest + lost
    total, rest = _two_sum(total, _finite(rest))
    return total, _finite(rest)


@partial(jax.jit, inline=True)
def quotient(total: Array, rest: Array, divisor: Array, divisor_rest: Array) -> Array:
    """Divides a sum by another one, each given as a pair.

    Returns:
        The quotient, float32: exact if a float32 is the exact quotient, otherwise rounded to nearest, except for ties.
    """
    guess = total / divisor
    # the remainder from exact products, so that the rounding of `guess` does not matter
    (a, b), (c, d) = _split(guess), _split(divisor)
    left = total - a * c - a * d - b * c - b * d + rest - guess * divisor_rest
    return guess + _finite(left / divisor)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the rounded sum and its rounding error (Knuth)."""
    total = a + b
    b_rounded = total - a
    return total, (a - (total - b_rounded)) + (b - b_rounded)


def _split(x: Array) -> tuple[Array, Array]:
    """Splits a number into a sum of two with 12 significant bits each."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    finite = jnp.isfinite(x)
    head = jnp.where(finite, jax.lax.bitcast_convert_type(bits & _HEAD, jnp.float32), x)
    return head, jnp.where(finite, x - head, 0.0)


def _digits(count: int) -> list[float]:
    """Returns numbers of 12 significant bits whose sum is `count`."""
    places = range(0, max(count.bit_length(), 1), _BITS)
    return [float(count & (2**_BITS - 1) << place) for place in places if count & (2**_BITS - 1) << place]


def _finite(x: Array) -> Array:
    """Replaces values that are not finite by 0, after an infinite sum."""
    return jnp.where(jnp.isfinite(x), x, 0.0)
