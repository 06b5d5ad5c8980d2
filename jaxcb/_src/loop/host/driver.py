"""The driver: dispatches chunks of steps ahead of the device and handles their results."""

import contextlib
import signal
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.checkpointing.resume import merge_process_positions
from jaxcb._src.core.actions.base import HostAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.host import Backup
from jaxcb._src.data.feed import Chunk, Feed, NotReady
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled.device_state import DeviceState
from jaxcb._src.loop.compiled.executor import Executor, Output
from jaxcb._src.loop.compiled.position import HostPosition
from jaxcb._src.loop.compiled.state import Inputs, LoopState, Status, clear_stop, copy_arrays, named_leaves
from jaxcb._src.loop.host.checkpoint_hooks import CheckpointHooks
from jaxcb._src.loop.host.host_metrics import Evaluators, HostMetrics
from jaxcb._src.loop.host.pace import ChunkSizer
from jaxcb._src.loop.host.population import ActiveMembers
from jaxcb._src.loop.host.stops import Interrupted, Signals, StopRecord, check_text, stops_of
from jaxcb._src.sharding.arrays import all_gather
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.kept_programs import KeptFunction
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.dispatch import WriterDispatcher, close_all
from jaxcb._src.writers.run_handle import Record, Run


class HostDecision(NamedTuple):
    """The next thing that the host does. Process 0 decides it and broadcasts it.

    It contains everything that devices cannot decide identically on every process.

    Attributes:
        signum: a signal that requests the end of the run.
        save: whether to write a checkpoint.
        pack: whether to compact a population into a smaller program.
        length: limit of steps for the next dispatch.
        host: host metrics for the next dispatch; None for no dispatch.
        data: `chunk_key` of the data of the next dispatch.
    """

    signum: int | None = None
    save: bool = False
    pack: bool = False
    length: int = 0
    host: np.ndarray | None = None
    data: tuple[int, ...] = ()

    @property
    def needs_idle_device(self) -> bool:
        """Whether there is something to do that needs all dispatches to be finished."""
        return self.signum is not None or self.save or self.pack


def chunk_key(chunk: Chunk) -> tuple[int, ...]:
    """Returns the position and size of a chunk, which must be equal on all processes."""
    return chunk.epoch, chunk.base, chunk.size, chunk.epoch_len, int(chunk.closes), chunk.epochs


def check_same_chunk(chunk: Chunk | NotReady | None, wanted: tuple[int, ...], index: int) -> Chunk:
    """Returns the chunk of this process.

    Raises:
        DataError: if it does not cover the same steps as the chunk of process 0.
    """
    if isinstance(chunk, Chunk) and chunk_key(chunk) == wanted:
        return chunk
    got = _shown(chunk_key(chunk)) if isinstance(chunk, Chunk) else "no more batches"
    raise DataError(
        f"process {index} has other data than process 0: {got}; process 0 has {_shown(wanted)}. Each process "
        "must provide the same number of batches per epoch, with the same number of rows."
    )


def _shown(place: tuple[int, ...]) -> str:
    epoch, base, size, _, closes, _ = place
    return f"batches {base + 1} to {base + size} from epoch {epoch + 1} on" + (", the last ones" if closes else "")


_IN_FLIGHT = 2  # dispatches in flight


class PendingDispatch(NamedTuple):
    """A dispatch whose result was not read yet."""

    chunk: Chunk
    output: Output
    host: np.ndarray  # the host metrics that were passed to it


class Driver:
    """Runs a prepared executor until the run ends.

    Args:
        executor: looped or stepped.
        live: the loop state before the first step.
        feed: training batches.
        host_sets: prefix -> iterable of validation batches.
        evaluators: metrics that the host computes at a validation.
        host_metrics: metrics that the host reads before each dispatch.
        inputs: inputs that all dispatches share; the driver sets parameters and data.
        place: start and end of the run.
        context: for the writers.
        run: for host callbacks.
        steps_per_execution: steps per dispatch; None to choose by measurement.
        keeper: writes checkpoints; None for a run without checkpoints.
        members: active members of a population; None for a single run.

    Raises:
        ValueError: for an action whose text cannot be formatted, or that needs a directory.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        executor: Executor,
        live: DeviceState,
        feed: Feed,
        host_sets: Mapping[str, Iterable[Any]],
        evaluators: Evaluators,
        host_metrics: HostMetrics,
        inputs: Inputs,
        place: HostPosition,
        context: Context,
        run: Run,
        steps_per_execution: int | None,
        keeper: Checkpointer | None = None,
        members: ActiveMembers | None = None,
    ) -> None:
        self.executor, self.live, self.feed = executor, live, feed
        self.host_sets, self.evaluators = host_sets, evaluators
        self.host_metrics = host_metrics
        self.inputs, self.place = inputs, place
        self.context, self.run = context, run
        self.processes = context.processes
        self.saving = CheckpointHooks(keeper, lambda: named_leaves(self.carry()), self._facts)
        self.signals = Signals(sigterm=not self.processes.takes_sigterm)
        self.members = members
        self.stops: list[StopRecord] = []
        self.interrupted: int | None = None  # signal that ended the run
        self._resumed = False
        self._warned_of_shapes = False
        self.begun = False  # whether `on_train_begin` has run
        self._pending: deque[PendingDispatch] = deque()
        self.status: Status | None = None  # as last read
        self._pace = ChunkSizer(steps_per_execution)
        self._read_at = (0, 0, False)  # position of the last result: epoch, step, and whether that step was validated
        self._host_actions: list[Record] = []
        self._next: Chunk | None = None  # the next chunk on process 0
        self.performer = WriterDispatcher(context)
        for action in executor.program.spec.actions_of():
            check_text(action, executor.program.members)
            if not isinstance(action, Backup):
                self.performer.prepare(action)
            elif keeper is None and not context.trial:
                raise ValueError(f"{action.owner} writes checkpoints, which needs a directory: pass run_dir=.")

    def writer(self, cls: type) -> Any:
        """Returns the writer of a class; None if the run has none."""
        return self.performer.writers.get(cls)

    @property
    def buffers_lost(self) -> bool:
        """Whether a failed dispatch invalidated the donated buffers."""
        return any(leaf.is_deleted() for leaf in self.live.leaves)

    def drain(self) -> None:
        """Reads pending dispatches. An error of a writer does not keep other records from being written."""
        while self._pending:
            dispatch = self._pending.popleft()
            with contextlib.suppress(Exception):
                self._read(dispatch.output, dispatch.host)

    def carry(self) -> LoopState:
        """Returns the loop state; for a population that of all members, in order."""
        return self.live.carry() if self.members is None else self.members.full_state(self.live)

    def stop_reason(self, member: int | None = None) -> str | None:
        """Returns who stopped the run, or a member, and why; None if it completed."""
        if self.interrupted is not None:
            return "interrupted"
        stops = (s for s in self.stops if s.member == member)
        return "; ".join(f"{s.owner}: {s.reason}" if s.owner else s.reason for s in stops) or None

    # The run

    def train(self) -> None:
        """Runs from `on_train_begin` to `on_train_end`. Writers and feed are closed in any case.

        If a signal ends the run, a checkpoint is written and `interrupted` is set.
        """
        failed: BaseException | None = None
        try:
            with self.signals:
                self._compile_ahead()
                if not self._resumed:
                    # the first checkpoint precedes all logs, so that a run killed early can truncate them on resume
                    self.saving.save(wait=True)
                if not self.begun:
                    self._run_single_hook("on_train_begin", self.executor.begin)
                    self.begun = True
                self._steps()
                self.saving.save()
                self.saving.consistent = False  # the loop state is that of a result from here on
                self._run_single_hook("on_train_end", self.executor.end)
                self.saving.save_result()
                self.interrupted = self.processes.broadcast_from_primary(
                    self._signal_received
                )  # a signal that came too late to interrupt a step
        except Interrupted as interrupt:
            failed, self.interrupted = interrupt, interrupt.signum
            self.saving.save(wait=True)
            self.update_model()
        except BaseException as error:
            failed = error
            # with several processes, a checkpoint would need all of them at the same position
            if not self.processes.is_multiprocess:
                self._save_on_error(error)
            raise
        finally:
            self.close(failed)

    def _compile_ahead(self) -> None:
        """Compiles the steps in the background, while the run writes its first checkpoint and `on_train_begin` runs.

        Only for data on the device: the shapes of a stream's chunks are known when the first one is there. With several
        processes, compiling may need all of them, at the same point of the run.
        """
        compiles = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        if compiles and self.inputs.data is not None and not self.processes.is_multiprocess:
            self.executor.prepare(self.live, self._inputs(None, np.zeros(len(self.host_metrics.names), np.float32)))

    def _facts(self) -> dict[str, Any]:
        """Returns the metadata of the host as JSON, after making all logs durable."""
        place = self.place
        return {
            "begun": self.begun,
            "over": place.over,
            "step": place.at.step,
            "epoch": place.at.epoch,
            "cursor": place.at.cursor,
            "feed": merge_process_positions(self.processes.gather(self.feed.get_state())),
            "files": self.context.file_positions(),
            "writers": self.performer.positions(),
            "stops": [list(stop) for stop in self.stops],
            "elapsed": self.host_metrics.elapsed,
            "executor": self.executor.name,
            "strategy": None if self.members is None else self.members.strategy.name,
        }

    def _save_on_error(self, error: BaseException) -> None:
        """Writes a checkpoint after an error if the state is consistent, and updates the caller's model."""
        if self.buffers_lost:
            return
        with contextlib.suppress(Exception):
            self.drain()
            self.update_model()
        status = self.status
        if self.saving.checkpointer is None or status is None:
            return
        if not self.saving.consistent or bool(status.yielded) or bool(status.awaits):
            return  # inside of a hook: the run resumes from the previous checkpoint, and the hook runs again
        try:
            if int(self.live.carry().step) != int(status.step):
                return  # interrupted before the last dispatch was read
            self.place.correct(status)
            self.feed.confirm(status)
            self.saving.save(wait=True)
        except Exception as second:
            error.add_note(f"No checkpoint could be written after this error: {second!r}")

    def close(self, failed: BaseException | None = None) -> None:
        """Closes writers, feed and checkpointer. The first error is the one that is raised."""
        self.context.fail(failed)
        keepers = () if self.saving.checkpointer is None else (self.saving.checkpointer,)
        # Writers first: closing a feed may block in a user's iterator and be interrupted there.
        close_all((*self.performer.writers.values(), self.host_metrics, *keepers, self.feed), failed)

    def resume(self, carry: LoopState, facts: Mapping[str, Any], *, clear_stopped: bool = False) -> None:
        """Restores a run from a checkpoint; `train` then continues with the next step.

        Args:
            carry: the loop state.
            facts: the metadata of the host.
            clear_stopped: whether to clear the stop that ended the run, because the arguments have changed.
        """
        if clear_stopped and facts["cursor"] == 0:
            carry, facts = clear_stop(carry), {**facts, "stops": []}
        self.live, self._resumed = DeviceState.of(copy_arrays(self._with_order(carry))), True
        if self.members is not None:
            self.live, self.inputs = self.members.put(self.live, self.inputs)
        self.begun = facts["begun"]
        self.place.take(carry)
        at = self.place.at
        self._read_at = (at.epoch, at.step, at.evaluated == at.step)
        self.stops = [StopRecord(*stop) for stop in facts["stops"]]
        self.host_metrics.resume(facts["elapsed"])
        self.performer.restore(facts["writers"])

    def _with_order(self, carry: LoopState) -> LoopState:
        """Returns the loop state with the order of the rows, which is a function of key and epoch and is not saved."""
        if carry.order is None:
            return carry
        draw = KeptFunction("order", self.executor.program.layout.new_order, self.executor.kept)
        return carry.replace(order=draw(self.inputs.key, carry.epoch))

    def _signal_received(self) -> int | None:
        """Returns the signal that any process received. Runs on process 0."""
        return self.processes.signum if self.signals.received is None else self.signals.received

    def _act_while_idle(self, decision: HostDecision) -> None:
        """Writes a checkpoint, compacts the population, or ends the run. No dispatch may be pending."""
        if decision.save:
            self.saving.save()
        if decision.pack:
            assert self.members is not None
            self.executor, self.live, self.inputs = self.members.compact(self.live, self.inputs)
            self._pace.reset()
        if decision.signum is not None:
            raise Interrupted(decision.signum)

    def _run_single_hook(self, hook: str, program: Any) -> None:
        """Runs `on_train_begin` or `on_train_end` if any callback defines it."""
        if hook not in self.executor.program.spec.hooks:
            return
        host = self.processes.broadcast_from_primary(lambda: self.host_metrics.read(self.place.at.step))
        self.live, output = program(self.live, self._inputs(None, host))
        self._synchronize(self._read(output, host))

    def _steps(self) -> None:
        """Dispatches chunks and handles their results until the run is over.

        Each turn decides, dispatches, and then reads the oldest dispatch. There are `_IN_FLIGHT` pending dispatches, so
        that the device works while the host handles records. This is safe, since a program that must not run returns
        its state unchanged: after a stop, a host action or a due host validation, the queued dispatches are no-ops.
        They then only have to be drained.
        """
        pending = self._pending
        while True:
            decision = self._next_decision()
            # A save or compaction that is due stops new dispatches (see `_decide`). It happens here once the queue is
            # empty.
            if decision.needs_idle_device and not pending:
                self._act_while_idle(decision)
                continue
            if decision.host is not None:
                pending.append(self._dispatch(decision, decision.host))
                if len(pending) < _IN_FLIGHT:
                    continue
            if not pending:
                return
            done = pending.popleft()
            status = self._read(done.output, done.host)
            self._measure(status)
            if bool(status.yielded) or bool(status.awaits) or not done.chunk.consumed(status):
                status = self._read_no_ops(status)
                self._synchronize(status)
            else:
                self.feed.confirm(status)
                if not pending:
                    self.place.correct(status)
            if bool(status.over):
                self._read_no_ops(status)
                self.place.correct(status)
                return

    def _read_no_ops(self, status: Status) -> Status:
        """Reads the dispatches behind one that has ended early: they are no-ops, or only close the epoch.

        Args:
            status: what that dispatch reported.

        Returns:
            The last status. A later dispatch has other data and cannot see that the epoch is complete, so only the
            given one says that a validation by the host is due.
        """
        while self._pending:
            dispatch = self._pending.popleft()
            later = self._read(dispatch.output, dispatch.host)
            if not bool(status.awaits):
                status = later
        return status

    def _next_decision(self) -> HostDecision:
        """Returns the next decision, which is the same on all processes."""
        if self.signals.received is not None:
            self.processes.report_signal(self.signals.received)
        decision = self.processes.broadcast_from_primary(self._decide)
        if self.processes.notified():
            self.signals.received = signal.SIGTERM
        return decision

    def _decide(self) -> HostDecision:
        """Returns the next decision. Runs on process 0."""
        pending = self._pending
        decision = HostDecision(self._signal_received(), self.saving.due, self.members is not None and self.members.due)
        may_wait = bool(pending) and pending[-1].output.may_wait
        if decision.needs_idle_device or may_wait or self.place.over:
            return decision
        # With an empty queue, wait for data. Otherwise dispatch only if data is ready; the next turn reads a result.
        self.signals.waiting = not pending
        try:
            chunk = self.feed.next(self._pace.length, wait=not pending)
        except Interrupted as interrupt:
            return HostDecision(interrupt.signum)
        finally:
            self.signals.waiting = False
        if not isinstance(chunk, Chunk):  # not ready, or the end of the data
            return decision
        self._next = chunk
        return decision._replace(
            length=self._pace.length, host=self.host_metrics.read(self.place.at.step), data=chunk_key(chunk)
        )

    def _dispatch(self, decision: HostDecision, host: np.ndarray) -> PendingDispatch:
        """Dispatches the next chunk of steps."""
        place = self.place
        mine = self._next if self.processes.is_primary else self.feed.next(decision.length, wait=True)
        chunk = check_same_chunk(mine, decision.data, self.processes.index)
        place.epoch_len = chunk.epoch_len
        self._pace.dispatched()
        inputs = self._inputs(chunk, host, decision.length)
        batches = chunk.left(place.at.epoch, place.at.cursor)
        batches = repeat(None, decision.length) if batches is None else batches
        self.live, output = self.executor.execute(self.live, inputs, batches, place)
        return PendingDispatch(chunk, output, host)

    def _inputs(self, chunk: Chunk | None, host: np.ndarray, length: int = 0) -> Inputs:
        """Returns the inputs of a dispatch."""
        if chunk is None:
            numbers = self.place.numbers(size=0, length=0)
            return self.inputs.replace(numbers=numbers.packed(host))
        length = length if chunk.epoch < 0 else UNBOUNDED
        numbers = self.place.numbers(
            data_epoch=chunk.epoch, epochs=chunk.epochs, base=chunk.base, size=chunk.size, length=length
        )
        return self.inputs.replace(data=chunk.data, numbers=numbers.packed(host))

    def _measure(self, status: Status) -> None:
        """Adapts the chunk size to the last measurement, and updates the active members."""
        shapes = None if self._warned_of_shapes else self.executor.shapes_that_keep_changing()
        if shapes is not None:
            self._warned_of_shapes = True
            self.context.warn(
                f"the shapes of the batches keep changing, and each new shape compiles the step again: {shapes}. Pad "
                "the arrays to a few common shapes, or drop smaller batches with Execution(drop_remainder=True)."
            )
        timing = self._pace.read(int(status.step))
        self.host_metrics.note_speed(self._pace.speed)
        if self.members is not None:
            if timing.to_build is not None:
                self.members.built_in(timing.to_build)
            self.members.note(status.alive, timing.seconds)

    # Results

    def _read(self, output: Output, host: np.ndarray) -> Status:
        """Waits for a dispatch. Writes its log records and stores its host actions."""
        with self.saving.inconsistent():  # until the records are written; a resumed run must produce missing ones again
            rings, status = jax.device_get((output.rings, output.status))
            status = self.executor.unpack_status(status)
            self.status = status
            self.host_metrics.note(self._read_at, host)
            self._read_at = (int(status.epoch), int(status.step), int(status.evaluated) == int(status.step))
            records = self.executor.program.buffers.read(rings)
            if self.members is not None:
                records = self.members.scatter_records(records)
            self.performer.perform(self._take_effects(records))
        self.performer.tick(status)
        return status

    def _take_effects(self, records: Iterable[Record]) -> list[Record]:
        """Stores stops, requests for checkpoints and host actions. Returns the other records, which are logs."""
        logs: list[Record] = []
        for record in records:
            if isinstance(record.action, Stop):
                self.stops.extend(stops_of(record))
            elif isinstance(record.action, Backup):
                self.saving.request_save()
            elif isinstance(record.action, HostAction):
                self._host_actions.append(record)
            else:
                logs.append(record)
        return logs

    def _synchronize(self, status: Status) -> None:
        """Synchronizes host and device: corrects the position and the feed, runs host actions and validation."""
        self.place.correct(status)
        self.place.epoch_len = self.feed.confirm(status, again=True)
        self._call_host()
        if bool(status.yielded):
            self.live = self.executor.resume(self.live)
        elif bool(status.awaits):
            self._validate()
        self._pace.exclude_host_time(self.place.at.step)  # host work does not count as step time

    def _call_host(self) -> None:
        waiting, self._host_actions = self._host_actions, []
        self.run._attach(self.carry)
        if not waiting:
            return
        with self.saving.inconsistent():
            self.update_model()
            for record in waiting:
                self.performer.perform([record])
                reason = self.processes.broadcast_from_primary(lambda: self.run.stop_reason)
                if reason is not None and record.hook != "on_train_end":
                    self.stops.append(StopRecord(record.action.owner, reason, record.step, record.epoch))
                    self.run.stop_reason = None
                    self.live = self.executor.request_stop(self.live)
                    self.place.stop()

    def update_model(self) -> None:
        """Updates the caller's own module if the model is one that is modified in place."""
        adapter = self.live.shapes().train.adapter
        if adapter is not None and adapter.in_place:
            self.run._attach(self.carry)
            state = self.run.copy_of(lambda state: state)
            adapter.deliver(state.params, state.model_state, state.rngs)

    def _validate(self) -> None:
        """Runs a validation on batches or evaluators of the host."""
        with self.saving.inconsistent():
            host = self.processes.broadcast_from_primary(lambda: self.host_metrics.read(self.place.at.step))
            inputs = self._inputs(None, host)
            self.live, output = self.executor.validate(self.live, inputs, self.host_sets, self._evaluate)
        self._synchronize(self._read(output, host))

    def _evaluate(self, live: DeviceState) -> dict[str, np.ndarray]:
        """Calls the evaluators with the weights at the validation."""
        if not self.evaluators.names:
            return {}
        train = all_gather(live.carry().train)
        self.run._attach(lambda: live.carry().replace(train=train))
        return self.processes.broadcast_from_primary(lambda: self.evaluators(self.run, self.place.at.step))
