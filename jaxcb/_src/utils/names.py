"""Names in files: keys of classes, and names of leaves such as `encoder/dense_1/kernel`, with patterns for them.

Moving code does not change them, so that it does not invalidate checkpoints.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jaxcb._src.utils.errors import did_you_mean

T = TypeVar("T")

_OURS = "jaxcb."


def class_key(cls: type) -> str:
    """Returns the key of a class in checkpoints.

    Args:
        cls: a class of a callback or a writer.

    Returns:
        `jaxcb.EarlyStopping` for a class of this library, the qualified name without its module for any other.

    Example:
        >>> from jaxcb import EarlyStopping
        >>> class_key(EarlyStopping)
        'jaxcb.EarlyStopping'
    """
    ours = cls.__module__.startswith(_OURS)
    return _OURS + cls.__qualname__ if ours else cls.__qualname__


def is_key_of(saved: str, cls: type) -> bool:
    """Returns whether a key in a checkpoint denotes a class.

    Checkpoints written before 28 November 2026 contain module path and name, such as
    `jaxcb.callbacks._early_stopping.EarlyStopping`; these are still read.
    """
    key = class_key(cls)
    if saved == key:
        return True
    return saved.startswith(_OURS) == key.startswith(_OURS) and saved.endswith("." + cls.__qualname__)


def entry_of(saved: Mapping[str, T], cls: type) -> T | None:
    """Returns the value for a class in a mapping by keys; None if it is missing."""
    return next((value for key, value in saved.items() if is_key_of(key, cls)), None)


_RATES = ("learning_rate", "base_learning_rate", "lr_scale")


def is_rate(name: Any) -> bool:
    """Returns whether the name of a metric is that of a learning rate, or of one of several: `learning_rate/head`."""
    return isinstance(name, str) and name.partition("/")[0] in _RATES


def rate_metric(kind: str, of: str) -> str:
    """Returns the name of the metric of a learning rate.

    Args:
        kind: "learning_rate", "base_learning_rate" or "lr_scale".
        of: the name of one of several rates; empty for the only one.
    """
    return f"{kind}/{of}" if of else kind


_SHOWN = 10  # parameters that an error lists


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns the parts of a key path joined by slashes."""
    import jax  # here, so that the command line reads runs without it

    return jax.tree_util.keystr(path, simple=True, separator="/")


def directory_of(name: str) -> str:
    """Returns a name without its last part: `encoder/kernel` -> `encoder`."""
    return name.rpartition("/")[0]


def matches(pattern: str, name: str) -> bool:
    """Returns whether a name matches a pattern: `*` matches within a part, `**` across parts."""
    parts = re.split(r"(\*\*|\*)", pattern)
    regex = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(regex, name) is not None


def check_pattern(pattern: str, names: Iterable[str], owner: str, argument: str = "where=") -> None:
    """Checks that a pattern matches one of the names.

    Raises:
        ValueError: with similar names, and a pattern that would match.
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
    """Returns the names, and `part/**` for each part of a model, in order and without duplicates."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        found |= {"/".join([*parts[:i], "**"]): None for i in range(1, len(parts))}
        found[name] = None
    return found
