"""Names of leaves, such as `encoder/dense_1/kernel`, and patterns of them."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax

from jaxcb._src.utils.errors import did_you_mean

_SHOWN = 10  # parameters that an error lists


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns a key path's parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def directory_of(name: str) -> str:
    """Returns a name without its last part: `encoder/kernel` -> `encoder`."""
    return name.rpartition("/")[0]


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern: `*` stands for anything within a part, `**` across parts."""
    parts = re.split(r"(\*\*|\*)", pattern)
    regex = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(regex, name) is not None


def check_pattern(pattern: str, names: Iterable[str], owner: str, argument: str = "where=") -> None:
    """Requires that a pattern fits one of the names.

    Raises:
        ValueError: with the names, the nearest ones where they are many, and a pattern that would fit.
    """
    names = list(names)
    if any(matches(pattern, name) for name in names):
        return
    shown = names
    if len(names) > _SHOWN:
        shown = sorted(names, key=lambda name: _likeness(pattern, name), reverse=True)[:_SHOWN]
    rest = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    raise ValueError(
        f"{owner}: {argument}{pattern!r} matches no parameter. Parameters: {', '.join(shown) or 'none'}{rest}."
        f"{did_you_mean(pattern, _patterns(names))}"
    )


def _likeness(pattern: str, name: str) -> float:
    return difflib.SequenceMatcher(None, pattern, name).ratio()


def _patterns(names: Iterable[str]) -> dict[str, None]:
    """The names, and `part/**` for each part of a model, in order and once each."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        found |= {"/".join([*parts[:i], "**"]): None for i in range(1, len(parts))}
        found[name] = None
    return found
