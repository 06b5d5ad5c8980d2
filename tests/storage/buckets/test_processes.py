"""Several processes are one run in a bucket, with one writer."""

import json
import shutil

import pytest
from distributed._launch import started

from jaxcb._src.checkpointing.bucket_run import _check_shared, bucket_run
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.index import read_index
from jaxcb._src.utils.address import Address


class Second(Processes):
    """The second process of a run, which is told what the first one has found."""

    index, count = 1, 2

    def __init__(self, told):
        self.told = told

    def broadcast_from_primary(self, find):
        return self.told


def test_a_process_that_does_not_share_the_local_folder_is_refused(tmp_path):
    address = Address("s3", "bucket", "run")
    with pytest.raises(RuntimeError, match=r"process 1 does not see .*other, the local folder of s3://bucket/run"):
        _check_shared(address, tmp_path / "other", "token", Second(None))


def test_other_processes_write_nothing_to_the_bucket(tmp_path):
    (tmp_path / ".jaxcb").mkdir()
    (tmp_path / ".jaxcb" / "shared").write_text("token")
    given = {"local_dir": None, "may_exist": False, "on_error": "raise", "say": print}
    told = Second((str(tmp_path), "token"))
    with bucket_run(Address("s3", "no-bucket", "run"), **given, processes=told) as place:  # no request is sent
        assert place.directory == tmp_path
        assert place.primary is None


@pytest.mark.long
def test_two_processes_are_one_run_in_a_bucket_and_resume_on_other_machines(s3, tmp_path):
    s3.make_bucket("processes")
    address, found = "s3://processes/run", {}
    for name, place in {"local": tmp_path / "run", "bucket": address}.items():
        out = tmp_path / name
        if name == "bucket":  # killed in its midst, and the machines vanish
            with started(2, place, out, "save=5", "hold=6") as group:
                group.until(lambda out=out: out.with_suffix(".held").exists())
                group.until(lambda: len(read_index(Bucket(Address("s3", "processes", "run"))).files) > 10)
                group.kill(0)
                group.kill(1)
                group.end()
            shutil.rmtree(tmp_path / "cache")
        with started(2, place, out, "save=5") as group:
            assert group.end() == [0, 0], group.outputs()
        found[name] = [json.loads((tmp_path / f"{name}.{i}").read_text()) for i in range(2)]
    for one, other in zip(found["local"], found["bucket"], strict=True):
        assert [one[key] for key in ("history", "params", "step")] == [
            other[key] for key in ("history", "params", "step")
        ]
