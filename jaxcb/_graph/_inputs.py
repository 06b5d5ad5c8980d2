"""What the inputs of a traced function are called."""

import re
from typing import Any

import jax

from jaxcb._paths import leaf_name


def input_names(jaxpr: Any, *trees: tuple[str, Any]) -> list[str]:
    """Returns a name for each input of a jaxpr.

    Args:
        jaxpr: a closed jaxpr.
        *trees: a name and a tree of shapes for each argument that it was traced with; none where they are not known,
            and then the names are those of the function's own arguments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> input_names(jax.make_jaxpr(lambda params, x: params["w"] * x)({"w": 1.0}, 2.0))
        ['params/w', 'x']
    """
    if trees:
        return [
            "/".join(part for part in (name, leaf_name(path)) if part)
            for name, tree in trees
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        ]
    known = getattr(jaxpr.jaxpr.debug_info, "arg_names", None) or ()
    names = [re.sub(r"\[['\"]?(.*?)['\"]?\]", r"/\1", name or "").replace(".", "/") for name in known]
    names += [""] * (len(jaxpr.jaxpr.invars) - len(names))
    return [name or f"input_{i}" for i, name in enumerate(names)]
