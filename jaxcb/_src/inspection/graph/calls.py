"""Calls: finds the modules and functions of the user's program that contain each equation of a jaxpr.

Flax Linen puts module names on the name stack. NNX and plain functions put no names there, and Equinox only class
names; but each equation keeps the Python frames of its tracing, which include the calls of modules and functions.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcb._src.utils.names import directory_of

_LIBRARIES = (
    os.path.join(os.path.dirname(jax.__file__), ""),
    os.path.join(Path(__file__).parents[3], ""),  # jaxcb
)
_LINEN = os.path.join("flax", "linen", "module.py")
_MODULE = re.compile(r"(?:.*\.)?([A-Za-z]\w*)\.__call__")
_FUNCTION = re.compile(r"[A-Za-z]\w*")


class Call:
    """One call of a module or function, and the calls within it.

    Attributes:
        parent: the enclosing call; None for the traced function itself.
        name: the name of the module's class, or of the function.
        is_module: whether it may be named by the path of its parameters.
        key: identifies call site and callee; equal in each iteration of a loop.
        directories: directories of the parameters that it uses directly.
        calls: the calls within it, in order.
    """

    def __init__(
        self, parent: "Call | None" = None, name: str = "", key: Any = None, *, is_module: bool = False
    ) -> None:
        self.parent, self.name, self.key, self.is_module = parent, name, key, is_module
        self.directories: list[str] = []
        self.calls: list[Call] = []
        self._at = -1  # the current instruction
        self._one: Call | None = None  # the call that it was merged into, if a loop was mistaken for a second call

    @property
    def one(self) -> "Call":
        """The call that it was merged into, or itself."""
        return self if self._one is None else self._one.one

    def enter(self, name: str, key: Any, at: int = -1, *, is_module: bool = False) -> "Call":
        """Continues the last call if it has the same call site, else begins another one."""
        last = self.calls[-1] if self.calls else None
        if last is None or last.key != key or at < last._at:
            last = Call(self, name, key, is_module=is_module)
            self.calls.append(last)
        last._at = at
        return last

    @property
    def path(self) -> str | None:
        """The common directory of all parameters that are used within it; None if there are none."""
        found = list(self.directories)
        for call in self.calls:
            path = call.path
            if path is not None:
                found.append(directory_of(path) if call.is_module else path)
        return _common(found) if found else None

    def settle(self) -> None:
        """Merges calls that a loop has split: calls from one place, whose parameters belong together."""
        kept: list[Call] = []
        for call in self.calls:
            whole = next((k for k in reversed(kept) if k.key == call.key and _may_be_one(k, call, kept[-1])), None)
            if whole is None:
                kept.append(call)
                continue
            call._one = whole
            whole.calls += call.calls
            whole.directories += call.directories
        self.calls = kept
        for call in kept:
            call.settle()

    def labels(self) -> Iterator[tuple["Call", str]]:
        """Yields each call within it and its label: for a module its path, relative to the enclosing module."""
        around = self
        while around.parent is not None and not around.is_module:
            around = around.parent.one
        before = around.path or ""
        for call in self.calls:
            path = call.path if call.is_module else None
            label = "" if path is None else _below(path, before)
            yield call, label or call.name
            yield from call.labels()


def _common(paths: Iterable[str]) -> str:
    parts = [path.split("/") for path in paths]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return "/".join(level[0] for level in shared)


def _below(path: str, directory: str) -> str:
    if not directory:
        return path
    return path.removeprefix(directory).lstrip("/") if f"{path}/".startswith(f"{directory}/") else path


def _may_be_one(a: Call, b: Call, last: Call) -> bool:
    x, y = a.path, b.path
    if x is None or y is None:
        return a is last
    return f"{x}/".startswith(f"{y}/") or f"{y}/".startswith(f"{x}/") or not (x and y)


class Frames(NamedTuple):
    """The frames of an equation that belong to the user or a third-party library, the outermost first.

    Attributes:
        sites: code and instruction of each frame, which identify it.
        names: the names of their functions.
        is_linen: whether Flax Linen has named the modules.
    """

    sites: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    is_linen: bool = False


def frames_of(equation: Any) -> Frames:
    """Returns the frames in which an equation was traced."""
    traceback = equation.source_info.traceback
    if traceback is None:
        return Frames()
    codes, places = traceback.raw_frames()
    sites, names, linen, inside = [], [], False, False
    for code, place in zip(reversed(codes), reversed(places), strict=True):
        file = code.co_filename
        if file.startswith(_LIBRARIES):
            inside = True  # the frames outside of jaxcb and JAX belong to the program that trains, not to the model
        elif inside:
            sites.append((id(code), place))
            names.append(code.co_qualname)
            linen = linen or file.endswith(_LINEN)
    return Frames(tuple(sites), tuple(names), linen)


def find_call(within: Call, equation: Any, around: Frames, *, outermost: bool) -> Call:
    """Finds or makes the call that contains an equation.

    Args:
        within: the call that contains the jaxpr.
        equation: an equation of the jaxpr.
        around: frames of the equation that contains the jaxpr.
        outermost: whether the jaxpr is the traced function, whose first frame is the function itself.

    Returns:
        The call.
    """
    frames = frames_of(equation)
    scopes = name_scopes(equation)
    call, size = within, len(around.sites)
    # A function that was traced before, at another place, has the frames of that place.
    if frames.sites[:size] == around.sites and not (frames.is_linen and scopes):
        for i, name in enumerate(frames.names[size:], size):
            module, function = _MODULE.fullmatch(name), _FUNCTION.fullmatch(name)
            if module or (function and not (outermost and i == 0)):
                key = (frames.sites[:i], frames.sites[i][0])
                scope = module.group(1) if module else name
                call = call.enter(scope, key, frames.sites[i][1], is_module=bool(module))
    for scope in scopes:
        call = call.enter(scope, scope)
    return call


def name_scopes(equation: Any) -> Sequence[str]:
    """Returns the names of `jax.named_scope`, without the names of transformations."""
    text = re.sub(r"\w+\(", "", str(equation.source_info.name_stack)).replace(")", "")
    # Equinox adds the name of the class, which the frames have as well
    return [part for part in text.split("/") if part and not part.startswith("eqx.")]
