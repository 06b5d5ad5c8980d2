"""A service in memory, with faults at chosen requests, and runs that are killed and resumed."""

import json
import threading

import jaxcb as jc
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.writers.run_handle import Record, Run
from jaxcb._src.writers.trackers.writer import CustomTrackerWriter

FAULTS = ("refused connection", "lost response", "killed before", "killed after")


class Service:
    """What a service holds, and what happens at each of its requests, by number.

    Args:
        faults: number of a request -> one of `FAULTS`.
    """

    def __init__(self, faults=None):
        self.rows, self.runs, self.status = [], {}, {}
        self.faults, self.requests = dict(faults or {}), 0
        self.killed = threading.Event()  # the client's process has been killed: it hears nothing any more
        self.released = threading.Event()

    def request(self, serve):
        """Serves a request of a client, with its fault."""
        fault = self.faults.get(self.requests)
        self.requests += 1
        if fault == "refused connection":
            raise ConnectionRefusedError("down")
        if fault == "killed before":
            self._kill()
        answer = serve()
        if fault == "lost response":
            raise TimeoutError("no response")
        if fault == "killed after":
            self._kill()
        return answer

    def _kill(self):
        self.killed.set()
        self.released.wait()
        raise ConnectionError("the process is gone")

    def steps(self, name):
        """The steps of a metric, in the order in which they came."""
        return [step for step, own, _ in self.rows if own == name]


class Client(jc.writers.Tracker):
    """The client of such a service."""

    batch = 3
    close_seconds = 300.0

    def __init__(self, service):
        self.remote, self.id = service, None

    def open(self, run):
        self.id = self.remote.request(lambda: self.remote.runs.setdefault(run.key, f"id-{len(self.remote.runs)}"))
        assert run.id in (None, self.id)
        return self.id

    def send(self, records):
        rows = [(r.step, name, value) for r in records for name, value in r.values.items()]
        self.remote.request(lambda: self.remote.rows.extend(rows))

    def close(self, status):
        self.remote.request(lambda: self.remote.status.update({self.id: status}))


class ReadableClient(Client):
    """One that reads back what the service holds."""

    def history(self, name):
        return self.remote.request(lambda: [(step, value) for step, own, value in self.remote.rows if own == name])


class Process:
    """One process of a run that only logs: its writer, and the checkpoint from which it begins.

    Args:
        run_dir: the run's directory.
        client: the tracker.
        checkpoint: of an earlier process, None for a new run.
        complete: whether the run is complete.
    """

    def __init__(self, run_dir, client, checkpoint=None, *, complete=False):
        self.context = jc.writers.Context(run_dir, Run(run_dir), 0, None)
        record = (RunRecord.read(run_dir) if checkpoint else None) or RunRecord(run_dir)
        files = checkpoint["files"] if checkpoint else {}
        self.context.start_from(record, files, inherits=False, complete=complete, saved_in="it" if checkpoint else None)
        run_dir.mkdir(exist_ok=True)
        if not record.begun:
            record.begin()
        self.writer = CustomTrackerWriter(self.context)
        self.action = jc.actions.LogTracker({}, {}, client, owner="me")
        self.writer.prepare(self.action)
        self.delivery = self.writer.deliveries()[0]
        self.delivery._pause = 0.0
        if checkpoint:
            self.writer.restore(checkpoint["writer"])

    def log(self, step, **values):
        action = self.action.replace(values=values, fresh=dict.fromkeys(values, True))
        self.writer.write(Record(action, "on_epoch_end", step, 0, 0))

    def checkpoint(self):
        """What a checkpoint holds, as it would be read back."""
        return json.loads(json.dumps({"files": self.context.file_positions(), "writer": self.writer.position()}))

    def vanish(self, service):
        """Ends as a killed process does: nothing reaches the service or the disk any more."""
        self.delivery.abandon()
        service.released.set()
        if self.delivery._thread is not None:
            self.delivery._thread.join()
        service.killed, service.released = threading.Event(), threading.Event()
