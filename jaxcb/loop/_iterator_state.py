"""The state of a user's iterator as JSON, and back without a loss."""

import base64
from typing import Any

import numpy as np


class Unkeepable(TypeError):
    """A state that JSON cannot keep."""


def as_json(value: Any) -> Any:
    """Returns a copy of what an iterator's `get_state` gave that JSON keeps as it is.

    What JSON lacks (bytes, tuples, numpy arrays, keys that are no text) becomes a dict of one key with a "$".

    Raises:
        Unkeepable: for what cannot be kept, naming its type.

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
    raise Unkeepable(f"an iterator's state cannot be kept, since a {type(value).__name__} is in it")


def from_json(value: Any) -> Any:
    """Returns the state that `as_json` was given.

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
