"""Forms of JSON files, by which all that a run reads from a folder is checked before it is used.

A folder may be another's: its files may be broken, or made to harm. Each reader describes what it expects as a form, a
function that raises `FormError` for anything else.

Why this is not a library: pydantic and jsonschema would each be a further dependency, of some megabytes and a tenth of
a second to import; a dozen functions suffice for three kinds of files.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

DEPTH = 64  # nested lists and dicts
LARGEST = 2**62
Form = Callable[[Any, str], None]


class FormError(ValueError):
    """A value of another form, with its place in the file."""


def parse(data: bytes | str, form: Form) -> Any:
    """Parses and checks JSON.

    Raises:
        FormError: for anything but JSON of this form.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise FormError(f"it is nested more than {DEPTH} deep") from None
    except ValueError as error:
        raise FormError(f"it is not JSON ({error})") from None
    check(value, form)
    return value


def check(value: Any, form: Form) -> None:
    """Checks a value that was read from JSON.

    Raises:
        FormError: if it is of another form, or nested too deep.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [
            part for x in level if isinstance(x, dict | list) for part in (x.values() if isinstance(x, dict) else x)
        ]
        if not level:
            break
    else:
        raise FormError(f"it is nested more than {DEPTH} deep")
    form(value, "")


def _expected(what: str, value: Any, at: str) -> FormError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return FormError(f"{at or 'it'} is {shown}, expected {what}")


def anything(value: Any, at: str) -> None:
    """Accepts any value."""


def text(value: Any, at: str) -> None:
    """Accepts text."""
    if not isinstance(value, str):
        raise _expected("text", value, at)


def boolean(value: Any, at: str) -> None:
    """Accepts true and false."""
    if not isinstance(value, bool):
        raise _expected("true or false", value, at)


def number(value: Any, at: str) -> None:
    """Accepts a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _expected("a finite number of at least 0", value, at)


def whole(most: int = LARGEST, *, least: int = 0) -> Form:
    """Returns a form of integers."""

    def accept(value: Any, at: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _expected(f"a whole number from {least} to {most}", value, at)

    return accept


def choice(*values: Any) -> Form:
    """Returns a form of some values."""

    def accept(value: Any, at: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            raise _expected(f"one of {', '.join(map(repr, values))}", value, at)

    return accept


def maybe(form: Form) -> Form:
    """Returns a form that accepts null, too."""
    return lambda value, at: None if value is None else form(value, at)


def matching(what: str, is_right: Callable[[Any], bool]) -> Form:
    """Returns a form of values with a property."""

    def accept(value: Any, at: str) -> None:
        if not is_right(value):
            raise _expected(what, value, at)

    return accept


def sequence(form: Form, most: int = 1_000_000) -> Form:
    """Returns a form of lists."""

    def accept(value: Any, at: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _expected(f"a list of at most {most} entries", value, at)
        for i, part in enumerate(value):
            form(part, f"{at}[{i}]")

    return accept


def entries(*forms: Form, least: int | None = None) -> Form:
    """Returns a form of lists with one form for each entry, of which the last ones may be missing."""

    def accept(value: Any, at: str) -> None:
        if not isinstance(value, list) or not (len(forms) if least is None else least) <= len(value) <= len(forms):
            raise _expected(f"a list of {len(forms)} entries", value, at)
        for i, (form, part) in enumerate(zip(forms, value, strict=False)):
            form(part, f"{at}[{i}]")

    return accept


def mapping(form: Form, name: Form = text) -> Form:
    """Returns a form of dicts with any names."""

    def accept(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _expected("a dict", value, at)
        for key, part in value.items():
            name(key, f"a name in {at or 'it'}")
            form(part, f"{at}[{key!r:.40}]")

    return accept


def record(required: Mapping[str, Form], optional: Mapping[str, Form] | None = None) -> Form:
    """Returns a form of dicts with known names; others are ignored, as a later version may have added them."""

    def accept(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _expected("a dict", value, at)
        for key, form in required.items():
            if key not in value:
                raise FormError(f"{at or 'it'} has no {key!r}")
            form(value[key], f"{at}.{key}" if at else key)
        for key, form in (optional or {}).items():
            if key in value:
                form(value[key], f"{at}.{key}" if at else key)

    return accept


def either(*forms: Form) -> Form:
    """Returns a form that accepts what any of some forms accepts."""

    def accept(value: Any, at: str) -> None:
        for form in forms[:-1]:
            try:
                return form(value, at)
            except FormError:
                continue
        return forms[-1](value, at)

    return accept
