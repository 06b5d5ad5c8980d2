"""What `debug=True` does: no compilation, and a search for the first NaN."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxcb._paths import leaf_name


@contextlib.contextmanager
def debugging(debug: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Runs what is inside step by step in Python, where that is wanted.

    JAX's own `jax_debug_nans` is put aside: NaN stands for values that nothing has reported yet, and would trip it.
    """
    with contextlib.ExitStack() as stack:
        if debug:
            stack.enter_context(jax.disable_jit())
            say("jaxcb: debug=True runs without compilation, and stops at the first NaN.")
        if getattr(jax.config, "jax_debug_nans"):  # noqa: B009, its stubs do not know it
            stack.enter_context(jax.debug_nans(False))
            if not debug:
                say("jaxcb: jax_debug_nans is put aside for this run; debug=True finds the step and leaf of a NaN.")
        yield


def refuse_nan(step: Any, **trees: Any) -> None:
    """Raises an error at the first NaN, naming the step and the leaf. Needs concrete arrays.

    Args:
        step: the step (from 1) that is looked at.
        **trees: what each tree is called -> a tree.

    Raises:
        FloatingPointError: where there is one.
    """
    for what, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            count = int(jnp.sum(jnp.isnan(leaf)))
            if count:
                name = leaf_name(path)
                raise FloatingPointError(
                    f"step {int(step)}: {what}{f' {name!r}' if name else ''} has {count} NaN of {leaf.size} values. It "
                    "is the first one of the run; what stands before it in the step is finite or infinite."
                )
