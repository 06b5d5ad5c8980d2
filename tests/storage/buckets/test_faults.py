"""Runs in a store that fails: killed between any two requests, taken over, throttled, denied, with stale lists."""

import contextlib
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from storage.buckets._faulty import (
    ADDRESS,
    SECONDS,
    Clock,
    FaultyStore,
    Machine,
    contents,
    cut_off,
    denied,
    files_in,
    throttled,
)

from jaxcb._src.storage.buckets.bucket import Bucket, ConflictError
from jaxcb._src.storage.buckets.index import MANIFEST, DamagedBucketError, read_index
from jaxcb._src.storage.buckets.lease import LeaseLostError
from jaxcb._src.storage.buckets.mirror import UPLOADS

STEPS = 5
LATER = 10 * SECONDS


def run_to(machine: Machine, last: int) -> list[dict[str, bytes]]:
    """Goes on from the last checkpoint in the folder, and returns what the folder was at each save."""
    found = sorted((machine.folder / "checkpoints").glob("step_*"))
    done = [files_in(machine.folder)]
    for step in range(int(found[-1].name[5:]) + 1 if found else 1, last + 1):
        machine.checkpoint(step)
        done.append(files_in(machine.folder))
        machine.save()
    return done


def expected(folder: Path) -> list[dict[str, bytes]]:
    """What a folder is at the beginning and after each step, without a fault."""
    machine = Machine(FaultyStore(MemoryStore()), folder).open()
    try:
        return run_to(machine, STEPS)
    finally:
        machine.close()


def in_the_bucket(memory: MemoryStore, folder: Path) -> dict[str, bytes]:
    """What a fresh machine gets, and then all that it needs: no segment is missing, and none is left over."""
    machine = Machine(FaultyStore(memory), folder, Clock()).open()
    machine.close()
    prefix = f"{ADDRESS.key}/"
    there = {name.removeprefix(prefix) for name in contents(memory)}
    assert there == {"lease.json", MANIFEST} | read_index(machine.bucket).segments
    assert not [line for line in machine.said if "damaged" in line]
    return files_in(folder)


def test_a_fresh_machine_gets_what_the_last_one_saved(tmp_path):
    memory, states = MemoryStore(), expected(tmp_path / "whole")
    for last in range(1, STEPS + 1):  # another machine for each step
        machine = Machine(FaultyStore(memory), tmp_path / f"{last}", Clock(1000.0 * last)).open()
        run_to(machine, last)
        machine.close()
        assert in_the_bucket(memory, tmp_path / f"{last}_fresh") == states[last]


@pytest.mark.parametrize("performed", [False, True], ids=["lost", "performed"])
def test_killed_at_any_request_it_resumes_from_a_save_and_ends_alike(tmp_path, performed):
    states = expected(tmp_path / "whole")
    for at in itertools.count():
        memory, folder = MemoryStore(), tmp_path / f"{performed}_{at}"
        store = FaultyStore(memory, cut_off(at, performed=performed))
        machine, saved = Machine(store, folder / "killed", patience=0.0), 0
        with contextlib.suppress(OSError):
            machine.open()
            for step in range(1, STEPS + 1):
                machine.checkpoint(step)
                machine.save()
                saved = step
        machine.mirror.stop()
        fresh = Machine(FaultyStore(memory), folder / "fresh", Clock(LATER)).open()
        assert files_in(folder / "fresh") in states[saved : saved + 2]  # what was confirmed, or one that was under way
        run_to(fresh, STEPS)
        fresh.close()
        assert in_the_bucket(memory, folder / "end") == states[-1]
        if len(store.requests) <= at:  # it was not killed any more
            break
    assert at > 20


def stopped_at(at: int, folder: Path, last: dict[str, bytes]) -> bool:
    """Stops a process at a request until another one has taken its lease and ended the run; False if it has fewer."""
    memory, clock, stopped = MemoryStore(), Clock(), threading.Lock()
    others: list[Machine] = []
    before: dict[str, str] = {}

    def fault(number: int, kind: str, path: str, go: Any) -> Any:
        with stopped:  # all threads of a process stop together
            if number == at and not others:
                clock.now += LATER  # its own clock goes on
                others.append(Machine(FaultyStore(memory), folder / "other", Clock(7.0)).open())
                run_to(others[0], STEPS)
                before.update(contents(memory))
        return go()

    slow = Machine(FaultyStore(memory, fault), folder / "slow", clock)
    try:
        slow.open()
    except RuntimeError:  # it was stopped before its run began: refused, or the lease was lost at once
        others[0].close()
        return True
    if others and slow.lease.number > others[0].lease.number:
        slow.close()  # it was stopped before it had a lease, and then took that of the other, which does not renew it
        return True
    with contextlib.suppress(LeaseLostError):
        for step in range(1, 4):
            slow.checkpoint(step)
            slow.save()
    if not others:
        slow.close()
        return False
    slow.checkpoint(9)
    with pytest.raises(LeaseLostError, match="taken over by another process"):
        slow.save()
    # the requests under way when it was stopped may leave segments that no manifest names
    assert before.items() <= contents(memory).items()
    assert len(contents(memory)) <= len(before) + UPLOADS
    slow.close()
    assert before.items() <= contents(memory).items()
    others[0].close()
    assert in_the_bucket(memory, folder / "end") == last
    return True


def test_a_paused_process_whose_lease_was_taken_changes_nothing_at_whatever_request_it_wakes(tmp_path):
    states = expected(tmp_path / "whole")
    count = next(at for at in itertools.count() if not stopped_at(at, tmp_path / f"{at}", states[-1]))
    assert count > 10


def test_a_process_that_was_stopped_between_two_saves_sends_no_put_but_that_of_its_lease(tmp_path):
    memory, clock = MemoryStore(), Clock()
    store = FaultyStore(memory)
    slow = Machine(store, tmp_path / "slow", clock).open()
    run_to(slow, 2)
    clock.now += LATER
    other = Machine(FaultyStore(memory), tmp_path / "other", Clock()).open()
    run_to(other, 4)
    before, sent = contents(memory), len(store.requests)
    slow.checkpoint(3)
    with pytest.raises(LeaseLostError, match="taken over by another process"):
        slow.save()
    puts = [path for kind, path in store.requests[sent:] if kind in ("put", "delete")]
    assert puts == ["runs/a/lease.json"]
    assert contents(memory) == before
    slow.close()
    assert contents(memory) == before
    other.close()


def test_of_two_runs_at_once_the_second_is_told_by_whom_and_since_when(tmp_path):
    memory = MemoryStore()
    first = Machine(FaultyStore(memory), tmp_path / "first").open()
    lives = json.loads(bytes(memory.get("runs/a/lease.json").bytes()))
    lives["process"] = "of another machine"  # so that it has to be watched
    memory.put("runs/a/lease.json", json.dumps(lives).encode())
    first.lease._version = {"e_tag": memory.head("runs/a/lease.json")["e_tag"]}
    clock = Clock(1e9)  # no two clocks need to agree

    def renews(seconds: float) -> None:
        first.clock.now += seconds
        first.lease.ensure()

    clock.meanwhile = renews
    second = Machine(FaultyStore(memory), tmp_path / "second", clock)
    with pytest.raises(RuntimeError, match=r"s3://bucket/runs/a is in use by another run: process \d+ on .*, since 20"):
        second.open()
    assert clock.now - 1e9 <= SECONDS
    assert "waiting up to 30 s" in second.said[0]
    run_to(first, 2)  # it was not disturbed
    first.close()
    second = Machine(FaultyStore(memory), tmp_path / "third", clock)
    clock.meanwhile = lambda seconds: None
    second.open().close()  # released: taken at once
    assert len(second.said) == 0


def test_a_lease_is_taken_by_the_clock_of_the_one_who_watches(tmp_path):
    memory = MemoryStore()
    Machine(FaultyStore(memory), tmp_path / "gone", Clock(5e9)).open().mirror.stop()  # it does not release its lease
    lease = json.loads(bytes(memory.get("runs/a/lease.json").bytes()))
    memory.put("runs/a/lease.json", json.dumps(lease | {"process": "elsewhere", "since": "2999-01-01"}).encode())
    clock = Clock(-4.0)
    machine = Machine(FaultyStore(memory), tmp_path / "next", clock).open()
    assert SECONDS <= clock.now + 4.0 <= 2 * SECONDS
    assert machine.lease.number == 2
    machine.close()


def test_a_process_that_died_on_this_machine_is_not_waited_for(tmp_path):
    memory, clock = MemoryStore(), Clock()
    Machine(FaultyStore(memory), tmp_path / "gone").open().mirror.stop()
    lease = json.loads(bytes(memory.get("runs/a/lease.json").bytes()))
    boot, namespace, pid, started = lease["process"].split(" ")
    for gone in (f"{boot} {namespace} {2**22 + 1} {started}", f"{boot} {namespace} {pid} {int(started) + 1}"):
        memory.put("runs/a/lease.json", json.dumps(lease | {"process": gone}).encode())
        machine = Machine(FaultyStore(memory), tmp_path / f"next{gone[-1]}", clock).open()
        machine.close()
    assert clock.now < 1.0


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_faults_that_pass_change_nothing(tmp_path_factory, data):
    """Lost requests, lost acknowledgements, throttling, partial uploads, expired credentials and stale lists."""
    folder, memory = tmp_path_factory.mktemp("faults"), MemoryStore()
    states = expected(folder / "whole")
    kinds = data.draw(st.lists(st.sampled_from("....lapstd"), min_size=30, max_size=60))
    stale: list[Any] = [[]]
    performed: set[str] = set()  # what was denied from the beginning is an error

    def fault(number: int, kind: str, path: str, go: Any) -> Any:
        what = kinds[number] if number < len(kinds) else "."
        if what == "l":
            raise GenericError("error sending request")
        if what == "a":
            go()
            raise GenericError("connection closed before message completed")
        if what == "p" and kind == "put" and "segments" in path:
            memory.put(path, b"half")
            raise GenericError("connection reset by peer")
        if what == "t":
            return throttled()
        if what == "d" and kind in performed:
            return denied()
        result = go()
        performed.add(kind)
        if kind == "list":
            stale.append(result)
            return stale[-2] if what == "s" else result
        return result

    machine = Machine(FaultyStore(memory, fault), folder / "a", patience=300.0).open()
    run_to(machine, STEPS)
    machine.close()
    assert in_the_bucket(memory, folder / "fresh") == states[-1]


def test_a_bucket_that_is_restored_from_a_copy_under_a_run_is_an_error_that_says_so(tmp_path):
    memory, manifest = MemoryStore(), f"{ADDRESS.key}/{MANIFEST}"
    first = Machine(FaultyStore(memory), tmp_path / "first").open()
    run_to(first, 1)
    first.close()
    copy = bytes(memory.get(manifest).bytes())
    second = Machine(FaultyStore(memory), tmp_path / "second").open()
    run_to(second, 2)
    memory.put(manifest, copy)
    second.checkpoint(3)
    with pytest.raises(DamagedBucketError, match=r"s3://bucket/runs/a/manifest\.json was replaced .* resume=True"):
        second.save()
    assert bytes(memory.get(manifest).bytes()) == copy
    second.close()


@pytest.mark.parametrize("performed", [False, True], ids=["lost", "performed"])
def test_after_an_outage_the_run_knows_its_own_manifest_and_goes_on(tmp_path, performed):
    memory, out = MemoryStore(), []

    def fault(number: int, kind: str, path: str, go: Any) -> Any:
        if out and (kind, path) == ("put", f"{ADDRESS.key}/{MANIFEST}") and performed and len(out) == 1:
            go()  # the segments have arrived, and the manifest; its acknowledgement and all later answers have not
        if out and path.endswith(MANIFEST):
            out.append(number)
            return throttled()
        return go()

    machine = Machine(FaultyStore(memory, fault), tmp_path / "a").open()
    run_to(machine, 1)
    out.append(0)
    machine.checkpoint(2)
    with pytest.raises(ConnectionError, match="SlowDown"):
        machine.save()
    assert read_index(Bucket(ADDRESS, store=memory)).manifest.sequence == (3 if performed else 2)
    out.clear()
    run_to(machine, 3)
    machine.close()
    assert in_the_bucket(memory, tmp_path / "fresh") == expected(tmp_path / "whole")[3]


@pytest.mark.parametrize(
    ("what", "first"), [("get", "get of manifest.json"), ("put", "put of lease.json"), ("list", "list of segments")]
)
def test_what_is_denied_at_first_is_not_tried_again(tmp_path, what, first):
    store = FaultyStore(MemoryStore(), lambda number, kind, path, go: denied() if kind == what else go())
    with pytest.raises(PermissionError, match=f"s3://bucket/runs/a: {first} was denied") as caught:
        Machine(store, tmp_path).open()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert [kind for kind, _ in store.requests].count(what) == 1


def test_a_conditional_put_whose_acknowledgement_is_lost_has_succeeded():
    memory = MemoryStore()

    def fault(number: int, kind: str, path: str, go: Any) -> Any:
        result = go()
        if kind == "put" and number in (0, 3):
            raise GenericError("connection closed")
        return result

    clock = Clock()
    bucket = Bucket(ADDRESS, store=FaultyStore(memory, fault), clock=clock, sleep=clock.sleep)
    version = bucket.put_if("a", b"1", None)
    assert bucket.put_if("a", b"2", version) != version
    with pytest.raises(ConflictError):
        bucket.put_if("a", b"3", version)
    with pytest.raises(ConflictError):
        bucket.put_if("a", b"3", None)
    assert bytes(memory.get("runs/a/a").bytes()) == b"2"
