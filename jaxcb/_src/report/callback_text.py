"""Callbacks as text: `EarlyStopping(monitor='val_loss', patience=3)`, parsed as literals. Nothing is evaluated.

Checkpoints describe the callbacks of a run in this form, and a user of the command line writes them in it.
"""

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxcb._src.utils.errors import did_you_mean

_LONGEST = 20_000  # characters
_NAMES = {"inf": math.inf, "nan": math.nan}


class CallbackTextError(ValueError):
    """A text that is not a callback; the message says what was expected."""


class Described(NamedTuple):
    """A parsed callback.

    Attributes:
        kind: the name of its class.
        arguments: without names.
        fields: with names.
    """

    kind: str
    arguments: tuple[Any, ...]
    fields: dict[str, Any]


def parse(text: str) -> Described:
    """Parses a call whose arguments are literals.

    Raises:
        CallbackTextError: for anything else.

    Example:
        >>> parse("EarlyStopping(monitor='val_loss', patience=3)")
        Described(kind='EarlyStopping', arguments=(), fields={'monitor': 'val_loss', 'patience': 3})
    """
    form = "expected a name and literal values, such as \"EarlyStopping(monitor='val_loss', patience=3)\""
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST} characters")
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deep"
        raise CallbackTextError(f"{_clip(text)} is not a callback ({reason}); {form}.") from None
    if isinstance(tree, ast.Name):
        return Described(tree.id, (), {})
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise CallbackTextError(f"{_clip(text)} is not a callback; {form}.")
    kind = tree.func.id
    fields: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise CallbackTextError(f"{kind} has ** in its arguments; {form}.")
        fields[keyword.arg] = _literal(keyword.value, f"{kind}.{keyword.arg}")
    return Described(kind, tuple(_literal(a, f"an argument of {kind}") for a in tree.args), fields)


def _literal(node: ast.expr, what: str) -> Any:
    sign, inner = 1, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, inner = -1, node.operand
    if isinstance(inner, ast.Name) and inner.id in _NAMES:
        return sign * _NAMES[inner.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        shown = _clip(ast.unparse(node))
        raise CallbackTextError(
            f"{what} is {shown}, expected a literal: a number, a text in quotes, True, False, None, or a tuple of them."
        ) from None


def make(text: str) -> Any:
    """Makes a built-in callback from its text.

    Raises:
        CallbackTextError: for an unknown class or argument, with near names, and for values out of range.
    """
    return _make(parse(text))


def _make(described: Described, *, recorded: bool = False) -> Any:
    """Makes a callback.

    Args:
        described: the callback.
        recorded: whether the description is a checkpoint's, which also has fields that no argument sets, and may have
            some of a later version.
    """
    known = _builtin()
    kind, arguments, fields = described
    if kind not in known:
        raise CallbackTextError(f"jaxcb has no callback {kind}.{did_you_mean(kind, known)}")
    declared: Any = known[kind]
    names = {f.name: f for f in dataclasses.fields(declared)}
    fields = {n: v for n, v in fields.items() if n not in names or names[n].init} if recorded else fields
    strange = [name for name in fields if name not in names or not names[name].init]
    if strange:
        listed = ", ".join(n for n, f in names.items() if f.init)
        raise CallbackTextError(
            f"{kind} has no argument {strange[0]!r}; it has {listed}.{did_you_mean(strange[0], names)}"
        )
    try:
        return declared(*arguments, **fields)
    except (TypeError, ValueError) as error:
        raise CallbackTextError(f"{kind}: {error}" if kind not in str(error) else str(error)) from None


def _builtin() -> dict[str, Any]:
    """Returns the classes of the built-in callbacks by name."""
    import jaxcb.callbacks
    from jaxcb._src.core.callback import Callback

    kinds = {name: getattr(jaxcb.callbacks, name) for name in jaxcb.callbacks.__all__}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Callback)}


def make_recorded(described: Mapping[str, str], classes: Mapping[str, str]) -> tuple[list[Any], dict[str, str]]:
    """Makes the callbacks of a run from the descriptions in its checkpoint.

    Args:
        described: name -> description.
        classes: name -> key of the class, of which those of this library begin with `jaxcb.`.

    Returns:
        The callbacks under their names, and for each that cannot be made, why: it is the user's own class, or it has
        a function as an argument. No class is imported, so none of a stranger's code runs. Those that only log are
        left out: they decide nothing.
    """
    found, missing, known = [], {}, _builtin()
    for name, words in described.items():
        key = classes.get(name, "").split(" ")[0]
        if not key.startswith("jaxcb."):
            missing[name] = "it is a class of the run's own code"
            continue
        kind = known.get(key.rpartition(".")[2])
        if kind is not None and kind.logs_only:
            continue
        try:
            described_callback = parse(words)
        except CallbackTextError:
            missing[name] = "it was made from functions or objects, which a checkpoint does not contain"
            continue
        try:
            found.append(_made_again(described_callback).replace(name=name))
        except CallbackTextError as error:
            missing[name] = str(error)
    return found, missing


def _made_again(described: Described) -> Any:
    """Makes a callback from its stored fields. Where a class has set a field to None itself, its default is used."""
    try:
        return _make(described, recorded=True)
    except CallbackTextError:
        given = {name: value for name, value in described.fields.items() if value is not None}
        return _make(described._replace(fields=given), recorded=True)


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
