"""Calls: which modules and functions of the user's program each equation of a jaxpr stands in.

Flax Linen names its modules in the name stack. NNX and plain functions name nothing, and Equinox only classes; but each
equation keeps the Python frames that it was traced in, and in them stand the calls of modules and functions.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxcb._src.utils.leaf_names import directory_of

_NOBODYS = (
    os.path.join(os.path.dirname(jax.__file__), ""),
    os.path.join(os.path.dirname(os.path.dirname(__file__)), ""),
)
_LINEN = os.path.join("flax", "linen", "module.py")
_MODULE = re.compile(r"(?:.*\.)?([A-Za-z]\w*)\.__call__")
_FUNCTION = re.compile(r"[A-Za-z]\w*")


class Call:
    """One call, and what it called.

    Attributes:
        parent: the call that it stands in; None for the traced function itself.
        name: of the module's class, or of the function.
        is_module: whether it may take the name of its parameters' path.
        key: from where what was called; the same in each round of a loop.
        directories: of the parameters that it uses itself.
        calls: within it, in order.
    """

    def __init__(
        self, parent: "Call | None" = None, name: str = "", key: Any = None, *, is_module: bool = False
    ) -> None:
        self.parent, self.name, self.key, self.is_module = parent, name, key, is_module
        self.directories: list[str] = []
        self.calls: list[Call] = []
        self._at = -1  # the instruction that it has come to
        self._one: Call | None = None  # what it is a part of, where a loop was taken for a second call

    @property
    def one(self) -> "Call":
        """The call that stands for it."""
        return self if self._one is None else self._one.one

    def enter(self, name: str, key: Any, at: int = -1, *, is_module: bool = False) -> "Call":
        """Goes on with the last call, where this is one from the same place, or begins another."""
        last = self.calls[-1] if self.calls else None
        if last is None or last.key != key or at < last._at:
            last = Call(self, name, key, is_module=is_module)
            self.calls.append(last)
        last._at = at
        return last

    @property
    def path(self) -> str | None:
        """The directory of all parameters that are used within it; None where none are."""
        found = list(self.directories)
        for call in self.calls:
            path = call.path
            if path is not None:
                found.append(directory_of(path) if call.is_module else path)
        return _common(found) if found else None

    def settle(self) -> None:
        """Joins what a loop within a call has taken apart: calls from one place, of parameters that are not others'."""
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
        """Gives each call within it, and its name: of a module its path, without what the one around it tells."""
        around = self
        while around.parent is not None and not around.is_module:
            around = around.parent.one
        before = around.path or ""
        for call in self.calls:
            path = call.path if call.is_module else None
            own = "" if path is None else _below(path, before)
            yield call, own or call.name
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
    """The frames of an equation that are the user's or a library's, the outermost first.

    Attributes:
        sites: what makes each of them another one: its code, and the instruction.
        names: of their functions.
        is_linen: whether Flax Linen has named the modules.
    """

    sites: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    is_linen: bool = False


def frames_of(equation: Any) -> Frames:
    """Reads the frames that an equation was traced in."""
    traceback = equation.source_info.traceback
    if traceback is None:
        return Frames()
    codes, places = traceback.raw_frames()
    sites, names, linen, inside = [], [], False, False
    for code, place in zip(reversed(codes), reversed(places), strict=True):
        file = code.co_filename
        if file.startswith(_NOBODYS):
            inside = True  # what stands around is the program that trains, not what is trained
        elif inside:
            sites.append((id(code), place))
            names.append(code.co_qualname)
            linen = linen or file.endswith(_LINEN)
    return Frames(tuple(sites), tuple(names), linen)


def find_call(within: Call, equation: Any, around: Frames, *, outermost: bool) -> Call:
    """Finds the call that an equation stands in, or makes it.

    Args:
        within: where the jaxpr stands.
        equation: of the jaxpr.
        around: frames of the equation that the jaxpr belongs to.
        outermost: whether the jaxpr is the traced function, so that its first frame is the function's own.
    """
    frames = frames_of(equation)
    scopes = name_scopes(equation)
    call, size = within, len(around.sites)
    # of a function that was traced before, at another place, the frames tell nothing of this one
    if frames.sites[:size] == around.sites and not (frames.is_linen and scopes):
        for i, name in enumerate(frames.names[size:], size):
            module, function = _MODULE.fullmatch(name), _FUNCTION.fullmatch(name)
            if module or (function and not (outermost and i == 0)):
                key = (frames.sites[:i], frames.sites[i][0])
                own = module.group(1) if module else name
                call = call.enter(own, key, frames.sites[i][1], is_module=bool(module))
    for scope in scopes:
        call = call.enter(scope, scope)
    return call


def name_scopes(equation: Any) -> Sequence[str]:
    """What `jax.named_scope` names, without the transformations."""
    text = re.sub(r"\w+\(", "", str(equation.source_info.name_stack)).replace(")", "")
    # Equinox names the class, which the frames know as well
    return [part for part in text.split("/") if part and not part.startswith("eqx.")]
