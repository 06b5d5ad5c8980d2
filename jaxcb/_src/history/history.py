"""`RunHistory`: the metrics that a run reported, as arrays by name."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxcb._src.utils.errors import did_you_mean


class RunHistory(Mapping[str, np.ndarray]):
    """The rows of a run: one per epoch, and one per validation within an epoch.

    For a population, columns have a second axis, the members; values that a member has not reported are NaN.

    Attributes:
        step: updates done at each row, int64 (rows,).
        epoch: the epoch of each row, from 0, int64 (rows,).

    Example:
        >>> from jaxcb._src.history.history import RunHistory
        >>> history = RunHistory()
        >>> history.add(10, 0, {"loss": 0.5}, {"loss": True})
        >>> history["loss"].tolist(), history.reported("loss").tolist()
        ([0.5], [True])
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._epochs: list[int] = []
        self._values: dict[str, list[Any]] = {}
        self._reported: dict[str, list[Any]] = {}
        self._when: list[Any] = []

    def declare(self, names: Any) -> None:
        """Adds columns before there are rows."""
        for name in names:
            self._values.setdefault(name, [])
            self._reported.setdefault(name, [])

    def add(self, step: int, epoch: int, values: Mapping[str, Any], fresh: Mapping[str, Any], when: Any = True) -> None:
        """Adds a row; for a population, values have a member axis, and `when` selects the members that have the row."""
        self.declare(values)
        self._steps.append(step)
        self._epochs.append(epoch)
        self._when.append(when)
        for name, value in values.items():
            new, value = np.asarray(fresh[name]) & when, np.asarray(value)
            self._values[name].append(value if np.all(new) else np.where(new, value, np.float32(np.nan)))
            self._reported[name].append(new)

    def member(self, index: int) -> "RunHistory":
        """Returns the rows of one member of a population as the history of a single run."""
        member_history = RunHistory()
        member_history.declare(self)
        for row in self.rows_of(index):
            values = {name: column[row][index] for name, column in self._values.items()}
            fresh = {name: column[row][index] for name, column in self._reported.items()}
            member_history.add(self._steps[row], self._epochs[row], values, fresh)
        return member_history

    def rows_of(self, index: int) -> np.ndarray:
        """Returns the indices of a member's rows, int64 (rows,)."""
        return np.flatnonzero([bool(np.asarray(when)[index]) for when in self._when])

    @property
    def step(self) -> np.ndarray:
        """Updates done at each row."""
        return np.asarray(self._steps, np.int64)

    @property
    def epoch(self) -> np.ndarray:
        """The epoch of each row."""
        return np.asarray(self._epochs, np.int64)

    def reported(self, name: str) -> np.ndarray:
        """Returns whether each row's value was reported in that row, bool (rows,)."""
        self._check(name)
        return np.asarray(self._reported[name], bool)

    def __getitem__(self, name: str) -> np.ndarray:
        """The value of each row, float32 (rows,); NaN where it was not reported."""
        self._check(name)
        return np.asarray(self._values[name])

    def _check(self, name: str) -> None:
        if name not in self._values:
            raise KeyError(f"{name}; recorded: {', '.join(sorted(self._values))}{did_you_mean(name, self._values)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"RunHistory({len(self._steps)} rows of {', '.join(sorted(self._values))})"
