"""The state of a user's iterator: its form in a checkpoint, and whether another process can restore it."""

import base64
import re
from typing import Any

import numpy as np

from jaxcb._src.utils.errors import DataError


class NotSerializableError(TypeError):
    """A state that cannot be stored as JSON."""


def as_json(value: Any) -> Any:
    """Converts an iterator's state to JSON without loss.

    What JSON lacks (bytes, tuples, numpy arrays, keys that are not strings) becomes a dict with one key that begins
    with "$".

    Raises:
        NotSerializableError: for other types.

    Example:
        >>> as_json({"next": 3, "seen": b"ab"})
        {'next': 3, 'seen': {'$bytes': 'YWI='}}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [as_json(x) for x in value]
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: as_json(x) for key, x in value.items()}
        return {"$items": [[as_json(key), as_json(x)] for key, x in value.items()]}
    if type(value) is tuple:
        return {"$tuple": [as_json(x) for x in value]}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {kind: [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]}
    raise NotSerializableError(f"an iterator's state cannot be saved, since it contains a {type(value).__name__}")


def from_json(value: Any) -> Any:
    """Inverts `as_json`.

    Example:
        >>> from_json({"next": 3, "seen": {"$bytes": "YWI="}})
        {'next': 3, 'seen': b'ab'}
    """
    if isinstance(value, list):
        return [from_json(x) for x in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$items": items}:
            return {from_json(key): from_json(x) for key, x in items}
        case {"$tuple": items}:
            return tuple(from_json(x) for x in items)
        case {"$bytes": text}:
            return base64.b64decode(text)
        case {"$array": [dtype, shape, text]}:
            return np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy()
        case {"$scalar": [dtype, _, text]}:
            return np.frombuffer(base64.b64decode(text), dtype)[0]
    return {key: from_json(x) for key, x in value.items()}


# as in Python's own `repr` of an object, such as `<data.Rows object at 0x7f3a5c0d1e50>`
_ADDRESS = re.compile(r"<?([\w.]*)(?: object)? at (0x[0-9a-fA-F]{4,})")
_OTHER_DIGITS = str.maketrans("0123456789abcdefABCDEF", "1032547698badcfeBADCFE")


def check_restorable(iterator: Any, saved: Any, what: str) -> None:
    """Checks, while nothing is lost yet, that an iterator would accept its state in a new process.

    Iterators compare the `repr` of what they read from, which by default has the address of an object. So a state that
    has one is set with another address, as a new process would have it, and then as it was.

    Args:
        iterator: the user's iterator.
        saved: its state, in the form of a checkpoint.
        what: the name of the data in errors.

    Raises:
        DataError: if it refuses the state. It says which class needs a `repr`.
    """
    state = from_json(saved)
    found = _address_in(state)
    if found is None:
        return
    try:
        iterator.set_state(_elsewhere(state))
    except Exception as error:
        name = found[1].rpartition(".")[2] or "the object"
        raise DataError(
            f"{what}: a run that is killed could not resume. The state of its iterator contains {found[0]!r}, the "
            "address of an object in memory. The iterator refuses a state with another address, as it is in a new "
            f"process. Define __repr__ in {name}, without an address: def __repr__(self): return "
            f'"{name}(...)". The iterator says: {type(error).__name__}: {str(error).partition(chr(10))[0]:.200}'
        ) from error
    iterator.set_state(state)


def _address_in(state: Any) -> re.Match[str] | None:
    """Returns the first address of an object in a state."""
    if isinstance(state, str | bytes):
        return _ADDRESS.search(state if isinstance(state, str) else state.decode("latin-1"))
    if isinstance(state, dict):
        state = [*state.keys(), *state.values()]
    inner = state if isinstance(state, list | tuple) else ()
    return next((found for part in inner if (found := _address_in(part)) is not None), None)


def _elsewhere(state: Any) -> Any:
    """Returns a state with other addresses."""
    if isinstance(state, str):
        return _ADDRESS.sub(lambda found: found[0].removesuffix(found[2]) + "0x" + _other(found[2][2:]), state)
    if isinstance(state, bytes):
        return _elsewhere(state.decode("latin-1")).encode("latin-1")
    if isinstance(state, dict):
        return {_elsewhere(key): _elsewhere(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        parts = [_elsewhere(part) for part in state]
        return parts if isinstance(state, list) else tuple(parts)
    return state


def _other(digits: str) -> str:
    return digits.translate(_OTHER_DIGITS)
