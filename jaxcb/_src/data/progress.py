"""Where a run is and where it ends, as data, the programs and the host know it; the predicates are written once."""

from typing import Any, NamedTuple, Protocol

import numpy as np

UNBOUNDED = np.iinfo(np.int32).max  # a number of steps that is unknown or unlimited


class Position(NamedTuple):
    """Where a run is: integers on the host, arrays in a program."""

    step: Any  # updates done
    epoch: Any  # from 0
    cursor: Any  # steps done in this epoch
    evaluated: Any = 0  # step of the last validation
    stopped: Any = False  # whether every member has stopped


class Limits(Protocol):
    """Where an epoch and a run end. `DispatchParams` and their packed form have these attributes, too."""

    @property
    def epoch_len(self) -> Any:
        """Steps of an epoch, `UNBOUNDED` if not yet known."""
        ...

    @property
    def end_step(self) -> Any:
        """The step after which the run is over."""
        ...

    @property
    def end_epoch(self) -> Any:
        """The epoch after which the run is over."""
        ...


# The predicates use only operators that integers, booleans and arrays share: no `not`, `and`, `or`, `if` or `~`.


def is_over(at: Position, limits: Limits) -> Any:
    """Returns whether the last epoch is closed, bool ()."""
    return (at.cursor == 0) & (at.stopped | (at.epoch >= limits.end_epoch) | (at.step >= limits.end_step))


def must_close(at: Position, limits: Limits, is_own_epoch: Any = True) -> Any:
    """Returns whether the epoch must be closed now, bool ().

    Args:
        at: the position.
        limits: where epoch and run end.
        is_own_epoch: whether the data belongs to this epoch; the length of another one says nothing about it.
    """
    full = is_own_epoch & (at.cursor >= limits.epoch_len)
    return (at.cursor > 0) & (full | (at.step >= limits.end_step) | at.stopped)


class StreamLimits(NamedTuple):
    """Where the epochs of a stream and the run end.

    Attributes:
        epoch_len: steps of an epoch, UNBOUNDED if unknown.
        steps_per_epoch: the same if a stream is cut into epochs; None if the source ends each epoch.
        end_epoch: the run needs no data for this epoch and later ones.
        end_step: the run needs no data after this many steps.
        ends_with_pass: whether an iteration of the source ends with each epoch.
    """

    epoch_len: int
    steps_per_epoch: int | None
    end_epoch: int
    end_step: int
    ends_with_pass: bool

    def after_epoch(self, position: dict[str, Any]) -> dict[str, Any]:
        """Returns the position of the source after an epoch was closed, from the position after its last step."""
        return {"pass": position["pass"] + 1, "batches": 0} if self.ends_with_pass else position


class FeedStart(NamedTuple):
    """Position at which a feed starts.

    Attributes:
        epoch: the epoch.
        cursor: steps done in the epoch.
        step: updates done.
        position: `Feed.get_state()` at that point.
    """

    epoch: int = 0
    cursor: int = 0
    step: int = 0
    position: dict[str, Any] | None = None

    @property
    def at(self) -> Position:
        """The position of the run."""
        return Position(self.step, self.epoch, self.cursor)


class Progress(Protocol):
    """Position of a run, as a feed needs it. `Status` implements it."""

    @property
    def step(self) -> Any: ...
    @property
    def epoch(self) -> Any: ...
    @property
    def cursor(self) -> Any: ...
    @property
    def over(self) -> Any: ...
    @property
    def controls(self) -> Any: ...
