"""Every command on a run in a bucket: what it says is what it says of the run's folder, and no array is fetched."""

import os
import subprocess
import sys

import pytest
from cli._runs import callbacks, train
from storage.buckets.conftest import s3, server  # noqa: F401  # fixtures

import jaxcb as jc
from jaxcb._src.report.fetched import is_text
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage.buckets import download
from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.lease import Lease
from jaxcb._src.utils.address import parse_address

ADDRESS = "s3://shelf/team/a"


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):  # noqa: F811
    """A folder of a run that has ended, which is in the bucket, too."""
    local = tmp_path_factory.mktemp("trained") / "a"
    server.make_bucket("shelf")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.url,
        }.items():
            patch.setenv(name, value)
        train(ADDRESS, epochs=4, patience=2, checkpointing=jc.Checkpointing(local_dir=local))
    return local


@pytest.fixture
def run(s3, trained):  # noqa: F811
    return trained


def same(call, run, *command):
    """Returns what a command says of an address, and checks that of the folder it says the same."""
    there, here = (call(*(place if part == "RUN" else part for part in command)) for place in (ADDRESS, run))
    assert (there.code, there.err) == (here.code, here.err)
    assert there.out.replace(ADDRESS, "RUN") == here.out.replace(str(run), "RUN")
    return there


def test_commands_say_of_an_address_what_they_say_of_the_folder(call, run, tmp_path):
    for command in (
        ["tail", "RUN", "--json"],
        ["explain", "RUN", "--json"],
        ["replay", "RUN", "--set", "EarlyStopping.patience=1..3", "--csv", "-"],
        ["plot", "RUN", "--json"],
        ["resume", "RUN"],
        ["verify", "RUN", "--json"],
        ["clean", "RUN", "--keep", "latest", "--json"],
    ):
        assert same(call, run, *command).code == 0
    log = ["--callback", "EarlyStopping(patience=1)", "--csv", "-"]
    there, here = (call("replay", place, *log) for place in (f"{ADDRESS}/log.csv", run / "log.csv"))
    assert (there.code, there.out) == (0, here.out)
    shown = call("show", ADDRESS, "--json").json
    here = call("show", run, "--json").json
    assert shown["run"] == ADDRESS
    for part in ("callback_states", "files", "facts", "processes", "best", "state", "reason"):
        assert shown[part] == here[part], part
    listed = next(row for row in call("ls", "s3://shelf", "--json").json if row["run"] == "team/a")
    assert listed["best"] == here["best"]
    assert [row["run"] for row in call("ls", "s3://shelf/team", "--json").json] == ["a"]
    assert call("compare", ADDRESS, run, "--json").code == 0
    for name, place in (("a.html", ADDRESS), ("b.html", run)):
        call("report", place, "-o", tmp_path / name)
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_no_array_is_fetched_where_none_is_needed(call, run, monkeypatch):
    asked = []
    original = download.download
    monkeypatch.setattr(
        download,
        "download",
        lambda bucket, files, folder, **k: asked.extend(files) or original(bucket, files, folder, **k),
    )
    assert call("explain", ADDRESS).code == 0
    assert asked
    assert all(map(is_text, asked))
    arrays = [p for p in run.rglob("*") if p.is_file() and not is_text(str(p))]
    assert arrays


@pytest.mark.long
def test_clean_and_repair_change_the_bucket_when_told_and_the_run_resumes(call, run):
    copy = "s3://shelf/other/a"
    there, here = (Bucket(parse_address("test", "run", place)) for place in (copy, ADDRESS))
    for name in here.list():
        there.put(name, here.get(name).data)
    before = {c.step for c in RunFolder(run).checkpoints}
    assert call("clean", copy, "--keep", "latest", "--keep", "history").code == 0
    assert call("show", copy, "--json").json["files"]["log.csv"] > 0
    kept = ["--keep", "latest", "--keep", "history", "--keep", "exports", "--keep", "logs"]
    assert call("clean", copy, *kept, "--yes").code == 0
    left = call("show", copy, "--json").json["checkpoints"]
    assert len(left) == 1
    assert {c["step"] for c in left} < before
    assert call("verify", copy, "--repair", "--yes").code == 0
    given = {"epochs": 5, "callbacks": callbacks(9), "resume": True}
    result = train(copy, **given, checkpointing=jc.Checkpointing(local_dir=run.with_name("again")))
    assert int(result.state.step) == 30


def test_a_run_that_another_process_writes_to_is_running_and_left_alone(call, run):
    address = parse_address("test", "run", ADDRESS)
    lease = Lease(Bucket(address), say=lambda text: None)
    lease.acquire(99)
    try:
        assert call("ls", "s3://shelf/team", "--json").json[0]["state"] == "running"
        said = call("clean", ADDRESS, "--keep", "latest", "--yes")
        assert said.code == 2
        assert f"{ADDRESS} is being trained" in said.err
    finally:
        lease.release()
    assert call("ls", "s3://shelf/team", "--json").json[0]["state"] == "finished"


def test_a_folder_that_was_copied_to_a_bucket_is_read(call, run, s3):  # noqa: F811
    """Without the index that a run writes there: each file is an object."""
    bucket = Bucket(parse_address("test", "run", "s3://shelf/copied"))
    for path in run.rglob("*"):
        if path.is_file():
            bucket.put(path.relative_to(run).as_posix(), path.read_bytes())
    assert call("verify", "s3://shelf/copied").code == 0
    there, here = (call("explain", place, "--json") for place in ("s3://shelf/copied", run))
    assert there.json == here.json


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "s3://shelf/nothing"], "there is nothing at s3://shelf/nothing"),
        (["ls", "s3://shelf/nothing"], "there is nothing at s3://shelf/nothing"),
        (["explain", "s3://missing/run"], "no bucket 'missing'"),
        (["show", "ftp://host/run"], "no store serves"),
    ],
)
def test_a_wrong_address_is_one_line(call, s3, arguments, words):  # noqa: F811
    s3.make_bucket("shelf")
    said = call(*arguments)
    assert said.code == 3
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_what_was_fetched_is_removed_when_the_process_ends(run, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    told = subprocess.run([sys.executable, "-m", "jaxcb", "show", ADDRESS], env=environment, capture_output=True)
    assert told.returncode == 0
    assert list((tmp_path / "tmp").iterdir()) == []
