"""How a function of one run goes over the members of a population."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Over = Callable[[Callable[..., Any], Any], Callable[..., Any]]  # fn and its in_axes -> fn over members


def one_by_one(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """One member after another, in a compiled loop.

    Args:
        fn: a function of one member.
        in_axes: for each argument, 0 where it has the member axis, None where members share it.
    """

    def run(*args: Any) -> Any:
        return jax.lax.map(lambda own: fn(*_merged(args, own, in_axes)), _own(args, in_axes))

    return run


def unrolled(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """One member after another, without a loop: what a loop's body makes slow stays fast, and compiles for each."""

    def run(*args: Any) -> Any:
        own = _own(args, in_axes)
        size = jax.tree.leaves(own)[0].shape[0]
        each = [fn(*_merged(args, jax.tree.map(lambda x, i=i: x[i], own), in_axes)) for i in range(size)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    return run


def _own(args: tuple[Any, ...], in_axes: tuple[int | None, ...]) -> list[Any]:
    return [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]


def _merged(args: tuple[Any, ...], own: list[Any], in_axes: tuple[int | None, ...]) -> list[Any]:
    rest = iter(own)
    return [next(rest) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True)]
