"""One epoch of a source, with positions to resume at, and epoch after epoch, each with the controls of its begin."""

import contextlib
import queue
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxcb._src.data.sources import Source, ran_out
from jaxcb._src.data.stream.iterator_state import NotSerializableError, as_json, from_json
from jaxcb._src.data.stream.source_checks import SourceChecks
from jaxcb._src.utils.errors import DataError

_NO_STATE: Mapping[str, Any] = MappingProxyType({})


class SourcePosition(NamedTuple):
    """Position of a source after a batch.

    A plain tuple, since one is made per batch and few are read.

    Attributes:
        number: number of the epoch.
        batches: batches taken from it.
        state: state of the user's iterator as `{"iterator": JSON}`; empty if it has none.
    """

    number: int
    batches: int
    state: Mapping[str, Any] = _NO_STATE

    def as_json(self) -> dict[str, Any]:
        """Returns the form that a checkpoint stores."""
        return {"pass": self.number, "batches": self.batches, **self.state}


Pulled = tuple[Any, SourcePosition]  # a batch as returned by the source, and the position after it


class EpochIterator(Iterator[Pulled]):
    """Iterates over the batches of an epoch. An error gets a note with epoch and batch.

    If the source's iterator has `get_state` and `set_state`, positions include its state. It is read after each batch,
    before the next one.

    Args:
        source: where the batches come from.
        number: number of the epoch, from 0.
        controls: the controls at its begin, for data that depends on them.
        checks: what else is checked of the source; None for nothing.
    """

    def __init__(
        self, source: Source, number: int, controls: Mapping[str, float], checks: SourceChecks | None = None
    ) -> None:
        self.number, self.controls = number, controls
        self._source, self._checks = source, checks
        self._restart()

    def _restart(self) -> None:
        self._batches: Any = None
        self._has_state = False  # whether the user's iterator has a state
        self._pulled = 0
        self._peeked: Pulled | None = None
        self._position = SourcePosition(self.number, 0)  # after the last batch returned

    def __next__(self) -> Pulled:
        pulled, self._peeked = self._peeked or self._pull(), None
        self._position = pulled[1]
        return pulled

    def peek(self) -> Pulled | None:
        """Returns the next batch, which stays the next one; None at the end."""
        if self._peeked is None:
            with contextlib.suppress(StopIteration):
                self._peeked = self._pull()
        return self._peeked

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch, as JSON."""
        return self._position.as_json()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position in this epoch. Without a state of the user's iterator, the batches before it are skipped.

        Raises:
            DataError: if the epoch has fewer batches.
        """
        done = state["batches"]
        if done == self._position.batches:
            return
        if done < self._position.batches:
            self._restart()
        if self._batches is None:
            self.peek()
        if "iterator" in state and self._has_state:
            batches: Any = self._batches
            try:
                batches.set_state(from_json(state["iterator"]))
            except BaseException as error:
                error.add_note(f"This happened while the state of {self._what} after batch {done} was restored.")
                raise
            self._pulled, self._peeked = done, None
            self._position = SourcePosition(self.number, done, {"iterator": state["iterator"]})
        pulled = None
        while self._position.batches < done:
            pulled = next(self, None)
            if pulled is None:
                raise DataError(ran_out(self._what, self._pulled, done))
        if pulled is not None and self._checks is not None:
            self._checks.check_replayed(self._what, done, pulled[0], state)

    def must_replay_to(self, state: Mapping[str, Any]) -> bool:
        """Returns whether going to a position has to iterate over the batches before it."""
        return state["batches"] > 0 and not ("iterator" in state and self._has_state)

    def _pull(self) -> Pulled:
        try:
            if self._batches is None:
                self._batches = self._begin()
            if self._pulled == self._source.most:
                raise StopIteration
            batch = next(self._batches)
            state = self._read_state() if self._has_state else _NO_STATE
        except StopIteration:
            self._batches, self._has_state = iter(()), False  # free the source's iterator before the next epoch begins
            raise
        except BaseException as error:
            error.add_note(f"This happened while batch {self._pulled + 1} of {self._what} was pulled.")
            raise
        pulled = self._pulled = self._pulled + 1
        if pulled == 1 and self._checks is not None:
            self._checks.check_first(self.number, batch, self._batches, state)
        return batch, SourcePosition(self.number, pulled, state)

    def _begin(self) -> Iterator[Any]:
        batches = self._source.iterate(self.number, self.controls)
        self._has_state = all(callable(getattr(batches, name, None)) for name in ("get_state", "set_state"))
        return batches

    def _read_state(self) -> Mapping[str, Any]:
        """Returns the iterator's state. An iterator whose state cannot be saved is iterated again on resume."""
        state = None
        with contextlib.suppress(NotImplementedError):
            state = self._batches.get_state()
        if state is not None:
            try:
                return {"iterator": as_json(state)}
            except NotSerializableError as error:
                if self._checks is not None:
                    self._checks.tell_of_lost_state(str(error))
        self._has_state = False
        return _NO_STATE

    @property
    def _what(self) -> str:
        return self._source.describe(self.number)


END: Any = type("EndOfEpoch", (), {})()  # takes the place of a batch at the end of an epoch


class EpochControls:
    """Passes the controls from the run to the thread that pulls its data.

    An epoch of the data begins only after the previous one was closed and read, since it needs the controls at that
    point.

    Args:
        epoch: the epoch in which the run starts.
        controls: the controls before the first step, or those with which that epoch began.
        midway: whether the run starts within that epoch, whose controls no longer change.
    """

    def __init__(self, epoch: int, controls: Mapping[str, Any], *, midway: bool) -> None:
        self._epoch, self._controls = epoch, _floats(controls)
        self._fixed, self._begun = midway, False
        self._queue: queue.Queue[dict[str, float] | None] = queue.Queue()

    @property
    def current(self) -> dict[str, float]:
        """The controls with which the current epoch has begun, or would begin now."""
        return dict(self._controls)

    def reach(self, epoch: int, controls: Mapping[str, Any]) -> None:
        """Notes the epoch that the run has reached, and the controls at this point."""
        if epoch > self._epoch:
            self._epoch, self._fixed, self._begun = epoch, False, False
        if not self._fixed:
            self._controls = _floats(controls)

    def begin(self) -> None:
        """Allows the epoch that the run has reached to begin."""
        if not self._begun:
            self._fixed = self._begun = True
            self._queue.put(self._controls)

    def end(self) -> None:
        """Ends the wait of the thread."""
        self._queue.put(None)

    def wait(self) -> dict[str, float] | None:
        """Returns the controls with which the next epoch begins, once it may; None at the end. Called in the thread."""
        return self._queue.get()


class Epochs(Iterator[Pulled]):
    """Iterates over epoch after epoch of a source, with `END` after the last batch of each.

    An epoch whose data depends on the controls begins only when the run has reached it.

    Args:
        source: where the batches come from.
        first: the first epoch. Batches that were peeked at are not pulled again.
        controls: the controls with which epochs begin; None if the data does not depend on them.
        checks: what else is checked of the source; None for nothing.
    """

    def __init__(
        self,
        source: Source,
        first: EpochIterator,
        controls: EpochControls | None,
        checks: SourceChecks | None = None,
    ) -> None:
        self._source, self._controls, self._checks = source, controls, checks
        self._opened: EpochIterator | None = first
        self._only = first.number if source.is_generator else None  # a generator can be iterated once
        self._epoch: EpochIterator | None = None
        self._begin_at: Mapping[str, Any] = first.get_state()  # position at which the next epoch begins

    def __next__(self) -> Pulled:
        if self._epoch is None:
            self._epoch = self._begin()
        pulled = next(self._epoch, None)
        if pulled is not None:
            return pulled
        after = SourcePosition(self._epoch.number + 1, 0)
        self.set_state(after.as_json())
        return END, after

    def get_state(self) -> Mapping[str, Any]:
        """Returns the position after the last item, as JSON."""
        return self._begin_at if self._epoch is None else self._epoch.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position, when the next batch is pulled."""
        self._epoch, self._begin_at = None, state

    def _begin(self) -> EpochIterator:
        number = self._begin_at["pass"]
        if self._only not in (None, number):
            raise StopIteration
        controls = {} if self._controls is None else self._controls.wait()
        if controls is None:
            raise StopIteration
        epoch, self._opened = self._opened, None
        # another epoch, or `on_train_begin` has changed a control
        if epoch is None or epoch.number != number or (self._controls is not None and epoch.controls != controls):
            epoch = EpochIterator(self._source, number, controls, self._checks)
        epoch.set_state(self._begin_at)
        return epoch


def _floats(controls: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in controls.items()}
