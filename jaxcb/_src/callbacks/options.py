"""`Options`: a mapping as a hashable value for a static field, such as arguments of a third-party function."""

from collections.abc import Iterator, Mapping
from typing import Any


class Options(Mapping[Any, Any]):
    """A read-only mapping that is hashable even if its values are not."""

    def __init__(self, given: Mapping[Any, Any]) -> None:
        self._given = dict(given)

    def __getitem__(self, name: Any) -> Any:
        return self._given[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __hash__(self) -> int:
        return hash(frozenset(self._given))  # of the names only: the values may be dicts and lists

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Options) or self._given.keys() != other._given.keys():
            return False
        try:
            return all(value is other[name] or bool(value == other[name]) for name, value in self._given.items())
        except ValueError:  # comparing arrays gives no single truth value
            return False

    def __repr__(self) -> str:
        return f"Options({self._given!r})"
