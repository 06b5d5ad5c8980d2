"""Finding out which metrics a hook reads, by tracing it with a mapping that has every name."""

from collections.abc import Iterator
from typing import Any

STANDARD = ("accuracy", "base_learning_rate", "learning_rate", "loss", "val_accuracy", "val_loss")


class Asked:
    """Which metrics were asked for: these names, or all there are."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.all = False


class AnyNames(dict[str, Any]):
    """A mapping that has every name, and notes which ones are asked for."""

    def __init__(self, asked: Asked, value: Any) -> None:
        super().__init__(dict.fromkeys(STANDARD, value))
        self._asked, self._value = asked, value

    def __getitem__(self, name: str) -> Any:
        self._asked.names.add(name)
        return self._value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        self._asked.all = True
        return super().__iter__()

    def keys(self) -> Any:
        self._asked.all = True
        return super().keys()

    def values(self) -> Any:
        self._asked.all = True
        return super().values()

    def items(self) -> Any:
        self._asked.all = True
        return super().items()
