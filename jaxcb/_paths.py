"""Names of leaves, such as `encoder/dense_1/kernel`, and patterns of them."""

import re
from typing import Any

import jax


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns a key path's parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern: `*` stands for anything within a part, `**` across parts."""
    parts = re.split(r"(\*\*|\*)", pattern)
    regex = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(regex, name) is not None
