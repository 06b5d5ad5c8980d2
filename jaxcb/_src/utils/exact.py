"""Sums and quotients of float32 numbers that keep what rounding would take from them.

A number is held as the pair of a float32 and what is missing from it, about 48 bits together. All products here are
exact: each factor has at most 12 significant bits. So the results do not depend on whether the compiler fuses a
multiplication with an addition, nor on whether it turns a division into a multiplication by the reciprocal, and they
are the same in each program.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_BITS = 12  # of a factor; a float32 has 24
_HEAD = np.uint32(0xFFFFF000)  # the bits of a float32 but the last 12 of its significand


def add_product(total: Array, rest: Array, values: Array, count: int) -> tuple[Array, Array]:
    """Adds `values * count` to a sum.

    Args:
        total: the sum so far, float32.
        rest: what is missing from it; the sum is `total + rest`.
        values: float32, in the same shape.
        count: how many times they are added.

    Returns:
        The new `total` and `rest`. Nothing is lost while values and sums are multiples of one number, and the sums
        less than 2**46 of it; so the sums of a constant, of integers and of halves are exact. Otherwise the error of
        an addition is about 2**-47 of the sum.
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
        The quotient, float32. Where a float32 is the exact quotient it is that, otherwise one of the two next to it:
        the nearer one, but for ties.
    """
    guess = total / divisor
    # what the guess leaves undone, from exact products, so that it does not matter how the guess was rounded
    (a, b), (c, d) = _split(guess), _split(divisor)
    left = total - a * c - a * d - b * c - b * d + rest - guess * divisor_rest
    return guess + _finite(left / divisor)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum as it is rounded, and what rounding took from it (Knuth)."""
    total = a + b
    own = total - a
    return total, (a - (total - own)) + (b - own)


def _split(x: Array) -> tuple[Array, Array]:
    """A number as the sum of two that have 12 significant bits each."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    finite = jnp.isfinite(x)
    head = jnp.where(finite, jax.lax.bitcast_convert_type(bits & _HEAD, jnp.float32), x)
    return head, jnp.where(finite, x - head, 0.0)


def _digits(count: int) -> list[float]:
    """Numbers of 12 significant bits whose sum is `count`."""
    places = range(0, max(count.bit_length(), 1), _BITS)
    return [float(count & (2**_BITS - 1) << place) for place in places if count & (2**_BITS - 1) << place]


def _finite(x: Array) -> Array:
    """Nothing in place of what an infinite sum leaves."""
    return jnp.where(jnp.isfinite(x), x, 0.0)
