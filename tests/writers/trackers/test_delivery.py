"""Delivery to a service that fails in all ways, from runs that are killed between any two requests."""

import collections
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from _patience import PATIENCE, until
from hypothesis import given
from hypothesis import strategies as st
from writers.trackers._service import FAULTS, Client, Process, ReadableClient, Service

import jaxcb as jc

STEPS = 12


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def idle(process, service):
    """Waits until all is sent, or the process is killed."""
    delivery = process.delivery
    until(lambda: service.killed.is_set() or (delivery._opened and delivery._outbox.done == delivery._outbox.made))


def train(run_dir, service, client, saves, *, value=lambda step: 1.0 / step):
    """Runs to the end, resuming from the last checkpoint after each kill. Returns the number of processes."""
    checkpoint, at, processes = None, 0, 0
    while True:
        process = Process(run_dir, client(service), checkpoint)
        processes += 1
        checkpoint = checkpoint or process.checkpoint()
        for step in range(at + 1, STEPS + 1):
            process.log(step, loss=value(step), accuracy=float(step))
            idle(process, service)
            if service.killed.is_set():
                break
            if step in saves:
                checkpoint, at = process.checkpoint(), step
        else:
            last = process.checkpoint()
            if not ends(process, service):
                finish(run_dir, service, client, last)
            return processes
        process.vanish(service)


def finish(run_dir, service, client, checkpoint):
    """A complete run is asked for again, which sends the rest."""
    while True:
        if ends(Process(run_dir, client(service), checkpoint, complete=True), service):
            return


def ends(process, service):
    """Closes the writer; false if the process is killed meanwhile."""
    end = threading.Thread(target=process.writer.close)
    end.start()
    until(lambda: service.killed.is_set() or not end.is_alive())
    if not service.killed.is_set():
        return True
    process.vanish(service)
    end.join()
    return False


faults = st.dictionaries(st.integers(0, 20), st.sampled_from(FAULTS), max_size=6)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("confirms", [True, False])
@given(faults, st.sets(st.integers(1, STEPS), max_size=4))
def test_a_service_that_can_be_read_holds_each_record_once(confirms, faults, saves):
    class Own(ReadableClient):
        pass

    Own.confirms = confirms
    service = Service(faults)
    with tempfile.TemporaryDirectory() as name:
        train(Path(name) / "run", service, Own, saves)
    assert len(service.runs) == 1, "one run in the service"
    assert list(service.status.values()) == ["finished"]
    assert sorted(service.rows) == sorted(
        (s, n, v) for s in range(1, STEPS + 1) for n, v in (("loss", 1.0 / s), ("accuracy", float(s)))
    )


@pytest.mark.usefixtures("quiet")
@given(faults, st.sets(st.integers(1, STEPS), max_size=4))
def test_one_that_cannot_holds_each_record_at_least_once(faults, saves):
    service = Service(faults)
    with tempfile.TemporaryDirectory() as name:
        train(Path(name) / "run", service, Client, saves)
    assert len(service.runs) == 1
    counts = collections.Counter(service.rows)
    assert set(counts) == {(s, n, v) for s in range(1, STEPS + 1) for n, v in (("loss", 1 / s), ("accuracy", float(s)))}
    # only a request whose response did not arrive is sent again
    lost = [fault for fault in faults.values() if fault in ("lost response", "killed after")]
    assert sum(counts.values()) - len(counts) <= 2 * Client.batch * len(lost)


@pytest.mark.usefixtures("quiet")
def test_every_kill_between_two_requests(tmp_path):
    whole = Service()
    train(tmp_path / "whole", whole, ReadableClient, {4, 8})
    assert whole.requests > 10
    for number in range(whole.requests):
        for fault in ("killed before", "killed after"):
            service = Service({number: fault})
            train(tmp_path / f"{fault} {number}", service, ReadableClient, {4, 8})
            assert sorted(service.rows) == sorted(whole.rows), (number, fault)
            assert service.status == whole.status, (number, fault)


@pytest.mark.usefixtures("quiet")
def test_another_result_after_a_resume_is_sent_as_well(tmp_path):
    """A run that is resumed with another rate logs other values for the steps after its checkpoint."""
    service, run_dir = Service(), tmp_path / "run"
    process = Process(run_dir, Client(service))
    process.log(1, loss=1.0)
    idle(process, service)
    checkpoint = process.checkpoint()
    process.log(2, loss=0.5)
    process.log(3, loss=0.25)
    idle(process, service)
    process.vanish(service)
    process = Process(run_dir, Client(service), checkpoint)
    process.log(2, loss=0.5)
    process.log(3, loss=0.125)
    process.writer.close()
    assert service.rows == [(1, "loss", 1.0), (2, "loss", 0.5), (3, "loss", 0.25), (3, "loss", 0.125)]


def test_a_service_that_is_down_gets_all_from_the_next_process(tmp_path):
    service, run_dir = Service(dict.fromkeys(range(100_000), "refused connection")), tmp_path / "run"
    process = Process(run_dir, Client(service))
    checkpoints = []

    def run():
        for step in (1, 2):
            process.log(step, loss=np.float32(0.1), other=np.float32("nan"))
        checkpoints.append(process.checkpoint())
        process.writer.close()

    with pytest.warns(RuntimeWarning) as caught:
        run()
    (checkpoint,) = checkpoints
    texts = [str(w.message) for w in caught]
    assert len(texts) == 2
    assert "Client could not be reached by me: ConnectionRefusedError('down')" in texts[0]
    assert "2 of 2 records of me wait for Client in " in texts[1]
    assert str(run_dir / ".jaxcb" / "outbox" / "me.jsonl") in texts[1]
    service.faults = {}
    process = Process(run_dir, Client(service), checkpoint, complete=True)
    process.writer.close()
    assert [(step, name, repr(value)) for step, name, value in service.rows] == [
        (1, "loss", "0.1"), (1, "other", "nan"), (2, "loss", "0.1"), (2, "other", "nan"),
    ]  # fmt: skip
    assert list(service.status.values()) == ["finished"]


def test_a_complete_run_whose_service_knows_all_asks_for_nothing(tmp_path):
    service = Service()
    process = Process(tmp_path / "run", Client(service))
    checkpoint = process.checkpoint() | {"writer": {"me": {"id": None, "made": 1, "sent": 0}}}
    process.log(1, loss=1.0)
    process.checkpoint()
    process.writer.close()
    before = service.requests
    Process(tmp_path / "run", Client(service), checkpoint, complete=True).writer.close()
    assert service.requests == before


def test_records_after_the_end_are_sent_once(tmp_path):
    service, run_dir = Service(), tmp_path / "run"
    process = Process(run_dir, Client(service))
    process.log(1, loss=1.0)
    checkpoint = process.checkpoint()
    process.writer.close()
    for _ in range(2):  # the same script, once more
        record = jc.writers.TrackedRecord(1, 0, 5.0, {"test_loss": 0.5, "test_f1": float("nan")})
        process.delivery.log_after(record)
        process.delivery.log_after(record._replace(values={"test_accuracy": 0.25}))
        process = Process(run_dir, Client(service), checkpoint, complete=True)
        process.writer.close()
    assert [name for _, name, _ in service.rows] == ["loss", "test_loss", "test_f1", "test_accuracy"]
    assert len(service.runs) == 1


def test_a_journal_that_is_removed_or_cut_off_means_doubt(tmp_path):
    for number, spoil in enumerate((lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-7]))):
        service, run_dir = Service(), tmp_path / str(number)
        process = Process(run_dir, ReadableClient(service))
        for step in range(1, 6):
            process.log(step, loss=1.0 / step)
        idle(process, service)
        checkpoint = process.checkpoint() | {"writer": {"me": {"id": None, "made": 5, "sent": 0}}}
        process.vanish(service)
        spoil(run_dir / ".jaxcb" / "outbox" / "me.sent.jsonl")
        process = Process(run_dir, ReadableClient(service), checkpoint)
        process.log(6, loss=0.125)
        process.writer.close()
        assert service.steps("loss") == [1, 2, 3, 4, 5, 6]


def log_in_memory(tracker, steps, before_the_end=lambda: None):
    """A hand-written loop without a directory."""
    with jc.Recorder(verbose=0) as recorder:
        for step in steps:
            action = jc.actions.LogTracker({"loss": np.float32(step)}, {"loss": True}, tracker, owner="me")
            recorder.perform(action, step=step)
        before_the_end()


def test_a_refused_record_is_dropped_alone():
    class Picky(jc.writers.Tracker):
        rows = ()

        def send(self, records):
            if any(r.values["loss"] == 2.0 for r in records):
                raise jc.writers.RefusedError("no")
            self.rows = (*self.rows, *(r.step for r in records))

    picky = Picky()
    with pytest.warns(RuntimeWarning) as caught:
        log_in_memory(picky, range(5))
    assert picky.rows == (0, 1, 3, 4)
    texts = {str(w.message) for w in caught}
    assert any("Picky has refused records of me: RefusedError('no')" in t for t in texts)
    assert any("Picky did not receive 1 of 5 records of me" in t for t in texts)


def test_a_service_that_hangs_does_not_hold_the_run():
    class Hangs(jc.writers.Tracker):
        close_seconds = 0.05
        end = threading.Event()

        def send(self, records):
            self.end.wait(PATIENCE)

    with pytest.warns(RuntimeWarning, match="Hangs did not receive 3 of 3 records of me"):
        log_in_memory(Hangs(), range(3))
    Hangs.end.set()


def test_a_full_queue_in_memory_drops_the_oldest_and_counts(monkeypatch):
    from jaxcb._src.writers.trackers import writer

    monkeypatch.setattr(writer, "_CAPACITY", 3)

    class Slow(jc.writers.Tracker):
        begun, end, steps = threading.Event(), threading.Event(), ()

        def open(self, run):
            self.begun.set()
            self.end.wait(PATIENCE)

        def send(self, records):
            self.steps = (*self.steps, *(r.step for r in records))

        def close(self, status):
            self.status = status

    slow = Slow()

    def comes_up():
        assert slow.begun.wait(PATIENCE)
        slow.end.set()

    with pytest.warns(RuntimeWarning, match="Slow did not receive 3 of 6 records of me"):
        log_in_memory(slow, range(6), comes_up)
    assert slow.steps == (3, 4, 5)
    assert slow.status == "finished"


def test_the_end_of_the_run_is_told():
    class Told(jc.writers.Tracker):
        def __init__(self):
            self.status = []

        def send(self, records):
            pass

        def close(self, status):
            self.status.append(status)

    told = Told()
    action = jc.actions.LogTracker({"loss": np.float32(0)}, {"loss": True}, told, owner="me")
    for error in (None, ValueError("oh"), KeyboardInterrupt()):
        try:
            with jc.Recorder(verbose=0) as recorder:
                recorder.perform(action, step=1)
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
    assert told.status == ["finished", "failed", "interrupted"]


@pytest.mark.parametrize("position", [3, {"id": 3, "made": 0, "sent": 0}, {"id": None, "made": -1, "sent": 0}, {}])
def test_a_position_of_another_kind_is_refused(tmp_path, position):
    with pytest.raises((TypeError, KeyError)):
        Process(tmp_path / "run", Client(Service()), {"files": {}, "writer": {"me": position}})


def test_records_that_were_removed_are_missed(tmp_path):
    checkpoint = {"files": {}, "writer": {"me": {"id": None, "made": 3, "sent": 0}}}
    with pytest.raises(ValueError, match="has 0 records, but had 3 at the checkpoint"):
        Process(tmp_path / "run", Client(Service()), checkpoint)
