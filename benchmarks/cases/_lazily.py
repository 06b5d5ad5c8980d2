"""Contestants by name: a process imports what its own contestant needs, and nothing of the others."""

import importlib
from collections.abc import Callable
from typing import Any

from _race import Baton


def lazily(module: str, maker: str, *args: Any, **kwargs: Any) -> Callable[[Baton], dict[str, Any]]:
    """A contestant that `module.maker(*args, **kwargs)` makes, in the process that runs it."""

    def train(baton: Baton) -> dict[str, Any]:
        return getattr(importlib.import_module(module), maker)(*args, **kwargs)(baton)

    return train
