"""Tracing a hook in a changed environment: a year later, with other random numbers, and with file access recorded."""

import builtins
import contextlib
import io
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from jaxcb._src.testing.compare import to_numpy

STANDARD = ("accuracy", "base_learning_rate", "learning_rate", "loss", "val_accuracy", "val_loss")


class AccessedNames:
    """The names of the metrics that were read; `all` if every metric was."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.all = False


class AnyNames(dict[str, Any]):
    """A mapping that has every name, and records which names are read."""

    def __init__(self, accessed: AccessedNames, value: Any) -> None:
        super().__init__(dict.fromkeys(STANDARD, value))
        self._accessed, self._value = accessed, value

    def __getitem__(self, name: str) -> Any:
        self._accessed.names.add(name)
        return self._value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        self._accessed.all = True
        return super().__iter__()

    def keys(self) -> Any:
        self._accessed.all = True
        return super().keys()

    def values(self) -> Any:
        self._accessed.all = True
        return super().values()

    def items(self) -> Any:
        self._accessed.all = True
        return super().items()


_YEAR = 365 * 24 * 3600
_CLOCKS = {
    "time": 1,
    "monotonic": 1,
    "perf_counter": 1,
    "time_ns": 10**9,
    "monotonic_ns": 10**9,
    "perf_counter_ns": 10**9,
}


@contextlib.contextmanager
def another_world(read: list[str]) -> Iterator[None]:
    """Moves the clocks a year ahead, changes the random state, and records in `read` which files are accessed.

    Tracing twice in an unchanged environment is not enough: a clock's progress of microseconds would vanish in a
    float32 constant, and a file rarely changes between two traces.
    """

    def later(clock: Callable[[], Any], unit: int) -> Callable[[], Any]:
        return lambda: clock() + _YEAR * unit

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not _looks_for_source():
                read.append(str(path))
            return function(path, *args, **kwargs)

        return call

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as world:
        for name, unit in _CLOCKS.items():
            world.enter_context(mock.patch.object(time, name, later(getattr(time, name), unit)))
        for module, name in ((builtins, "open"), (io, "open"), (os, "stat")):
            world.enter_context(mock.patch.object(module, name, noting(getattr(module, name))))
        random.seed(_YEAR)
        np.random.seed(_YEAR)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _looks_for_source() -> bool:
    """Returns whether Python itself accesses a file: for an import, or the text of a traceback."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("linecache", "importlib", "traceback", "inspect"):
            return True
        frame = frame.f_back
    return False


def fingerprint(closed: Any) -> tuple[str, list[Any]]:
    """Returns the text of a program without addresses, and every constant and literal in it."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(closed.jaxpr))
    return text, [to_numpy(c) for c in closed.consts] + _literals(closed.jaxpr)


def _literals(jaxpr: Any) -> list[Any]:
    found = []
    for equation in jaxpr.eqns:
        found += [to_numpy(v.val) for v in equation.invars if hasattr(v, "val")]
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                found += _literals(inner)
    return found + [to_numpy(v.val) for v in jaxpr.outvars if hasattr(v, "val")]


def same_program(a: Any, b: Any) -> bool:
    """Returns whether two traced programs are equal, constants included."""
    (text_a, constants_a), (text_b, constants_b) = fingerprint(a), fingerprint(b)
    if text_a != text_b or len(constants_a) != len(constants_b):
        return False
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(constants_a, constants_b, strict=True))
