"""`Stream`: a feed that a background thread fills."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.data.batch_spec import BatchValidator
from jaxcb._src.data.chunking import Chunker, DataRange
from jaxcb._src.data.feed import UNBOUNDED, BatchLayout, Chunk, Feed, FeedStart, Progress
from jaxcb._src.data.inputs import as_arrays
from jaxcb._src.data.iterator import EpochIterator
from jaxcb._src.data.sources import Source
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.utils.errors import DataError

_AHEAD = 2  # chunks that are prefetched
# seconds to wait for the thread at the end; a thread that blocks in the user's iterator is abandoned
_JOIN_SECONDS = 5.0


class Stream(Feed):
    """Prefetches the batches of a source in a background thread.

    If the data depends on the controls, an epoch begins only after the previous one was closed and read, since it needs
    the controls at that point.

    The position for a checkpoint is that of the last confirmed step, and not that of the thread, which is ahead.

    Args:
        source: where the batches come from; iterated again each epoch unless `steps_per_epoch` cuts it.
        steps_per_epoch: batches of an epoch; None if the source ends each epoch.
        end_epoch: no data is taken for this epoch and later ones.
        end_step: no data is taken after this many steps.
        steps_per_execution: batches of a chunk; None to choose by their size.
        train_remainder: whether to train on a smaller last batch.
        controls: the controls before the first step.
        start: position to resume at; None for a new run.
        say: prints a line.
        processes: of the run. With several, only counts decide how chunks are cut, since timing differs.

    Raises:
        DataError: if the source has no batch.
    """

    def __init__(  # noqa: PLR0913
        self,
        source: Source,
        *,
        steps_per_epoch: int | None,
        end_epoch: int,
        end_step: int,
        steps_per_execution: int | None,
        train_remainder: bool,
        controls: Mapping[str, Any] | None = None,
        start: FeedStart | None = None,
        say: Callable[[str], None] | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self._source, self._processes = source, processes
        self._steps_per_epoch = steps_per_epoch
        self._train_remainder = train_remainder
        self.epoch_len = steps_per_epoch or source.batches or UNBOUNDED
        self._start = start or FeedStart()
        self._epoch = self._start.epoch  # last confirmed epoch
        self._start_position = self._first_position()  # position at the start
        self._source_position = self._start_position  # position after the last confirmed step
        self._allowed_epoch = self._start.epoch  # last epoch that the thread was allowed to begin
        # controls of the first epoch, as passed to its iterator
        self._first_controls = _floats(controls or {}) | self._start_position.pop("controls", {})
        self._epoch_controls = self._first_controls  # controls at the begin of epoch `_allowed_epoch`
        self._confirmed = (self._start.epoch, self._first_controls)
        span = DataRange(*self._start[:3], self.epoch_len, steps_per_epoch, end_epoch, end_step)
        self._first_epoch = EpochIterator(source, self._start_position["pass"], self._first_controls)
        first = next(self._first_epoch, None)
        if first is None:
            raise DataError(f"{source.what} ({source.kind}) is empty: it gave no batch.")
        self._pulled = [first]
        batch, self._rows = as_arrays(first[0], f"the first batch of {source.what}")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)
        if (
            say is not None
            and self._first_epoch.must_replay_to(self._start_position)
            and not span.is_over(*self._start[:3])
        ):
            batches = self._start_position["batches"]
            say(
                f"jaxcb: {source.describe(self._first_epoch.number)} starts again and {batches} batches "
                "are skipped, since its iterator has no state. An iterator with get_state and set_state resumes where "
                "it stopped."
            )
        forms = BatchValidator(source.what, batch, steps_per_execution)
        self._chunker = Chunker(source, span, forms, train_remainder=train_remainder, alike=processes.is_multiprocess)
        self.choose(stacked=True)
        self._unconfirmed: deque[Chunk] = deque()
        self._dispatched = 0
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def _first_position(self) -> dict[str, Any]:
        """Returns the position of the source at the start."""
        epoch, cursor, step, position = self._start
        if position is not None and (position["pass"] == epoch or not self._source.per_epoch):
            return dict(position)
        # the checkpoint is of resident data, which has no position: count batches as if each epoch were one iteration
        return {"pass": 0, "batches": step} if self._source.is_generator else {"pass": epoch, "batches": cursor}

    def choose(self, *, stacked: bool) -> None:
        self._chunker.stacked = stacked
        rows = self._rows * self._chunker.placement.processes
        self.layout = BatchLayout("stacked" if stacked else "single", 0, rows, False, self._train_remainder)

    def place(self, placement: Placement) -> None:
        self._chunker.placement, count = placement, placement.processes
        self.choose(stacked=self._chunker.stacked)
        self.example = jax.tree.map(lambda x: x.update(shape=(count * x.shape[0], *x.shape[1:])), self.example)

    def pace(self, steps: int) -> None:
        if not self._processes.is_multiprocess:
            self._chunker.wanted = steps

    def next(self) -> Chunk | None:
        self._take(wait=True)
        if self._error is not None:
            raise self._error
        if self._dispatched == len(self._unconfirmed):
            return None
        self._dispatched += 1
        return self._unconfirmed[self._dispatched - 1]

    def ready(self) -> bool:
        self._take(wait=False)
        return self._dispatched < len(self._unconfirmed)

    def _take(self, *, wait: bool) -> None:
        """Takes a chunk from the thread if none is available. Starts the thread at first."""
        if self._dispatched < len(self._unconfirmed) or self._ended or self._error is not None:
            return
        self._allow_epoch()
        if self._thread is None:
            if self._epoch_controls != self._first_controls:  # `on_train_begin` has changed a control
                self._first_epoch, self._pulled = (
                    EpochIterator(self._source, self._start_position["pass"], self._epoch_controls),
                    [],
                )
            self._thread = threading.Thread(target=self._work, args=(_settings(),), name="jaxcb-data", daemon=True)
            self._thread.start()
        try:
            item = self._queue.get(block=wait)
        except queue.Empty:
            return
        if isinstance(item, BaseException):
            self._error = item
        elif item is None:
            self._ended = True
        else:
            self._unconfirmed.append(item)

    def _allow_epoch(self) -> None:
        """Allows the thread to begin the epoch that the run has reached, with its controls."""
        epoch, controls = self._confirmed
        if self._source.per_epoch and epoch > self._allowed_epoch:
            self._allowed_epoch, self._epoch_controls = epoch, controls
            self._chunker.begin(controls)

    def position(self) -> dict[str, Any]:
        if not self._source.per_epoch:
            return dict(self._source_position)
        controls = self._epoch_controls if self._epoch == self._allowed_epoch else self._confirmed[1]
        return self._source_position | {"controls": dict(controls)}

    def confirm(self, status: Progress) -> None:
        epoch, step = int(status.epoch), int(status.step)
        if self._source.per_epoch:
            self._confirmed = (epoch, _floats(status.controls))
            # the first epoch has not begun, so a change by `on_train_begin` applies to it
            if self._thread is None and self._start.cursor == 0:
                self._epoch_controls = self._confirmed[1]
        for chunk in self._unconfirmed:
            if 0 < step - chunk.step <= len(chunk.positions):
                self._source_position = chunk.positions[step - chunk.step - 1].as_json()
        closed = epoch > self._epoch and int(status.cursor) == 0
        # an iteration of the source ends with the epoch
        if closed and self._steps_per_epoch is None and not self._source.is_generator:
            self._source_position = {"pass": self._source_position["pass"] + 1, "batches": 0}
        self._epoch = epoch
        while self._unconfirmed and self._unconfirmed[0].consumed(status):
            chunk = self._unconfirmed.popleft()
            self._dispatched -= 1
            if chunk.memory is not None:
                self._chunker.stacks.release(chunk.memory)

    def rewind(self) -> int:
        self._dispatched = 0
        return self._unconfirmed[0].epoch_len if self._unconfirmed else self.epoch_len

    def close(self) -> None:
        self._closed.set()
        self._chunker.begin(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.01)
            self._thread.join(timeout=0.01)

    # In the background thread

    def _work(self, settings: list[Any]) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for setting in settings:
                    stack.enter_context(setting)
                for chunk in self.chunks():
                    if not self._put(chunk):
                        return
                self._put(None)
        except BaseException as error:  # raised again in the main thread
            self._put(error)

    def chunks(self) -> Iterator[Chunk]:
        """Yields all chunks that the run needs."""
        first, pulled = self._first_epoch, self._pulled
        del self._first_epoch, self._pulled  # the chunker frees them before the next epoch begins
        return self._chunker.chunks(first, pulled, self._start_position)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _floats(controls: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in controls.items()}


def _settings() -> list[Any]:
    """Returns context managers for the thread-local settings of JAX, to be entered in the background thread."""
    config: Any = jax.config
    return [jax.default_device(config.jax_default_device), jax.enable_x64(config.jax_enable_x64)]
