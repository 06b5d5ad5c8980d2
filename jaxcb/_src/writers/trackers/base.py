"""`Tracker`: base class of the clients of tracking services."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

Status = Literal["finished", "interrupted", "failed"]


class RefusedError(Exception):
    """The service rejected a record, so that sending it again is useless. `Tracker.send` may raise it."""


class TrackedRecord(NamedTuple):
    """The values that are logged at one step.

    Attributes:
        step: updates done.
        epoch: index of the epoch, from 0.
        time: seconds since 1970.
        values: name -> number.
    """

    step: int
    epoch: int
    time: float
    values: dict[str, float]


class TrackedRun(NamedTuple):
    """The run, for a tracker that opens the service's run.

    Attributes:
        key: text that is unique for this run and logger, and the same after a resume: letters, digits, `-`, `_`, `.`
            and `~`, at most 100. Use it as the service's id where the service lets its clients choose one, otherwise as
            a tag to search for.
        id: what `Tracker.open` returned for this run before, in this process or an earlier one; None if that is
            unknown.
        what_ran: the commit, command, versions, devices, host and data of this process, without secrets.
        directory: the run's directory, or None.
        quiet: whether the run is silent.
    """

    key: str
    id: str | None
    what_ran: Mapping[str, Any]
    directory: Path | None
    quiet: bool


class Tracker:
    """Base class of the clients of tracking services: one object sends the records of one run.

    A subclass defines `send`, and where the service has them `open`, `history` and `close`. These methods are called
    from one thread at a time, and training does not wait for them. An error that they raise leads to one warning; the
    call is repeated after a pause, beginning with `open`. Meanwhile the records wait in the run's directory.

    After each error, and in a resumed run, it is unknown which of the last records the service holds. `history` then
    reads that back. Without it these records are sent again, so that a record comes at least once.

    Use it with `jc.callbacks.TrackerLogger`. A frozen dataclass compares by its values, so that a second run with an
    equal tracker compiles nothing.

    Attributes:
        service: its name, for messages.
        package: the package that it needs; None for no package.
        batch: maximum number of records per call of `send`.
        confirms: whether the service has stored the records when `send` returns. If not, a resumed run reads back all
            records of the run.
        opens_first: whether the run waits for the first `open`, so that an error for which `is_fatal` returns true ends
            it before its first step.
        close_seconds: how long the end of a run waits for the service.

    Example:
        >>> import jaxcb as jc
        >>> class Shelf(jc.writers.Tracker):
        ...     def __init__(self):
        ...         self.rows = []
        ...     def send(self, records):
        ...         self.rows += [(record.step, record.values) for record in records]
        >>> shelf = Shelf()
        >>> logger = jc.chain(jc.callbacks.TrackerLogger(shelf))
        >>> with jc.Recorder(callbacks=logger, verbose=0) as recorder:
        ...     _, actions = logger.on_epoch_end(logger.init(), jc.Metrics({"loss": 0.5}, step=10))
        ...     recorder.perform(actions, step=10)
        >>> shelf.rows
        [(10, {'loss': 0.5})]
    """

    service: ClassVar[str] = ""
    package: ClassVar[str | None] = None
    batch: ClassVar[int] = 100
    confirms: ClassVar[bool] = True
    opens_first: ClassVar[bool] = False
    close_seconds: float = 30.0

    def check(self, owner: str) -> None:
        """Called before the first step; raises an error for what the user has to mend.

        Args:
            owner: name of the callback, for the error.

        Raises:
            ImportError: if the package is missing.
        """
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ImportError(f"{owner} needs the package {self.package}: pip install jaxcb[{self.package}].")

    def open(self, run: TrackedRun) -> str | None:
        """Opens the service's run, or makes it if there is none; called again after an error.

        Args:
            run: the run.

        Returns:
            The service's id of the run, which is kept for a resume; None if it has none.
        """
        return run.id

    def send(self, records: list[TrackedRecord]) -> None:
        """Sends records, in order.

        Raises:
            RefusedError: for records that the service will never take.
            Exception: of any kind if the service cannot be reached.
        """
        raise NotImplementedError

    def history(self, name: str) -> Iterable[tuple[int, float]] | None:
        """Returns what the service holds of a metric, step and value of each point; None if it cannot be read."""
        return None

    def missing(self, records: list[TrackedRecord]) -> list[TrackedRecord]:
        """Returns those records, or parts of them, that the service does not hold; all if it cannot be read.

        It asks `history`. A service that returns many metrics at once can define this instead.
        """
        held = HeldValues(records)
        for name in sorted({name for record in records for name in record.values}):
            points = self.history(name)
            if points is None:
                return records
            for step, value in points:
                held.add(step, name, value)
        return held.missing()

    def close(self, status: Status) -> None:
        """Closes the service's run after its last record; it may be opened again later."""

    def is_fatal(self, error: Exception) -> bool:
        """Returns whether an error of the first `open` is the user's to mend, with `opens_first`."""
        return False


class HeldValues:
    """What a service holds at the steps of some records.

    Args:
        records: the records.
    """

    def __init__(self, records: list[TrackedRecord]) -> None:
        self._records = records
        self._held: dict[int, dict[str, list[Any]]] = {record.step: {} for record in records}

    def add(self, step: int, name: str, value: Any) -> None:
        """Adds a value that the service holds; those at other steps are left out."""
        if step in self._held:
            self._held[step].setdefault(name, []).append(value)

    def missing(self) -> list[TrackedRecord]:
        """Returns those records, or parts of them, that the service does not hold."""
        return [rest for record in self._records if (rest := self._rest(record)) is not None]

    def _rest(self, record: TrackedRecord) -> TrackedRecord | None:
        """Returns the part of a record that the service does not hold; None if it holds all."""
        held = self._held[record.step]
        values = {name: value for name, value in record.values.items() if not _is_among(value, held.get(name, ()))}
        return record._replace(values=values) if values else None


def _is_among(value: float, values: Any) -> bool:
    return any(value == other or (value != value and other != other) for other in values)  # NaN equals NaN
