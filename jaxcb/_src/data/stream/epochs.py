"""`Epochs`: epoch after epoch of a source, each begun with the controls that the run has then."""

import queue
from collections.abc import Iterator, Mapping
from typing import Any

from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.epoch import EpochIterator, Pulled, SourcePosition

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
    """

    def __init__(self, source: Source, first: EpochIterator, controls: EpochControls | None) -> None:
        self._source, self._controls = source, controls
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
            epoch = EpochIterator(self._source, number, controls)
        epoch.set_state(self._begin_at)
        return epoch


def _floats(controls: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in controls.items()}
