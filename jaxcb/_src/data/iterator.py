"""`Pass`: one walk over a source's batches, which knows where it stands."""

import base64
import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.data.sources import Source, ran_out
from jaxcb._src.utils.errors import DataError


class NotSerializableError(TypeError):
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
    raise NotSerializableError(f"an iterator's state cannot be kept, since a {type(value).__name__} is in it")


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


_NO_STATE: Mapping[str, Any] = MappingProxyType({})


class Position(NamedTuple):
    """Where a pass stands behind a batch; plain, since one is made for each batch and few are asked for.

    Attributes:
        number: of the pass.
        batches: how many were pulled.
        state: the iterator's own as `{"iterator": JSON}`; empty where it tells none.
    """

    number: int
    batches: int
    state: Mapping[str, Any] = _NO_STATE

    def as_json(self) -> dict[str, Any]:
        """The form in which a checkpoint keeps it."""
        return {"pass": self.number, "batches": self.batches, **self.state}


Pulled = tuple[Any, Position]  # a batch as the source gave it, and where its pass stands behind it


class EpochIterator(Iterator[Pulled]):
    """Pulls the batches of a pass; an error names the pass and the batch.

    Where the source's iterator has `get_state` and `set_state`, a position has its state. It is asked after each batch,
    before the next one is pulled.

    Args:
        source: where the batches come from.
        number: of the pass, from 0.
        controls: the run's at its begin, for a source that follows the run.
    """

    def __init__(self, source: Source, number: int, controls: Mapping[str, float]) -> None:
        self.number, self.pulled = number, 0
        self._source, self._controls = source, controls
        self._batches: Any = None
        self._tells = False  # whether the iterator says where it stands

    def __next__(self) -> Pulled:
        try:
            if self._batches is None:
                self._batches = self._begin()
            if self.pulled == self._source.most:
                raise StopIteration
            batch = next(self._batches)
            state = self._state() if self._tells else _NO_STATE
        except StopIteration:
            self._batches, self._tells = iter(()), False  # frees the source's own before the next pass begins
            raise
        except BaseException as error:
            error.add_note(f"This happened while batch {self.pulled + 1} of {self._what} was pulled.")
            raise
        pulled = self.pulled = self.pulled + 1
        return batch, Position(self.number, pulled, state)

    def walks_to(self, position: Mapping[str, Any]) -> bool:
        """Whether the batches before a position have to be pulled again."""
        return position["batches"] > 0 and not ("iterator" in position and self._tells)

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Goes on behind the batch that a position was told with.

        Raises:
            DataError: where the pass has no such batch any more.
        """
        done = position["batches"]
        if "iterator" in position and self._tells:
            try:
                self._batches.set_state(from_json(position["iterator"]))
            except BaseException as error:
                error.add_note(f"This happened while {self._what} was set to where it stood after batch {done}.")
                raise
            self.pulled = done
            return
        while self.pulled < done:
            if next(self, None) is None:
                raise DataError(ran_out(self._what, self.pulled, done))

    def _begin(self) -> Iterator[Any]:
        batches = self._source.iterate(self.number, self._controls)
        self._tells = all(callable(getattr(batches, name, None)) for name in ("get_state", "set_state"))
        return batches

    def _state(self) -> Mapping[str, Any]:
        """The iterator's state. One that has none to keep is walked again on resume, which says so then."""
        state = None
        with contextlib.suppress(NotImplementedError):
            state = self._batches.get_state()
        if state is not None:
            with contextlib.suppress(NotSerializableError):
                return {"iterator": as_json(state)}
        self._tells = False
        return _NO_STATE

    @property
    def _what(self) -> str:
        return self._source.describe(self.number)
