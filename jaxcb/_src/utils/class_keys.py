"""Keys of classes in checkpoints: public names, so that moving code does not invalidate checkpoints."""

from collections.abc import Mapping
from typing import TypeVar

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
