"""Joins short epochs, since otherwise the devices would wait for the host after each of them."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from jaxcb._src.data.progress import FeedStart, StreamLimits
from jaxcb._src.data.stream.chunking import ChunkDraft, Chunks, FlushTimer, state_after


class JoinedEpochs(Iterator[ChunkDraft]):
    """Joins drafts of complete epochs of one length.

    Args:
        drafts: drafts, each of a part of one epoch.
        timer: how long batches have waited.
        limits: where epochs end.
        joins: whether complete epochs may wait for later ones. Not if the data of an epoch depends on the controls
            after the previous epoch, and not for a live stream, whose next batch may take any time.
    """

    def __init__(self, drafts: Chunks, timer: FlushTimer, limits: StreamLimits, *, joins: bool) -> None:
        self._drafts, self._timer, self._limits, self._joins = drafts, timer, limits, joins
        self._ready: deque[ChunkDraft] = deque()
        self._held: ChunkDraft | None = None  # complete epochs, to be joined with later ones
        self._error: Exception | None = None
        self._last: ChunkDraft | None = None  # the last draft returned
        self._start: Mapping[str, Any] = drafts.get_state()

    def __next__(self) -> ChunkDraft:
        while not self._ready:
            if self._error is not None:
                raise self._error
            try:
                draft = next(self._drafts)
            except Exception as error:  # also at the end: first what is held
                self._error = error
                self._release()
            else:
                self._add(draft)
        self._last = self._ready.popleft()
        return self._last

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last draft: a `FeedStart` as JSON."""
        return state_after(self._last, self._start, self._limits)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._drafts.set_state(state)
        self._start, self._last = FeedStart(**state)._asdict(), None
        self._held, self._error = None, None
        self._ready.clear()
        self._timer.stop()

    def _add(self, draft: ChunkDraft | None) -> None:
        if not self._fits(draft):
            self._release()
        if draft is None:
            return
        if self._joins and draft.is_complete:
            self._held = draft if self._held is None else self._held.merged(draft)
            if draft.is_late or not self._has_room(draft):
                self._release()
        else:
            self._ready.append(draft)
        if self._held is None:
            self._timer.stop()

    def _fits(self, draft: ChunkDraft | None) -> bool:
        """Returns whether a draft can be joined with the epochs that are held: a chunk has epochs of one length."""
        held = self._held
        if held is None or draft is None:
            return False
        return draft.is_complete and draft.epoch_len == held.epoch_len and draft.spec is held.spec

    def _has_room(self, draft: ChunkDraft) -> bool:
        """Returns whether another epoch like this one would fit into the chunk."""
        return self._held is not None and len(self._held) + len(draft) <= draft.most

    def _release(self) -> None:
        if self._held is not None:
            self._ready.append(self._held)
            self._held = None
