"""Which batch is the last one of its epoch: where the source says so, or after a number of steps."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxcb._src.data.stream.batch_spec import CheckedBatch
from jaxcb._src.data.stream.epochs import SourcePosition
from jaxcb._src.data.stream.staging import StagedBatches

MarkedBatch = tuple[CheckedBatch, bool]  # a batch, and whether it is the last one of its epoch


class EpochEnds(Iterator[MarkedBatch]):
    """Base class: marks the last batch of each epoch. Its states are `FeedStart`s as JSON, or parts of them.

    Args:
        batches: staged batches.
    """

    def __init__(self, batches: StagedBatches) -> None:
        self._batches, self._take = batches, batches.__next__
        self._last: SourcePosition | None = None  # after the last batch returned

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the source after the last batch, as JSON."""
        return {"position": self._batches.get_state() if self._last is None else self._last.as_json()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._last = None
        self._batches.set_state(state["position"])


class LookAhead(EpochEnds):
    """The source ends each epoch, which the next item shows.

    Args:
        batches: staged batches.
        end_step: the run needs no batch after this many steps, so that no further one is pulled.
    """

    def __init__(self, batches: StagedBatches, end_step: int) -> None:
        super().__init__(batches)
        self._end_step, self._step = end_step, 0
        self._following: CheckedBatch | None = None  # the item after the last batch returned
        self._error: Exception | None = None  # an error of that item; the batch before it is valid

    def __next__(self) -> MarkedBatch:
        if self._error is not None:
            raise self._error
        batch, self._following = self._following or self._take(), None
        if batch[1] is None:  # the resumed epoch has no batch left; its length was not known in advance
            return batch, False
        self._last, self._step = batch[0], self._step + 1
        if self._step == self._end_step:
            return batch, False
        try:
            following = self._take()
        except Exception as error:
            self._error = error
            return batch, False
        if following[1] is None:
            self._last = following[0]
            return batch, True
        self._following = following
        return batch, False

    def get_state(self) -> dict[str, Any]:
        """Returns the number of steps, and the position of the source after the last batch, as JSON."""
        return super().get_state() | {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        super().set_state(state)
        self._step, self._following, self._error = state["step"], None, None


class CutEpochs(EpochEnds):
    """An epoch ends after a number of steps. No batch is pulled in advance, since the stream may be a live one.

    Args:
        batches: staged batches. The ends of iterations are left out.
        steps: steps of an epoch.
    """

    def __init__(self, batches: StagedBatches, steps: int) -> None:
        super().__init__(batches)
        self._steps, self._cursor = steps, 0

    def __next__(self) -> MarkedBatch:
        batch = self._take()
        while batch[1] is None:
            batch = self._take()
        self._last, self._cursor = batch[0], self._cursor + 1
        is_last = self._cursor == self._steps
        if is_last:
            self._cursor = 0
        return batch, is_last

    def get_state(self) -> dict[str, Any]:
        """Returns the steps of this epoch, and the position of the source after the last batch, as JSON."""
        return super().get_state() | {"cursor": self._cursor}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        super().set_state(state)
        # a run that was resumed before its epoch was closed begins with the next epoch
        self._cursor = 0 if state["cursor"] >= self._steps else state["cursor"]
