"""`Results` reads what the device returns and performs its records; `HostActions` need the live run."""

import contextlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxcb._src.core.actions.base import HostAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.host import Backup
from jaxcb._src.loop.compiled.executor import Output
from jaxcb._src.loop.compiled.state import Status
from jaxcb._src.loop.host.checkpoint_hooks import CheckpointHooks
from jaxcb._src.loop.host.device_run import DeviceRun, deliver
from jaxcb._src.loop.host.dispatches import DispatchQueue
from jaxcb._src.loop.host.host_metrics import HostMetrics
from jaxcb._src.loop.host.stops import StopRecord, check_text, stops_of
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.dispatch import WriterDispatcher
from jaxcb._src.writers.run_handle import Record


class Results:
    """Reads dispatches: writes their log records, and keeps what the run has to act on.

    Args:
        device: the run.
        context: for the writers.
        host_metrics: what the host has measured.
        saving: writes checkpoints.

    Attributes:
        status: the last one that was read.
        wasted_steps: masked steps of blocks so far.
        stops: the stops so far.

    Raises:
        ValueError: for an action whose text cannot be formatted, or that needs a directory.
    """

    def __init__(self, device: DeviceRun, context: Context, host_metrics: HostMetrics, saving: CheckpointHooks) -> None:
        self._device, self._host_metrics, self._saving = device, host_metrics, saving
        self.performer = WriterDispatcher(context)
        self.status: Status | None = None
        self.wasted_steps = 0
        self.stops: list[StopRecord] = []
        self._waiting: list[Record] = []  # host actions
        self._read_at = (0, 0, False)  # position of the last result: epoch, step, and whether that step was validated
        for action in device.program.spec.actions_of():
            check_text(action, device.program.members)
            if not isinstance(action, Backup):
                self.performer.prepare(action)
            elif not saving.writes and not context.trial:
                raise ValueError(f"{action.owner} writes checkpoints, which needs a directory: pass run_dir=.")

    def read(self, output: Output, host: np.ndarray) -> Status:
        """Waits for a dispatch. Writes its log records, and stores its host actions.

        Args:
            output: of the dispatch.
            host: the host metrics that were passed to it.
        """
        device = self._device
        with self._saving.inconsistent():  # until records are written; a resumed run must produce missing ones again
            rings, status = jax.device_get((output.rings, output.status))
            status = self.status = device.executor.unpack_status(status)
            self.wasted_steps += int(status.wasted)
            self._host_metrics.note(self._read_at, host)
            self._read_at = (int(status.epoch), int(status.step), int(status.evaluated) == int(status.step))
            records = device.program.buffers.read(rings)
            if device.members is not None:
                records = device.members.scatter_records(records)
            self.performer.perform(self._take_effects(records))
        self.performer.tick(status)
        return status

    def read_no_ops(self, queue: DispatchQueue, status: Status) -> Status:
        """Reads the dispatches behind one that has ended early: they are no-ops, or only close the epoch.

        Args:
            queue: these dispatches.
            status: what that dispatch reported.

        Returns:
            The last status. A later dispatch has other data and cannot see that the epoch is complete, so only the
            given one says that a validation by the host is due.
        """
        while queue:
            dispatch = queue.pop()
            later = self.read(dispatch.output, dispatch.host)
            if not bool(status.awaits):
                status = later
        return status

    def drain(self, queue: DispatchQueue) -> None:
        """Reads all dispatches. An error of a writer does not keep other records from being written."""
        while queue:
            dispatch = queue.pop()
            with contextlib.suppress(Exception):
                self.read(dispatch.output, dispatch.host)

    def restore(self, stops: Iterable[StopRecord], positions: Any) -> None:
        """Continues from the stops and the positions of the writers in a checkpoint."""
        at = self._device.place.at
        self._read_at = (at.epoch, at.step, at.evaluated == at.step)
        self.stops = list(stops)
        self.performer.restore(positions)

    def take_host_actions(self) -> list[Record]:
        """Returns the host actions that were read since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _take_effects(self, records: Iterable[Record]) -> list[Record]:
        """Stores stops, requests for checkpoints and host actions. Returns the other records, which are logs."""
        logs: list[Record] = []
        for record in records:
            if isinstance(record.action, Stop):
                self.stops.extend(stops_of(record))
            elif isinstance(record.action, Backup):
                self._saving.request_save()
            elif isinstance(record.action, HostAction):
                self._waiting.append(record)
            else:
                logs.append(record)
        return logs


class HostActions:
    """Performs host actions, between two dispatches.

    Args:
        device: the run.
        results: has read the actions.
        context: for the writers.
        saving: writes checkpoints.
    """

    def __init__(self, device: DeviceRun, results: Results, context: Context, saving: CheckpointHooks) -> None:
        self._device, self._results, self._saving = device, results, saving
        self._run, self._processes = context.run, context.processes

    def perform(self) -> None:
        """Performs the host actions that were read. One of them may stop the run."""
        self._run._attach(self._device.carry)
        waiting = self._results.take_host_actions()
        if not waiting:
            return
        with self._saving.inconsistent():
            self.update_model()
            for record in waiting:
                self._results.performer.perform([record])
                reason = self._processes.broadcast_from_primary(lambda: self._run.stop_reason)
                if reason is not None and record.hook != "on_train_end":
                    self._results.stops.append(StopRecord(record.action.owner, reason, record.step, record.epoch))
                    self._run.clear_stop()
                    self._device.request_stop()

    def update_model(self) -> None:
        """Updates the caller's own module if the model is one that is modified in place."""
        self._run._attach(self._device.carry)
        deliver(self._device, self._run.copy_of)
