"""`RunHistory`: the metrics that a run reported, as arrays by name."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxcb._src.core.metric_names import columns, resolve_mode
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
            # the member axis of `new` comes first, and the axes of an array metric after it
            shown = new.reshape(new.shape + (1,) * (value.ndim - new.ndim))
            self._values[name].append(value if np.all(new) else np.where(shown, value, np.float32(np.nan)))
            self._reported[name].append(new)

    def rows(self) -> Iterator[tuple[int, int, dict[str, Any], dict[str, Any], Any]]:
        """Yields the arguments of `add` for each row."""
        for row, when in enumerate(self._when):
            values = {name: column[row] for name, column in self._values.items() if row < len(column)}
            fresh = {name: self._reported[name][row] for name in values}
            yield self._steps[row], self._epochs[row], values, fresh, when

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
        """The value of each row, float32 (rows,) or, of an array, (rows, ...); NaN where it was not reported."""
        self._check(name)
        return np.asarray(self._values[name])

    def last(self) -> dict[str, float]:
        """Returns the last reported value of each scalar metric, as floats."""
        found = {}
        for name in self:
            known = np.flatnonzero(self.reported(name)) if self[name].ndim == 1 else np.zeros(0, int)
            if len(known):
                found[name] = float(self[name][known[-1]])
        return found

    def best(self, monitor: str = "val_loss", mode: Literal["auto", "min", "max"] = "auto") -> dict[str, Any]:
        """Returns the row with the best report of a metric: its values, `step` and `epoch`. A NaN is never the best.

        Args:
            monitor: the metric's name.
            mode: "min", "max", or "auto" to derive it from the name.

        Returns:
            name -> number; names that were not reported in that row are missing.

        Raises:
            KeyError: for a name that was not recorded.
            ValueError: if no report is a number, or the mode cannot be derived.

        Example:
            >>> from jaxcb._src.history.history import RunHistory
            >>> history = RunHistory()
            >>> for epoch, loss in enumerate([0.5, 0.25, 0.75]):
            ...     history.add(10 * (epoch + 1), epoch, {"loss": loss}, {"loss": True})
            >>> history.best("loss")
            {'step': 20, 'epoch': 1, 'loss': 0.25}
        """
        self._check(monitor)
        lowest = resolve_mode("RunHistory.best", monitor, mode) == "min"
        values = np.where(self.reported(monitor), np.asarray(self[monitor], np.float64), np.nan)
        if values.ndim != 1:
            raise ValueError(f"RunHistory.best: {monitor!r} is an array in each row, expected a number.")
        if np.all(np.isnan(values)):
            raise ValueError(f"RunHistory.best: no report of {monitor!r} is a number.")
        row = int(np.nanargmin(values) if lowest else np.nanargmax(values))
        reported = (name for name in self if self[name].ndim == 1 and self.reported(name)[row])
        return {"step": int(self.step[row]), "epoch": int(self.epoch[row])} | {n: self[n][row].item() for n in reported}

    def columns(self) -> dict[str, np.ndarray]:
        """Returns `step`, `epoch` and all metrics as columns, for `pandas.DataFrame(history.columns())`.

        A metric that is an array has a column for each of its numbers, `name[0]` and so on.
        """
        found = {"step": self.step, "epoch": self.epoch}
        for name in self:
            column = self[name]
            shape = column.shape[1:]
            flat = column.reshape(len(column), -1)
            found |= {one: flat[:, i] for i, one in enumerate(columns(name, shape))}
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Refuses to be an array: of a mapping that is no dict, pandas would make a table of its names."""
        raise TypeError(
            "a RunHistory is no array, but columns by name: history['loss'] is one of them, and "
            "pandas.DataFrame(history.columns()) a table of all."
        )

    def _check(self, name: str) -> None:
        if name not in self._values:
            names = ", ".join(sorted(self._values))
            raise KeyError(f"{name!r} is no recorded metric; recorded: {names}.{did_you_mean(name, self._values)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"RunHistory({len(self._steps)} rows of {', '.join(sorted(self._values))})"
