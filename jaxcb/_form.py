"""The fixed form: what goes round a compiled loop keeps its structure, shapes and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._errors import CallbackError
from jaxcb._struct import strong


def conform(new: Any, old: Any, where: str, *, error: type[Exception] = CallbackError) -> Any:
    """Returns `new` in exactly the form of `old`: same structure, shapes and dtypes.

    Weakly typed results, and others of the same kind of dtype, are cast back.

    Args:
        new: what a user's function returned.
        old: arrays, or their shapes, as they were at the start.
        where: names it in errors.
        error: what to raise: `CallbackError` for a callback, `ValueError` for a model or a step.

    Raises:
        error: naming the leaf that differs, what it is and what was expected.
    """
    old_leaves, old_tree = jax.tree_util.tree_flatten_with_path(old)
    new_leaves, new_tree = jax.tree_util.tree_flatten_with_path(new)
    if old_tree != new_tree:
        known, now = ({jax.tree_util.keystr(p) for p, _ in leaves} for leaves in (old_leaves, new_leaves))
        detail = "; ".join(
            [f"leaf {p} is gone" for p in sorted(known - now)] + [f"leaf {p} is new" for p in sorted(now - known)]
        )
        raise error(
            f"{where} changed the structure: {detail or f'{new_tree}, expected {old_tree}'}. "
            "It is fixed from the start on, so make all of it there."
        )
    return jax.tree_util.tree_unflatten(
        old_tree,
        [
            _conform_leaf(n, o, f"{where}{jax.tree_util.keystr(path)}", error)
            for (path, o), (_, n) in zip(old_leaves, new_leaves, strict=True)
        ],
    )


def _conform_leaf(new: Any, old: Any, where: str, error: type[Exception]) -> Any:
    try:
        new = strong(new)
    except TypeError as cause:
        raise error(f"{where}: {cause}") from None
    old_dtype = old.dtype if hasattr(old, "dtype") else strong(old).dtype
    shape = old.shape if hasattr(old, "shape") else ()
    if new.shape != shape:
        raise error(f"{where} has shape {new.shape}, expected {shape} as at the start.")
    if new.dtype == old_dtype:
        return new
    kinds = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.complexfloating)
    if any(jnp.issubdtype(new.dtype, k) and jnp.issubdtype(old_dtype, k) for k in kinds):
        return new.astype(old_dtype)
    raise error(f"{where} has dtype {new.dtype}, expected {old_dtype} as at the start.")
