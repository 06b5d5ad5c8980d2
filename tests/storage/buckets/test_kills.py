"""A run in a bucket whose machines vanish: killed at random, and its folder removed, it ends as one never killed."""

import shutil
import signal

import pytest
from _patience import PATIENCE, until
from loop._killing import Kill, Life, at_random, chance, differences, in_saves, killed_run, whole_run
from storage.buckets._faulty import contents, files_in

from jaxcb._src.storage.buckets.bucket import Bucket, connect
from jaxcb._src.storage.buckets.download import download
from jaxcb._src.storage.buckets.index import read_index
from jaxcb._src.storage.buckets.mirror import UPLOADS
from jaxcb._src.utils.address import Address

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("children_share_the_cache")


def vanish(address, tmp_path, kills, options, seconds, rng):
    """Kills a run and removes its folder, again and again; then compares what it comes to, here and in the bucket."""

    def plan():
        for number in range(kills):
            shutil.rmtree(tmp_path / "killed", ignore_errors=True)
            moment = at_random(rng, seconds) if number % 2 else in_saves(rng, 4)
            yield Kill(moment)
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)

    found = killed_run(tmp_path / "killed", (*options, "--bucket", str(address)), plan())
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    bucket, fresh = Bucket(address), tmp_path / "fresh"
    fresh.mkdir()
    assert download(bucket, read_index(bucket).files, fresh, say=print) == []
    here = files_in(tmp_path / "killed")
    here.pop("end.npz")
    assert files_in(fresh) == here
    for path in (fresh, tmp_path / "killed"):
        shutil.rmtree(path)
    return found


@pytest.mark.long
@pytest.mark.slow
def test_a_run_whose_machines_vanish_ends_as_one_that_was_not_killed(s3, tmp_path):
    s3.make_bucket("some-kills")
    options = ("--save-freq", "48")
    seconds, rng, hits, number = whole_run(tmp_path / "whole", options), chance(), 0, 0
    while not hits:  # a run that ends before the first kill is made again
        hits = vanish(Address("s3", "some-kills", f"run_{number}"), tmp_path, 2, options, seconds, rng).places.total()
        number += 1


@pytest.mark.long
@pytest.mark.parametrize(("executor", "data"), [("looped", "arrays"), ("stepped", "stream")])
def test_many_machines_vanish(s3, tmp_path, executor, data):
    bucket = f"many-kills-{executor}"
    s3.make_bucket(bucket)
    rng, hits, number = chance(), 0, 0
    options = ("--executor", executor, "--data", data)
    seconds = whole_run(tmp_path / "whole", options)
    while hits < 30:
        address = Address("s3", bucket, f"run_{number}")
        hits += vanish(address, tmp_path, min(8, 30 - hits), options, seconds, rng).places.total()
        number += 1


@pytest.mark.long
def test_a_stopped_process_whose_lease_was_taken_writes_nothing_when_it_wakes(s3, tmp_path):
    s3.make_bucket("stopped")
    address = Address("s3", "stopped", "run")
    options = ("--bucket", str(address), "--lease", "2")
    slow = Life(tmp_path / "slow", options)
    assert slow.wait_for(lambda: slow.trains and any(contents_of(address)))
    until(lambda: read_index(Bucket(address)).files)
    slow.process.send_signal(signal.SIGSTOP)
    try:
        other = Life(tmp_path / "other", options)
        other.finish()
        before = contents_of(address)
    finally:
        slow.process.send_signal(signal.SIGCONT)
    assert slow.process.wait(PATIENCE) == 1
    assert "LeaseLostError" in slow.said
    assert "was taken over by another process" in slow.said
    after = contents_of(address)
    assert before.items() <= after.items()
    # a request that was under way when it was stopped may leave a segment that no manifest names
    assert len(after) <= len(before) + UPLOADS
    assert not {name for name in after.keys() - before.keys() if "/segments/00000001-" not in name}


def contents_of(address):
    return contents(connect(address))
