"""A stream of batches, fed by a background thread."""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._errors import DataError
from jaxcb.loop._carry import FOREVER, Status
from jaxcb.loop._data import as_arrays, copied
from jaxcb.loop._feed import Chunk, Feed
from jaxcb.loop._layout import Layout
from jaxcb.loop._sources import Source

_STACK_BYTES = 16 << 20  # of one stacked chunk
_MOST = 64  # batches in one
_AHEAD = 2  # chunks that wait ready
_SLOW = 0.25  # seconds after which batches that came slowly travel without waiting for more
_PATIENCE = 5.0  # seconds for the thread to end; one that waits in the user's iterator for ever is left to itself


class _Batch(NamedTuple):
    """A batch as arrays, and where it stands in its pass."""

    arrays: Any
    smaller: bool  # than the first one
    first: bool
    last: bool


class Stream(Feed):
    """Batches of a source, pulled ahead of the run.

    A source that follows the run is asked for an epoch's data when the epoch before has been closed and read, since
    it is given the controls as they are by then.

    Args:
        source: where the batches come from; walked anew each epoch unless `steps_per_epoch` cuts it.
        steps_per_epoch: batches of an epoch; where None an epoch is one pass.
        end_epoch: the thread pulls nothing for this epoch and later ones.
        end_step: nor beyond this many steps.
        steps_per_execution: batches of a chunk; None chooses by their size.
        train_remainder: whether a smaller last batch is trained on.
        controls: the run's, as they are before its first step.
    """

    def __init__(
        self,
        source: Source,
        *,
        steps_per_epoch: int | None,
        end_epoch: int,
        end_step: int,
        steps_per_execution: int | None,
        train_remainder: bool,
        controls: Mapping[str, Any] | None = None,
    ) -> None:
        self._source = source
        self._steps_per_epoch = steps_per_epoch
        self._end_epoch, self._end_step = end_epoch, end_step
        self._train_remainder = train_remainder
        self.epoch_len = FOREVER if steps_per_epoch is None else steps_per_epoch
        self._told = 0  # the epoch whose controls the thread was told last
        self._given = _floats(controls or {})  # what the first pass was given
        self._now = (0, self._given)
        self._begun = self._walk(0, self._given)
        self._first = next(self._begun, None)
        if self._first is None:
            raise DataError(f"{source.what} ({source.kind}) is empty: it gave no batch.")
        batch, self._rows = as_arrays(self._first, f"the first batch of {source.what}")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)
        self._fixed = steps_per_execution
        self.choose(stacked=True)
        self._unconfirmed: deque[Chunk] = deque()
        self._position = 0
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._begins: queue.Queue[dict[str, float] | None] = queue.Queue()  # controls of the epochs that begin
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def choose(self, *, stacked: bool) -> None:
        self._stacked = stacked
        self.layout = Layout("stacked" if stacked else "single", 0, self._rows, False, self._train_remainder)

    def next(self) -> Chunk | None:
        self._take(wait=True)
        if self._error is not None:
            raise self._error
        if self._position == len(self._unconfirmed):
            return None
        self._position += 1
        return self._unconfirmed[self._position - 1]

    def ready(self) -> bool:
        self._take(wait=False)
        return self._position < len(self._unconfirmed)

    def _take(self, *, wait: bool) -> None:
        """Takes a chunk over from the thread, where none is at hand."""
        if self._position < len(self._unconfirmed) or self._ended or self._error is not None:
            return
        self._tell()
        if self._thread is None:
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

    def _tell(self) -> None:
        """Lets the thread begin the epoch that the run has reached, now that it asks for its data."""
        epoch, controls = self._now
        if self._source.follows and epoch > self._told:
            self._told = epoch
            self._begins.put(controls)

    def confirm(self, status: Status) -> None:
        if self._source.follows:
            self._now = (int(status.epoch), _floats(status.controls))
        while self._unconfirmed and self._unconfirmed[0].consumed(status):
            self._unconfirmed.popleft()
            self._position -= 1

    def rewind(self) -> int:
        self._position = 0
        return self._unconfirmed[0].epoch_len if self._unconfirmed else self.epoch_len

    def close(self) -> None:
        self._closed.set()
        self._begins.put(None)
        deadline = time.monotonic() + _PATIENCE
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
                for chunk in self._chunks():
                    if not self._put(chunk):
                        return
                self._put(None)
        except BaseException as error:  # raised again in the run's thread
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def _chunks(self) -> Iterator[Chunk]:
        epoch = cursor = base = step = 0
        held: list[_Batch] = []
        ragged, began = False, 0.0
        batches = self._batches()
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                if held:  # what was pulled before the error is trained on
                    yield self._chunk(held, epoch, base, self.epoch_len)
                raise
            if batch is None:
                break
            if ragged and not batch.first:
                raise DataError(
                    f"ragged batches: batch {step} of {self._source.what} is smaller than the first one, which has "
                    f"{self._rows} rows. Only the last batch of a pass or of an epoch may be smaller."
                )
            if batch.smaller and held:
                yield self._chunk(held, epoch, base, self.epoch_len)
                base, held = cursor, []
            began = time.monotonic() if not held else began
            held.append(batch)
            cursor, step = cursor + 1, step + 1
            ends = batch.last if self._steps_per_epoch is None else cursor == self._steps_per_epoch
            ragged = batch.smaller and not ends
            closes = ends or step == self._end_step
            slow = time.monotonic() - began > _SLOW
            if closes or batch.smaller or slow or len(held) == self._capacity(held[0]):
                yield self._chunk(held, epoch, base, cursor if ends else self.epoch_len, closes=closes)
                base, held = cursor, []
            if ends:
                epoch, cursor, base = epoch + 1, 0, 0
            if epoch == self._end_epoch or step == self._end_step:
                return
        if self._closed.is_set():
            return
        if held:
            yield self._chunk(held, epoch, base, self.epoch_len)
        raise DataError(
            f"{self._source.what} is a {self._source.kind} that was used up after {step} batches, in epoch "
            f"{epoch + 1}. Pass something that can be iterated again, or ask for fewer steps."
        )

    def _batches(self) -> Iterator[_Batch]:
        """Gives batches, pass after pass.

        The last one of a pass is known by looking ahead. That is done only where the end of a pass is the end of an
        epoch, so that a live stream is never waited for in vain.
        """
        given = 0
        for number, batches in enumerate(self._passes()):
            kept, first = self._kept(batches, number), True
            ahead = next(kept, None)
            if ahead is None:
                again = "" if self._source.follows else " when it was walked again"
                raise DataError(f"{self._source.describe(number)} gave no batch{again}.")
            while ahead is not None:
                (batch, smaller), given, error = ahead, given + 1, None
                looks = self._steps_per_epoch is None and given < self._end_step
                if looks:
                    try:
                        ahead = next(kept, None)
                    except Exception as raised:  # belongs to the next batch; this one is good
                        error = raised
                yield _Batch(batch, smaller, first, ahead is None)
                if error is not None:
                    raise error
                if not looks:
                    ahead = next(kept, None)
                first = False

    def _passes(self) -> Iterator[Iterator[Any]]:
        """Gives the batches of each pass; waits where the source follows the run until it is there."""
        begun, self._first, self._begun = itertools.chain([self._first], self._begun), None, iter(())
        if self._source.follows and self._now[1] != self._given:  # `on_train_begin` has set a control
            begun = self._walk(0, self._now[1])
        yield begun
        del begun  # frees what it holds before the next pass begins
        if self._source.one_shot:
            return
        for number in itertools.count(1):
            controls = self._begins.get() if self._source.follows else {}
            if controls is None:
                return
            yield self._walk(number, controls)

    def _walk(self, number: int, controls: Mapping[str, float]) -> Iterator[Any]:
        """Gives the batches of a pass as they are; an error names the pass and the batch."""
        at = 1
        try:
            batches = self._source.walk(number, controls)
            for batch in batches:
                yield batch
                at += 1
        except GeneratorExit:
            raise
        except BaseException as error:
            error.add_note(f"This happened while batch {at} of {self._source.describe(number)} was pulled.")
            raise

    def _kept(self, batches: Iterator[Any], number: int) -> Iterator[tuple[Any, bool]]:
        """Gives a pass's batches as arrays, and whether each is a smaller one; drops these where that was asked for."""
        known, shapes, most = self.example, [x.shape for x in jax.tree.leaves(self.example)], self._rows
        for at, batch in enumerate(batches):
            what = f"batch {at + 1} of {self._source.what}"
            arrays, rows = as_arrays(batch, what)
            found = jax.tree.structure(arrays)
            if found != jax.tree.structure(known):
                raise DataError(f"{what} has the structure {found}, the first one {jax.tree.structure(known)}.")
            if self._source.follows and at == 0:  # each epoch may have shapes of its own
                shapes, most = [x.shape for x in jax.tree.leaves(arrays)], rows
            for x, y, shape in zip(jax.tree.leaves(arrays), jax.tree.leaves(known), shapes, strict=True):
                if x.shape[1:] != shape[1:] or rows > most:
                    raise DataError(f"ragged batches: {what} has an array of shape {x.shape}, the first one {shape}.")
                if jax.dtypes.canonicalize_dtype(x.dtype) != y.dtype:
                    raise DataError(f"{what} has an array of dtype {x.dtype}, the first one {y.dtype}.")
            if rows == most or self._train_remainder:
                yield copied(arrays), rows < most  # the next one is pulled before this one is trained on

    def _capacity(self, batch: _Batch) -> int:
        """How many batches a chunk has room for. It is fixed, so that a part of a chunk runs the same program."""
        if batch.smaller:  # travels alone
            return 1
        size = max(1, sum(x.nbytes for x in jax.tree.leaves(batch.arrays)))
        return self._fixed or int(np.clip(_STACK_BYTES // size, 1, _MOST))

    def _chunk(self, held: list[_Batch], epoch: int, base: int, epoch_len: int, *, closes: bool = False) -> Chunk:
        batches = [batch.arrays for batch in held]
        if not self._stacked:
            return Chunk(None, [jax.device_put(b) for b in batches], epoch, base, len(batches), epoch_len, closes)
        capacity = self._capacity(held[0])

        def stack(*leaves: Any) -> np.ndarray:
            out = np.empty((capacity, *leaves[0].shape), leaves[0].dtype)
            for i in range(capacity):
                out[i] = leaves[min(i, len(leaves) - 1)]
            return out

        stacked = jax.device_put(jax.tree.map(stack, *batches))
        return Chunk(stacked, None, epoch, base, len(batches), epoch_len, closes)


def _floats(controls: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in controls.items()}


def _settings() -> list[Any]:
    """The settings of JAX that belong to the run's thread, to be entered in another one."""
    config: Any = jax.config
    return [jax.default_device(config.jax_default_device), jax.enable_x64(config.jax_enable_x64)]
