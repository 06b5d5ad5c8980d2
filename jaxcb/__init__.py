"""jaxcb: the training loop and callbacks for JAX and Flax, as pure values."""

import importlib
import sys
from pathlib import Path
from typing import Any


def _public() -> dict[str, str]:
    """Name -> module, of all that is public: listed once, in the stub beside this file, as type checkers read it."""
    lines = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()
    words = (line.split() for line in lines if line.startswith("from "))  # from MODULE import NAME as NAME
    return {name: module for _, module, _, name, _, _ in words}


_MODULES = _public()
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is first used, so that nobody waits for what he has no use for."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"jaxcb has no {name!r}.", name=name, obj=sys.modules[__name__])
    if module == __name__:
        return importlib.import_module(f"{module}.{name}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
