"""A stream of batches, fed by a background thread."""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._errors import DataError
from jaxcb._processes import ALONE, Processes
from jaxcb.loop._carry import FOREVER, Status
from jaxcb.loop._data import as_arrays, copied
from jaxcb.loop._draft import NONE_LEFT, Batch, Draft
from jaxcb.loop._feed import Chunk, Feed, FeedStart
from jaxcb.loop._forms import MOST, Forms
from jaxcb.loop._layout import Layout
from jaxcb.loop._pass import Pass, Pulled
from jaxcb.loop._sources import Source
from jaxcb.loop._stacks import Stack, Stacks
from jaxcb.parallel import ONE_DEVICE, Placement

_AHEAD = 2  # chunks that wait ready
_TOGETHER = 16  # batches in a chunk of several processes, which all have to cut alike
_SLOW = 0.25  # seconds after which batches that came slowly travel without waiting for more
_PATIENCE = 5.0  # seconds for the thread to end; one that waits in the user's iterator for ever is left to itself


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
        start: where the run stood that is to be resumed; None for a new one.
        say: takes a line for the user.
        processes: of the run. Several cut chunks by count alone: how fast batches come differs between them.
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
        start: FeedStart | None = None,
        say: Callable[[str], None] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self._source, self._processes = source, processes
        self._steps_per_epoch = steps_per_epoch
        self._end_epoch, self._end_step = end_epoch, end_step
        self._train_remainder = train_remainder
        self.epoch_len = steps_per_epoch or source.batches or FOREVER
        self._start = start or FeedStart()
        self._epoch = self._start.epoch  # that the run has confirmed
        self._behind = self._first_position()  # the batches done before
        self._where = self._behind  # of the source, behind the last step confirmed
        self._told = self._start.epoch  # the epoch whose controls the thread was told last
        self._given = _floats(controls or {}) | self._behind.pop("controls", {})  # what the first pass was given
        self._began_with = self._given  # the controls that the epoch told began with
        self._now = (self._start.epoch, self._given)
        begun = Pass(source, self._behind["pass"], self._given)
        first = next(begun, None)
        if first is None:
            raise DataError(f"{source.what} ({source.kind}) is empty: it gave no batch.")
        self._begun: tuple[Iterator[Pulled], Pass] | None = (iter([first]), begun)
        batch, self._rows = as_arrays(first.batch, f"the first batch of {source.what}")
        self._host_example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:1]).dtype), batch)
        if say is not None and begun.walks_to(self._behind) and not self._is_over(*self._start[:3]):
            say(
                f"jaxcb: {source.describe(begun.number)} starts anew and {self._behind['batches']} batches of it are "
                "passed over, since its iterator told no position. One with get_state and set_state goes on where it "
                "stood."
            )
        self._forms, self._stacks = Forms(source.what, self.example, steps_per_execution), Stacks()
        self._wanted, self._placement = _TOGETHER if processes.several else MOST, ONE_DEVICE
        self.choose(stacked=True)
        self._unconfirmed: deque[Chunk] = deque()
        self._dispatched = 0
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._begins: queue.Queue[dict[str, float] | None] = queue.Queue()  # controls of the epochs that begin
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def _first_position(self) -> dict[str, Any]:
        """Where the source stands at the start."""
        epoch, cursor, step, position = self._start
        if position is not None and (position["pass"] == epoch or not self._source.follows):
            return dict(position)
        # of another kind of data, which had none: as if each epoch had been a pass
        return {"pass": 0, "batches": step} if self._source.one_shot else {"pass": epoch, "batches": cursor}

    def _is_over(self, epoch: int, cursor: int, step: int) -> bool:
        """Whether a run that stands there needs no more batches."""
        return step >= self._end_step or (cursor == 0 and epoch >= self._end_epoch)

    def choose(self, *, stacked: bool) -> None:
        self._stacked = stacked
        rows = self._rows * self._placement.processes
        self.layout = Layout("stacked" if stacked else "single", 0, rows, False, self._train_remainder)

    def place(self, placement: Placement) -> None:
        self._placement, several = placement, placement.processes
        self.choose(stacked=self._stacked)
        self.example = jax.tree.map(lambda x: x.update(shape=(several * x.shape[0], *x.shape[1:])), self.example)

    def pace(self, steps: int) -> None:
        if not self._processes.several:
            self._wanted = steps

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
        """Takes a chunk over from the thread, where none is at hand."""
        if self._dispatched < len(self._unconfirmed) or self._ended or self._error is not None:
            return
        self._tell()
        if self._thread is None:
            if self._began_with != self._given:  # `on_train_begin` has set a control
                self._begun = iter(()), Pass(self._source, self._behind["pass"], self._began_with)
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
            self._told, self._began_with = epoch, controls
            self._begins.put(controls)

    def position(self) -> dict[str, Any]:
        if not self._source.follows:
            return dict(self._where)
        controls = self._began_with if self._epoch == self._told else self._now[1]
        return self._where | {"controls": dict(controls)}

    def confirm(self, status: Status) -> None:
        epoch, step = int(status.epoch), int(status.step)
        if self._source.follows:
            self._now = (epoch, _floats(status.controls))
            if self._thread is None and self._start.cursor == 0:  # the first epoch has not begun yet
                self._began_with = self._now[1]
        for chunk in self._unconfirmed:
            if 0 < step - chunk.step <= len(chunk.positions):
                self._where = chunk.positions[step - chunk.step - 1].as_json()
        closed = epoch > self._epoch and int(status.cursor) == 0
        if closed and self._steps_per_epoch is None and not self._source.one_shot:  # with its pass
            self._where = {"pass": self._where["pass"] + 1, "batches": 0}
        self._epoch = epoch
        while self._unconfirmed and self._unconfirmed[0].consumed(status):
            chunk = self._unconfirmed.popleft()
            self._dispatched -= 1
            if chunk.memory is not None:
                self._stacks.give_back(chunk.memory)

    def rewind(self) -> int:
        self._dispatched = 0
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
        """Gives chunks: a part of an epoch each, or several whole epochs of one length.

        The latter where epochs are so short that the devices would wait for the host after each.
        """
        epoch, cursor, step, _ = self._start
        if cursor > 0 and (step >= self._end_step or cursor >= self.epoch_len):
            yield self._closing(epoch, cursor, step, self.epoch_len)
            epoch, cursor = epoch + 1, 0
        whole: Draft | None = None  # epochs
        part = Draft(epoch, cursor, step)  # of the one behind them
        ragged, began = False, 0.0
        batches = self._batches()
        while not self._is_over(epoch, cursor, step):
            try:
                batch = next(batches, None)
            except Exception:
                yield from self._cut(whole, part)  # what was pulled before the error is trained on
                raise
            if batch is None:
                if self._closed.is_set():
                    return
                yield from self._cut(whole, part)
                raise DataError(
                    f"{self._source.what} is a {self._source.kind} that was used up after {step} batches, in epoch "
                    f"{epoch + 1}. Pass something that can be iterated again, or ask for fewer steps."
                )
            if batch is NONE_LEFT:
                if self._steps_per_epoch is None and cursor > 0:
                    yield self._closing(epoch, cursor, step, cursor)
                    epoch, cursor = epoch + 1, 0
                    part = Draft(epoch, cursor, step)
                continue
            smaller = batch.form.smaller
            if ragged and batch.position.batches > 1:
                raise DataError(
                    f"ragged batches: batch {step} of {self._source.what} is smaller than the first one, which has "
                    f"{self._rows} rows. Only the last batch of a pass or of an epoch may be smaller."
                )
            if smaller:  # travels alone
                yield from self._cut(whole, part)
                whole, part = None, Draft(epoch, cursor, step)
            began = began if whole or part.batches else time.monotonic()
            part.batches.append(batch)
            cursor, step = cursor + 1, step + 1
            ends = batch.last if self._steps_per_epoch is None else cursor == self._steps_per_epoch
            ragged = smaller and not ends
            part.epoch_len = cursor if ends else self.epoch_len
            part.closes = ends or step == self._end_step
            most = min(batch.form.most, self._wanted)
            slow = time.monotonic() - began > _SLOW and not self._processes.several
            due = smaller or slow
            if whole and ends != (cursor == whole.epoch_len):  # this epoch has another length
                yield self._chunk(whole)
                whole = None
            if ends and part.base == 0 and self._joins:
                whole = whole.joined(part) if whole else part
                part = Draft(epoch + 1, 0, step)
                if due or len(whole.batches) + cursor > most:
                    yield self._chunk(whole)
                    whole = None
            elif part.closes or due or len(part.batches) >= most:
                yield from self._cut(whole, part)
                whole, part = None, Draft(epoch + ends, 0 if ends else cursor, step)
            if ends:
                epoch, cursor = epoch + 1, 0
        yield from self._cut(whole, None)

    @property
    def _joins(self) -> bool:
        """Whether epochs may travel together: not where one that has ended may be kept waiting for the next one's data.

        That is what follows the controls, and a live stream.
        """
        return self._stacked and not self._source.follows and not self._source.one_shot

    def _batches(self) -> Iterator[Batch]:
        """Gives batches, pass after pass.

        The last one of a pass is known by looking ahead. That is done only where the end of a pass is the end of an
        epoch, so that a live stream is never waited for in vain.
        """
        given = self._start.step
        for number, resumed, batches in self._passes():
            kept = self._kept(batches)
            ahead = next(kept, None)
            if ahead is None:
                if not resumed:
                    again = "" if self._source.follows else " when it was walked again"
                    raise DataError(f"{self._source.describe(number)} gave no batch{again}.")
                yield NONE_LEFT
            while ahead is not None:
                batch, given, error = ahead, given + 1, None
                looks = self._steps_per_epoch is None and given < self._end_step
                if looks:
                    try:
                        ahead = next(kept, None)
                    except Exception as raised:  # belongs to the next batch; this one is good
                        error = raised
                yield batch if ahead is not None else batch._replace(last=True)
                if error is not None:
                    raise error
                if not looks:
                    ahead = next(kept, None)

    def _passes(self) -> Iterator[tuple[int, bool, Iterator[Pulled]]]:
        """Gives each pass: its number, whether a part of it was done before, and its batches.

        Waits where the source follows the run until its data is there.
        """
        assert self._begun is not None
        (pulled, begun), self._begun = self._begun, None
        number, resumed = begun.number, self._behind["batches"] > 0
        if resumed:
            begun.go_to(self._behind)
            pulled = iter(())
        yield number, resumed, itertools.chain(pulled, begun)
        del pulled, begun  # frees what they hold before the next pass begins
        if self._source.one_shot:
            return
        for later in itertools.count(number + 1):
            controls = self._begins.get() if self._source.follows else {}
            if controls is None:
                return
            yield later, False, Pass(self._source, later, controls)

    def _kept(self, batches: Iterator[Pulled]) -> Iterator[Batch]:
        """Gives a pass's batches. Each is copied, since the next one is pulled before this one is trained on.

        Drops the smaller ones where that was asked for.
        """
        for batch, position in batches:
            anew = self._source.follows and position.batches == 1  # each epoch may have shapes of its own
            leaves, form = self._forms.take(batch, position.batches, anew=anew)
            if form.smaller and not self._train_remainder:
                continue
            if self._stacked:
                self._stacks.add(leaves, form)
                yield Batch(position, form)
            else:
                yield Batch(position, form, copied(leaves))

    def _cut(self, *drafts: Draft | None) -> Iterator[Chunk]:
        """Makes chunks of what there is."""
        for draft in drafts:
            if draft and draft.batches:
                yield self._chunk(draft)

    def _chunk(self, draft: Draft) -> Chunk:
        if not self._stacked:
            return draft.chunk(batches=[self._placed(batch.leaves) for batch in draft.batches])
        stack = self._stacks.cut(len(draft.batches))
        return draft.chunk(self._placed(stack.leaves), memory=stack)

    def _placed(self, leaves: Any) -> Any:
        return self._forms.tree.unflatten(self._placement.put_batch(leaves, axis=int(self._stacked)))

    def _closing(self, epoch: int, cursor: int, step: int, epoch_len: int) -> Chunk:
        """Makes a chunk without a batch, for a run that was resumed between an epoch's last step and its end."""
        data = None
        if self._stacked:
            blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._host_example)
            data = self._placed(Stack(self._forms.take(blank, 0, anew=False)[1]).leaves)
        return Chunk(data, None if self._stacked else [], epoch, cursor, 0, epoch_len, True, step)


def _floats(controls: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in controls.items()}


def _settings() -> list[Any]:
    """The settings of JAX that belong to the run's thread, to be entered in another one."""
    config: Any = jax.config
    return [jax.default_device(config.jax_default_device), jax.enable_x64(config.jax_enable_x64)]
