"""A stream of batches, fed by a background thread."""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._errors import DataError
from jaxcb.loop._carry import FOREVER, Status
from jaxcb.loop._data import as_arrays, check_iterable, is_one_shot
from jaxcb.loop._feed import Chunk, Feed
from jaxcb.loop._layout import Layout

_STACK_BYTES = 16 << 20  # of one stacked chunk
_MOST = 64  # batches in one
_AHEAD = 2  # chunks that wait ready
_SLOW = 0.25  # seconds after which batches that came slowly travel without waiting for more
_PATIENCE = 5.0  # seconds for the thread to end; one that waits in the user's iterator for ever is left to itself


class Stream(Feed):
    """An iterable of batches, pulled ahead of the run.

    Args:
        data: the iterable; walked anew each epoch unless `steps_per_epoch` cuts it.
        steps_per_epoch: batches of an epoch; where None an epoch is one pass.
        end_epoch: the thread pulls nothing for this epoch and later ones.
        end_step: nor beyond this many steps.
        steps_per_execution: batches of a chunk; None chooses by their size.
        train_remainder: whether a smaller last batch is trained on.
    """

    def __init__(
        self,
        data: Any,
        *,
        steps_per_epoch: int | None,
        end_epoch: int,
        end_step: int,
        steps_per_execution: int | None,
        train_remainder: bool,
    ) -> None:
        check_iterable(data, "train_data")
        _check_list(data)
        self._data = data
        self._steps_per_epoch = steps_per_epoch
        self._end_epoch, self._end_step = end_epoch, end_step
        self._train_remainder = train_remainder
        self.epoch_len = FOREVER if steps_per_epoch is None else steps_per_epoch
        self._source = self._walk(0)
        self._first = next(self._source, None)
        if self._first is None:
            raise DataError(f"train_data ({type(data).__name__}) is empty: it gave no batch.")
        batch, self._rows = as_arrays(self._first, "the first batch of train_data")
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)
        size = max(1, sum(x.nbytes for x in jax.tree.leaves(batch)))
        self._capacity = steps_per_execution or int(np.clip(_STACK_BYTES // size, 1, _MOST))
        self.choose(stacked=True)
        self._unconfirmed: deque[Chunk] = deque()
        self._position = 0
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
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
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="jaxcb-data", daemon=True)
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

    def confirm(self, status: Status) -> None:
        while self._unconfirmed and self._unconfirmed[0].consumed(status):
            self._unconfirmed.popleft()
            self._position -= 1

    def rewind(self) -> int:
        self._position = 0
        return self._unconfirmed[0].epoch_len if self._unconfirmed else self.epoch_len

    def close(self) -> None:
        self._closed.set()
        deadline = time.monotonic() + _PATIENCE
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.01)
            self._thread.join(timeout=0.01)

    # In the background thread

    def _work(self) -> None:
        try:
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
        held: list[Any] = []
        ragged, began = False, 0.0
        batches = self._batches()
        while True:
            try:
                item = next(batches, None)
            except Exception:
                if held:  # what was pulled before the error is trained on
                    yield self._chunk(held, epoch, base, self.epoch_len)
                raise
            if item is None:
                break
            batch, rows, first, last = item
            if ragged and not first:
                raise DataError(
                    f"ragged batches: batch {step} of train_data is smaller than the first one, which has {self._rows} "
                    "rows. Only the last batch of a pass or of an epoch may be smaller."
                )
            smaller = rows != self._rows
            if smaller and held:
                yield self._chunk(held, epoch, base, self.epoch_len)
                base, held = cursor, []
            began = time.monotonic() if not held else began
            held.append(batch)
            cursor, step = cursor + 1, step + 1
            ends = last if self._steps_per_epoch is None else cursor == self._steps_per_epoch
            ragged = smaller and not ends
            closes = ends or step == self._end_step
            slow = time.monotonic() - began > _SLOW
            if closes or smaller or slow or len(held) == self._capacity:
                yield self._chunk(held, epoch, base, cursor if ends else self.epoch_len, closes=closes)
                base, held = cursor, []
            if ends:
                epoch, cursor, base = epoch + 1, 0, 0
            if epoch == self._end_epoch or step == self._end_step:
                return
        if held:
            yield self._chunk(held, epoch, base, self.epoch_len)
        raise DataError(
            f"train_data is a {type(self._data).__name__} that was used up after {step} batches, in epoch "
            f"{epoch + 1}. Pass something that can be iterated again, or ask for fewer steps."
        )

    def _batches(self) -> Iterator[tuple[Any, int, bool, bool]]:
        """Gives batches with their rows, pass after pass: whether each is the first, and the last, of its pass.

        The last one is known by looking ahead. That is done only where the end of a pass is the end of an epoch,
        so that a live stream is never waited for in vain.
        """
        source = itertools.chain([self._first], self._source)
        self._first, given, walks = None, 0, 0
        while True:
            kept, first = self._kept(source), True
            ahead = next(kept, None)
            if ahead is None:
                raise DataError(f"train_data ({type(self._data).__name__}) gave no batch when it was walked again.")
            while ahead is not None:
                (batch, rows), given = ahead, given + 1
                looks = self._steps_per_epoch is None and given < self._end_step
                if looks:
                    ahead = next(kept, None)
                yield batch, rows, first, ahead is None
                if not looks:
                    ahead = next(kept, None)
                first = False
            if is_one_shot(self._data):
                return
            walks += 1
            source = self._walk(walks)

    def _walk(self, number: int) -> Iterator[Any]:
        """Starts a pass; a data set with `set_epoch`, as PyTorch's samplers have it, is told which."""
        if callable(getattr(self._data, "set_epoch", None)):
            self._data.set_epoch(number)
        return iter(self._data)

    def _kept(self, source: Iterator[Any]) -> Iterator[tuple[Any, int]]:
        """Gives a pass's batches as arrays with their rows; drops smaller ones where that was asked for."""
        for number, batch in enumerate(source):
            what = f"batch {number + 1} of train_data"
            arrays, rows = as_arrays(batch, what)
            # loaders may use a buffer again for the next batch, which is pulled before this one is trained on
            arrays = jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, arrays)
            found, known = jax.tree.structure(arrays), jax.tree.structure(self.example)
            if found != known:
                raise DataError(f"{what} has the structure {found}, the first one {known}.")
            for x, y in zip(jax.tree.leaves(arrays), jax.tree.leaves(self.example), strict=True):
                if x.shape[1:] != y.shape[1:] or rows > self._rows:
                    raise DataError(f"ragged batches: {what} has an array of shape {x.shape}, the first one {y.shape}.")
                if jax.dtypes.canonicalize_dtype(x.dtype) != y.dtype:
                    raise DataError(f"{what} has an array of dtype {x.dtype}, the first one {y.dtype}.")
            if rows == self._rows or self._train_remainder:
                yield arrays, rows

    def _chunk(self, batches: list[Any], epoch: int, base: int, epoch_len: int, *, closes: bool = False) -> Chunk:
        if not self._stacked:
            return Chunk(None, [jax.device_put(b) for b in batches], epoch, base, len(batches), epoch_len, closes)
        # capacity is fixed, so that a part of a chunk runs the same program; a smaller batch travels alone
        capacity = self._capacity if jax.tree.leaves(batches[0])[0].shape[0] == self._rows else 1

        def stack(*leaves: Any) -> np.ndarray:
            out = np.empty((capacity, *leaves[0].shape), leaves[0].dtype)
            for i in range(capacity):
                out[i] = leaves[min(i, len(leaves) - 1)]
            return out

        stacked = jax.device_put(jax.tree.map(stack, *batches))
        return Chunk(stacked, None, epoch, base, len(batches), epoch_len, closes)


def _check_list(data: Any) -> None:
    """Refuses Keras's `[x, y]`, which would be taken for two batches."""
    if isinstance(data, list) and len(data) > 1 and all(isinstance(x, np.ndarray | jax.Array) for x in data):
        shapes = {(np.shape(x)[1:], str(x.dtype)) for x in data}
        if len(shapes) > 1:
            raise DataError(
                "train_data is a list of arrays of different shapes. A list is an iterable of batches; arrays that "
                "belong together go in a tuple: (x, y)."
            )
