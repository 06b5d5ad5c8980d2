"""The driver: dispatches chunks of steps ahead of the device and handles their results."""

import contextlib
import signal
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.checkpointing.resume import merge_process_positions
from jaxcb._src.data.feed import Chunk, Feed
from jaxcb._src.loop.compiled.device_state import DeviceState
from jaxcb._src.loop.compiled.state import LoopState, Status, clear_stop, named_leaves
from jaxcb._src.loop.host.checkpoint_hooks import CheckpointHooks
from jaxcb._src.loop.host.device_run import DeviceRun
from jaxcb._src.loop.host.dispatches import (
    ChunkSizer,
    DispatchQueue,
    HostDecision,
    PendingDispatch,
    check_same_chunk,
    chunk_key,
)
from jaxcb._src.loop.host.host_metrics import Evaluators, HostMetrics
from jaxcb._src.loop.host.results import HostActions, Results
from jaxcb._src.loop.host.stops import Interrupted, Signals, StopRecord
from jaxcb._src.sharding.arrays import all_gather
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.dispatch import close_all
from jaxcb._src.writers.trackers.delivery import Delivery
from jaxcb._src.writers.trackers.writer import TrackerWriter


class Driver:
    """Drives a run on the devices until it ends.

    Args:
        device: the run on the devices.
        feed: training batches.
        host_sets: prefix -> iterable of validation batches.
        evaluators: metrics that the host computes at a validation.
        host_metrics: metrics that the host reads before each dispatch.
        context: for the writers.
        steps_per_execution: steps per dispatch; None to choose by measurement.
        keeper: writes checkpoints; None for a run without checkpoints.

    Raises:
        ValueError: for an action whose text cannot be formatted, or that needs a directory.
    """

    def __init__(
        self,
        device: DeviceRun,
        feed: Feed,
        host_sets: Mapping[str, Iterable[Any]],
        evaluators: Evaluators,
        host_metrics: HostMetrics,
        context: Context,
        steps_per_execution: int | None,
        keeper: Checkpointer | None = None,
    ) -> None:
        self.device, self.feed, self.context = device, feed, context
        self.interrupted: int | None = None  # signal that ended the run
        self._host_sets, self._evaluators, self._host_metrics = host_sets, evaluators, host_metrics
        self._processes = context.processes
        self._saving = CheckpointHooks(keeper, lambda: named_leaves(self.carry()), self._facts)
        self.results = Results(device, context, host_metrics, self._saving)
        self._host_actions = HostActions(device, self.results, context, self._saving)
        self._signals = Signals(sigterm=not self._processes.takes_sigterm)
        self._queue, self._pace = DispatchQueue(), ChunkSizer(steps_per_execution)
        self._resumed = self._begun = False  # whether `on_train_begin` has run
        self._warned_of_shapes = False
        self._next: Chunk | None = None  # the next chunk on process 0

    # The run

    def train(self) -> None:
        """Runs from `on_train_begin` to `on_train_end`. Writers and feed are closed in any case.

        If a signal ends the run, a checkpoint is written and `interrupted` is set.
        """
        failed: BaseException | None = None
        try:
            with self._signals:
                self._compile_ahead()
                if not self._resumed:
                    # the first checkpoint precedes all logs, so that a run killed early can truncate them on resume
                    self._saving.save(wait=True)
                if not self._begun:
                    self._run_single_hook("on_train_begin")
                    self._begun = True
                self._train_until_over()
                self._saving.save()
                self._saving.finish()
                self._run_single_hook("on_train_end")
                self._saving.save_result()
                # a signal that came too late to interrupt a step
                self.interrupted = self._processes.broadcast_from_primary(self._signal_received)
        except Interrupted as interrupt:
            failed, self.interrupted = interrupt, interrupt.signum
            self._saving.save(wait=True)
            self._host_actions.update_model()
        except BaseException as error:
            failed = error
            # with several processes, a checkpoint would need all of them at the same position
            if not self._processes.is_multiprocess:
                self._save_on_error(error)
            raise
        finally:
            self.close(failed)

    def _train_until_over(self) -> None:
        """The training loop: decides, dispatches, reads the oldest dispatch, and handles what it reports."""
        device, queue = self.device, self._queue
        while True:
            self._tell_of_checkpoints()
            decision = self._next_decision()

            # A checkpoint, a compaction or the end by a signal needs an idle device: it stops new dispatches (see
            # `_decide`), and happens here once the queue is empty.
            if decision.needs_idle_device and not queue:
                self._act_while_idle(decision)
                continue

            # Dispatch the next chunk of steps. The device still works on the one before it.
            if decision.host is not None:
                queue.push(self._dispatch(decision, decision.host))
                if not queue.is_full:
                    continue
            if not queue:
                if device.stage_is_over:  # the run was resumed there
                    self._begin_stage()
                    continue
                return  # the run is over, or its data is

            # Read the oldest dispatch: its log records are written, its host actions and stops are kept.
            if self._is_over_after(queue.pop()):
                return

    def _is_over_after(self, done: PendingDispatch) -> bool:
        """Reads a dispatch, and handles what it reports. Returns whether the run is over."""
        device, queue, results = self.device, self._queue, self.results
        status = results.read(done.output, done.host)
        self._measure(status)
        ended, status = bool(status.over), self._of_run(status)

        # It may have ended before the end of its chunk, for a host action or a validation by the host. The
        # dispatches behind it then were no-ops. Host and device meet at one position.
        if bool(status.yielded) or bool(status.awaits) or not done.chunk.consumed(status):
            status = self._of_run(results.read_no_ops(queue, status))
            self._synchronize(status)
        else:
            self.feed.confirm(status)
            if not queue:
                device.place.correct(status)
        if not ended:
            return False

        # The last epoch of the run, or of a stage, is closed.
        status = self._of_run(results.read_no_ops(queue, status))
        device.place.correct(status)
        if not device.stage_is_over:
            return True
        device.place.expect_epoch_of(self.feed.confirm(status, again=True))
        self._begin_stage()
        return False

    def _of_run(self, status: Status) -> Status:
        """Returns a status that is over only if the run is, and not if only a stage of it is."""
        return status.replace(over=bool(status.over) and not self.device.place.is_end_of_stage(status))

    def _begin_stage(self) -> None:
        """Begins the next stage of the run, in which it trains more. No dispatch may be pending."""
        with self._saving.inconsistent():
            self.device.advance()
        self._pace.reset()

    def _tell_of_checkpoints(self) -> None:
        """Tells callbacks of the checkpoints that are complete since the last call."""
        if self.context.saved:
            self.context.run._attach(self.device.carry)
            self.context.saved.deliver(self.context.run)

    # What to do next

    def _next_decision(self) -> HostDecision:
        """Returns the next decision, which is the same on all processes."""
        if self._signals.received is not None:
            self._processes.report_signal(self._signals.received)
        decision = self._processes.broadcast_from_primary(self._decide)
        if self._processes.notified():
            self._signals.receive(signal.SIGTERM)
        return decision

    def _decide(self) -> HostDecision:
        """Returns the next decision. Runs on process 0."""
        queue, members, place = self._queue, self.device.members, self.device.place
        decision = HostDecision(self._signal_received(), self._saving.due, members is not None and members.due)
        if decision.needs_idle_device or queue.may_wait or place.over:
            return decision
        # With an empty queue, wait for data. Otherwise dispatch only if data is ready; the next turn reads a result.
        try:
            with self._signals.interrupting() if not queue else contextlib.nullcontext():
                chunk = self.feed.next(self._pace.length, wait=not queue)
        except Interrupted as interrupt:
            return HostDecision(interrupt.signum)
        if not isinstance(chunk, Chunk):  # not ready, or the end of the data
            return decision
        self._next = chunk
        host = self._host_metrics.read(place.at.step)
        return decision._replace(length=self._pace.length, host=host, data=chunk_key(chunk))

    def _signal_received(self) -> int | None:
        """Returns the signal that any process received. Runs on process 0."""
        return self._processes.signum if self._signals.received is None else self._signals.received

    def _act_while_idle(self, decision: HostDecision) -> None:
        """Writes a checkpoint, compacts the population, or ends the run. No dispatch may be pending."""
        if decision.save:
            self._saving.save()
        if decision.pack:
            self.device.compact()
            self._pace.reset()
        if decision.signum is not None:
            raise Interrupted(decision.signum)

    # Dispatches

    def _compile_ahead(self) -> None:
        """Compiles the steps in the background, while the run writes its first checkpoint and `on_train_begin` runs.

        For most runs that has begun while the run was built.
        """
        self.device.prepare(np.zeros(len(self._host_metrics.names), np.float32))
        self.results.performer.warm_up()

    def _read_host_metrics(self) -> np.ndarray:
        return self._processes.broadcast_from_primary(lambda: self._host_metrics.read(self.device.place.at.step))

    def _run_single_hook(self, hook: str) -> None:
        """Runs `on_train_begin` or `on_train_end` if any callback defines it."""
        if hook in self.device.program.spec.hooks:
            if hook == "on_train_end" and not self._resumed:
                self._host_metrics.note_end(self.device.place.at.step)
            host = self._read_host_metrics()
            self._synchronize(self.results.read(self.device.run_hook(hook, host), host))

    def _dispatch(self, decision: HostDecision, host: np.ndarray) -> PendingDispatch:
        """Dispatches the next chunk of steps."""
        processes = self._processes
        mine = self._next if processes.is_primary else self.feed.next(decision.length, wait=True)
        chunk = check_same_chunk(mine, decision.data, processes.index)
        self._pace.dispatched()
        return PendingDispatch(chunk, self.device.execute(chunk, host, decision.length), host)

    def _measure(self, status: Status) -> None:
        """Adapts the chunk size to the last measurement, and updates the active members."""
        members = self.device.members
        shapes = None if self._warned_of_shapes else self.device.executor.shapes_that_keep_changing()
        if shapes is not None:
            self._warned_of_shapes = True
            self.context.warn(
                f"the shapes of the batches keep changing, and each new shape compiles the step again: {shapes}. Pad "
                "the arrays to a few common shapes, or drop smaller batches with Execution(drop_remainder=True)."
            )
        timing = self._pace.read(int(status.step))
        self._host_metrics.note_speed(self._pace.speed)
        if members is not None:
            if timing.to_build is not None:
                members.built_in(timing.to_build)
            members.note(status.alive, timing.seconds)

    # Host and device at one position

    def _synchronize(self, status: Status) -> None:
        """Corrects the position and the feed, runs host actions, and a validation of the host if one is due."""
        device = self.device
        device.place.correct(status)
        device.place.expect_epoch_of(self.feed.confirm(status, again=True))
        self._host_actions.perform()
        if bool(status.yielded):
            device.clear_yielded()
        elif bool(status.awaits):
            self._validate()
        self._pace.exclude_host_time(device.place.at.step)  # host work does not count as step time

    def _validate(self) -> None:
        """Runs a validation on batches or evaluators of the host."""
        with self._saving.inconsistent():
            host = self._read_host_metrics()
            output = self.device.validate(host, self._host_sets, self._evaluate)
        self._synchronize(self.results.read(output, host))

    def _evaluate(self, live: DeviceState) -> dict[str, np.ndarray]:
        """Calls the evaluators with the weights at the validation."""
        if not self._evaluators.names:
            return {}
        carry, run = live.carry(), self.context.run
        train = all_gather(carry.train)
        run._attach(lambda: carry.replace(train=train))
        step = self.device.place.at.step
        return self._processes.broadcast_from_primary(lambda: self._evaluators(run, step))

    # Checkpoints and the end

    def carry(self) -> LoopState:
        """Returns the loop state; for a population that of all members, in order."""
        return self.device.carry()

    def writer(self, cls: type) -> Any:
        """Returns the writer of a class; None if the run has none."""
        return self.results.performer.writers.get(cls)

    def deliveries(self) -> tuple[Delivery, ...]:
        """Returns what sends records to services, which a result uses after the end of the run."""
        writers = self.results.performer.writers.values()
        return tuple(d for w in writers if isinstance(w, TrackerWriter) for d in w.deliveries())

    def stop_reason(self, member: int | None = None) -> str | None:
        """Returns who stopped the run, or a member, and why; None if it completed."""
        if self.interrupted is not None:
            return "interrupted"
        stops = (s for s in self.results.stops if s.member == member)
        return "; ".join(f"{s.owner}: {s.reason}" if s.owner else s.reason for s in stops) or None

    def resume(self, carry: LoopState, facts: Mapping[str, Any], *, clear_stopped: bool = False) -> None:
        """Restores a run from a checkpoint; `train` then continues with the next step.

        Args:
            carry: the loop state.
            facts: the metadata of the host.
            clear_stopped: whether to clear the stop that ended the run, because the arguments have changed.
        """
        if clear_stopped and facts["cursor"] == 0:
            carry, facts = clear_stop(carry), {**facts, "stops": []}
        self.device.restore(carry)
        self._resumed, self._begun = True, facts["begun"]
        self._host_metrics.resume(facts["elapsed"])
        self.results.restore([StopRecord(*stop) for stop in facts["stops"]], facts["writers"])

    def _facts(self) -> dict[str, Any]:
        """Returns the metadata of the host as JSON, after making all logs durable."""
        place, members = self.device.place, self.device.members
        return {
            "begun": self._begun,
            "over": place.over and not self.device.stage_is_over,
            **({"stage": self.device.stage} if self.device.stage else {}),
            "step": place.at.step,
            "epoch": place.at.epoch,
            "cursor": place.at.cursor,
            "feed": merge_process_positions(self._processes.gather(self.feed.get_state())),
            "files": self.context.file_positions(),
            "writers": self.results.performer.positions(),
            "record": self.context.record_position(),
            "stops": [list(stop) for stop in self.results.stops],
            "elapsed": self._host_metrics.elapsed,
            "executor": self.device.executor.name,
            "block": self.device.program.block or 0,
            "strategy": None if members is None else members.strategy.name,
        }

    def _save_on_error(self, error: BaseException) -> None:
        """Writes a checkpoint after an error if the state is consistent, and updates the caller's model."""
        if self.device.buffers_lost:
            return
        with contextlib.suppress(Exception):
            self.results.drain(self._queue)
            self._host_actions.update_model()
        status = self.results.status
        if not self._saving.writes or status is None:
            return
        if not self._saving.consistent or bool(status.yielded) or bool(status.awaits):
            return  # inside of a hook: the run resumes from the previous checkpoint, and the hook runs again
        try:
            if int(self.device.live.carry().step) != int(status.step):
                return  # interrupted before the last dispatch was read
            self.device.place.correct(status)
            self.feed.confirm(status)
            self._saving.save(wait=True)
        except Exception as second:
            error.add_note(f"No checkpoint could be written after this error: {second!r}")

    def close(self, failed: BaseException | None = None) -> None:
        """Closes writers, feed and checkpointer. The first error is the one that is raised."""
        self.context.fail(failed)
        keepers = () if self._saving.checkpointer is None else (self._saving.checkpointer,)
        # Writers first: closing a feed may block in a user's iterator and be interrupted there.
        try:
            close_all((*self.results.performer.writers.values(), self._host_metrics, *keepers, self.feed), failed)
        except OSError as error:
            failed = error
            raise
        finally:
            if isinstance(failed, OSError) and self._saving.checkpointer is not None:
                failed.add_note(self._saving.checkpointer.what_is_saved())
        if failed is None or isinstance(failed, Interrupted):
            self._tell_of_checkpoints()  # closing has waited for those that were being written
