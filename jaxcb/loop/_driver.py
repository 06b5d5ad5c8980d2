"""The driver: dispatches stretches of work one ahead, and performs what comes back."""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._actions import HostAction, LogAction, Stop, fill
from jaxcb.loop._carry import FOREVER, Inputs, Status
from jaxcb.loop._executor import Executor, Live, Output
from jaxcb.loop._feed import Chunk, Feed
from jaxcb.loop._place import Place
from jaxcb.loop._rings import Record
from jaxcb.loop._run import Run
from jaxcb.writers import Context, Writer, writer_for

_AHEAD = 2  # dispatches under way
_TARGET = 0.25  # seconds of work in one: progress feels live, and a signal is answered in time
_FIRST = 16  # steps of the first one, before anything is measured


class StopRecord(NamedTuple):
    """A `Stop` that fired: who asked, why, where, and for which member of a population."""

    owner: str
    reason: str
    step: int
    epoch: int
    member: int | None = None


class Driver:
    """Runs a prepared executor to its end.

    Args:
        executor: looped or stepped.
        live: the run before its first step.
        feed: training batches.
        host_sets: prefix -> iterable of validation batches that the host feeds.
        inputs: what every dispatch is given; its numbers and data are filled in here.
        place: where the run starts and ends.
        context: for the writers.
        run: for host functions.
        steps_per_execution: steps of a dispatch; None measures.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        live: Live,
        feed: Feed,
        host_sets: Mapping[str, Iterable[Any]],
        inputs: Inputs,
        place: Place,
        context: Context,
        run: Run,
        steps_per_execution: int | None,
    ) -> None:
        self.executor, self.live, self.feed = executor, live, feed
        self.host_sets = host_sets
        self.inputs, self.place = inputs, place
        self.context, self.run = context, run
        self.stops: list[StopRecord] = []
        self._fixed = steps_per_execution
        self._length = steps_per_execution or _FIRST
        self._last_read: tuple[float, int] | None = None
        self._writers = self._make_writers()
        self._waiting: list[Record] = []

    def _make_writers(self) -> dict[type, Writer]:
        """One writer a class; each sees its actions before the first step."""
        writers: dict[type, Writer] = {}
        for actions in self.executor.program.actions.values():
            for action in actions:
                _check_text(action, self.executor.program.members)
                if isinstance(action, LogAction | HostAction):
                    try:
                        cls = writer_for(type(action))
                    except LookupError as error:
                        raise LookupError(f"{action.owner}: {error}") from None
                    writers.setdefault(cls, cls(self.context)).prepare(action)
        return writers

    def writer(self, cls: type) -> Any:
        """Returns the run's writer of a class, None where it has none."""
        return self._writers.get(cls)

    # The run

    def train(self) -> None:
        """Runs from `on_train_begin` to `on_train_end`. Writers and feed are closed on every way out."""
        failed: BaseException | None = None
        try:
            self._edge(self.executor.begin)
            self._steps()
            self._edge(self.executor.end)
        except BaseException as error:
            failed = error
            with contextlib.suppress(RuntimeError):  # the step that failed may have taken the arrays with it
                self._update_model()
            raise
        finally:
            self._close(failed)

    def _close(self, failed: BaseException | None) -> None:
        """Closes writers and feed, each of them; the first error is the one that the user sees.

        The writers come first: a feed may have to wait for a user's iterator, and be interrupted in it.
        """
        first = failed
        for part in (*self._writers.values(), self.feed):
            try:
                part.close()
            except BaseException as error:
                error.add_note(f"This happened while closing {type(part).__name__}.")
                if first is None:
                    first = error
                else:
                    first.add_note(f"And then closing {type(part).__name__} failed: {error!r}")
        if failed is None and first is not None:
            raise first

    def _edge(self, moment: Any) -> None:
        """Runs one of the moments that stand alone."""
        self.live, output = moment(self.live, self._inputs(None))
        self._settle(self._read(output))

    def _steps(self) -> None:
        flying: deque[tuple[Chunk, Output]] = deque()
        while True:
            # where nothing is under way the data is waited for; else what is under way is read meanwhile
            while not flying or (len(flying) < _AHEAD and not flying[-1][1].may_wait and self.feed.ready()):
                chunk = self._dispatch(flying)
                if chunk is None:
                    break
            if not flying:
                return
            chunk, output = flying.popleft()
            status = self._read(output)
            self._measure(status)
            if bool(status.yielded) or bool(status.awaits) or not chunk.consumed(status):
                # what flies behind has nothing to do but hand its input through, or close the epoch
                while flying:
                    behind = self._read(flying.popleft()[1])
                    if not bool(status.awaits):  # those behind may not know that the epoch is to be closed
                        status = behind
                self._settle(status)
            else:
                self.feed.confirm(status)
                if not flying:
                    self.place.correct(status)
            if bool(status.over):
                return

    def _dispatch(self, flying: deque[tuple[Chunk, Output]]) -> Chunk | None:
        """Dispatches the next stretch, where the host believes that there is one."""
        place = self.place
        if place.over:
            return None
        chunk = self.feed.next()
        if chunk is None:
            return None
        place.epoch_len = chunk.epoch_len
        inputs = self._inputs(chunk)
        batches = repeat(None, self._length) if chunk.batches is None else self._from(chunk, place)
        self.live, output = self.executor.execute(self.live, inputs, batches, place)
        flying.append((chunk, output))
        return chunk

    @staticmethod
    def _from(chunk: Chunk, place: Place) -> list[Any]:
        """The batches of a chunk that a run at this place still needs."""
        assert chunk.batches is not None
        done = place.cursor - chunk.base if place.epoch == chunk.epoch else 0
        return chunk.batches[max(done, 0) :]

    def _inputs(self, chunk: Chunk | None) -> Inputs:
        """The inputs of a dispatch."""
        if chunk is None:
            numbers = self.place.numbers(size=0, length=0)
            return self.inputs.replace(numbers=numbers.packed())
        length = self._length if chunk.epoch < 0 else FOREVER
        numbers = self.place.numbers(data_epoch=chunk.epoch, base=chunk.base, size=chunk.size, length=length)
        return self.inputs.replace(data=chunk.data, numbers=numbers.packed())

    def _measure(self, status: Status) -> None:
        """Sizes the next stretches so that one lasts about a quarter of a second."""
        now, step = time.monotonic(), int(status.step)
        if self._fixed is None and self._last_read is not None:
            seconds, steps = now - self._last_read[0], step - self._last_read[1]
            if steps > 0 and seconds > 0:
                wanted = _TARGET * steps / seconds
                self._length = int(np.clip(wanted, max(1, self._length // 4), self._length * 4))
        self._last_read = (now, step)

    # What comes back

    def _read(self, output: Output) -> Status:
        """Reads a stretch's records, waiting for them; performs the logs and keeps the host actions."""
        rings, status = jax.device_get((output.rings, output.status))
        self._perform(self.executor.program.rings.read(rings))
        for writer in self._writers.values():
            writer.tick(status)
        return status

    def _perform(self, records: Iterable[Record]) -> None:
        """Performs records in order; a writer that fails does not keep the others from theirs."""
        failed: dict[Writer, Exception] = {}
        for record in records:
            action = record.action
            if isinstance(action, Stop):
                self.stops.extend(_stops(record))
            elif isinstance(action, HostAction):
                self._waiting.append(record)
            else:
                writer = self._writers[writer_for(type(action))]
                if writer in failed:
                    continue
                try:
                    writer.write(record)
                except Exception as error:
                    error.add_note(f"This happened while writing a {type(action).__name__} of {action.owner}.")
                    failed[writer] = error
        if failed:
            raise next(iter(failed.values()))

    def _settle(self, status: Status) -> None:
        """Brings host and device to the same place: host actions, a validation by the host, batches again."""
        self.place.correct(status)
        self.feed.confirm(status)
        self.place.epoch_len = self.feed.rewind()
        self._call_host()
        if bool(status.yielded):
            self.live = self.executor.resume(self.live)
        elif bool(status.awaits):
            self._validate()
        self._last_read = None

    def _call_host(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.run._attach(self.live)
        if waiting:
            self._update_model()
        for record in waiting:
            self._writers[writer_for(type(record.action))].write(record)
            if self.run.stop_reason is not None and record.hook != "on_train_end":
                self.stops.append(StopRecord(record.action.owner, self.run.stop_reason, record.step, record.epoch))
                self.run.stop_reason = None
                self.live = self.executor.request_stop(self.live)
                self.place.stopping = True

    def _update_model(self) -> None:
        """Brings the caller's own module up to date, where the model is one that is changed in place."""
        adapter = self.live.carry().train.adapter
        if adapter is not None and adapter.in_place:
            self.run._attach(self.live)
            state = self.run.state
            adapter.deliver(state.params, state.model_state, state.rngs)

    def _validate(self) -> None:
        """Feeds a validation that the device cannot do by itself."""
        inputs = self._inputs(None)
        self.live, output = self.executor.validate(self.live, inputs, self.host_sets, {})
        status = self._read(output)
        self._settle(status)


def _check_text(action: Any, members: int | None) -> None:
    """Fills an action's text with zeros, so that one that cannot be filled is found before the first step."""
    if not action.template:
        return
    axes = 0 if members is None else 1
    zeros = jax.tree.map(lambda s: np.zeros(s.shape[axes:], s.dtype), action)
    try:
        fill(zeros)
    except Exception as error:
        text = getattr(action, action.template)
        raise ValueError(
            f"{action.owner}: the text of its {type(action).__name__}, {text!r}, cannot be filled: {error}"
        ) from None


def _stops(record: Record) -> Iterable[StopRecord]:
    """The stops of a record, one a member for which it fires."""
    when = np.asarray(record.action.when)
    for member in np.flatnonzero(when) if when.ndim else (None,):
        own = record.action if member is None else jax.tree.map(lambda x, m=member: x[m], record.action)
        reason = fill(own, step=record.step, epoch=record.epoch)
        yield StopRecord(own.owner, reason, record.step, record.epoch, None if member is None else int(member))
