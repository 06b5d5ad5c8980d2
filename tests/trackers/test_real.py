"""Real trackers on this machine, and runs that are killed at random and started again: what each tracker then holds.

`make trackers` runs this in an environment of its own. `KILLS` sets the kills of each run.
"""

import collections
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from _patience import PATIENCE, until
from moto import server as moto_server

from jaxcb._src.history.wandb_files import logged_rows

# what the trackers and their dependencies think of this Python is not ours
pytestmark = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = Path(__file__).parent.parent.parent
KILLS = int(os.environ.get("KILLS", "3"))
TEST = (48, "test_loss", 0.25)


@pytest.fixture
def environment(tmp_path):
    """No tracker reaches for the network or the home directory."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path),
        "WANDB_DATA_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "no_proxy": "127.0.0.1",
        "HOME": str(tmp_path),
    }


@pytest.fixture
def bucket(environment):
    """A bucket for the run, in a server with S3's protocol on this machine."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for path, method in (("moto-api/reset", "POST"), ("bucket", "PUT")):  # servers of a process share what they hold
        urlopen(Request(f"http://{host}:{port}/{path}", method=method)).close()
    environment |= {
        "BUCKET": "s3://bucket/run",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    yield
    server.stop()


def start(run_dir, kind, uri, environment):
    output = run_dir.parent / "output"
    with output.open("ab") as file:
        command = [sys.executable, str(ROOT / "tests" / "trackers" / "_run.py"), str(run_dir), kind, *uri]
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=run_dir.parent
        ), output


def killed_run(run_dir, kind, environment, *uri, meanwhile=None):
    """Runs to the end, with kills at random moments; returns how many of them hit."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    hits = 0
    for number in range(KILLS):
        process, output = start(run_dir, kind, uri, environment)
        at, before = rng.randint(1, 3), len(re.findall(r"^epoch ", output.read_text(), re.MULTILINE))
        until(
            lambda process=process, output=output, many=before + at: (
                process.poll() is not None or len(re.findall(r"^epoch ", output.read_text(), re.MULTILINE)) >= many
            )
        )
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        hits += process.wait(PATIENCE) == -signal.SIGKILL
        if "BUCKET" in environment:  # the machine vanishes
            shutil.rmtree(run_dir, ignore_errors=True)
        if meanwhile is not None:
            meanwhile(number)
    for _ in range(2):  # the second one finds a complete run, and has nothing to send
        process, output = start(run_dir, kind, uri, environment)
        assert process.wait(PATIENCE) == 0, output.read_text()
        assert output.read_text().rstrip().endswith("done")
    return hits


def expected(run_dir):
    """All that was logged: step, name and value."""
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    found = [(r["step"], n, v) for r in rows for n, v in r.items() if n not in ("step", "epoch")]
    assert len(found) > 100
    return [*found, TEST]


def check(points, run_dir, *, once):
    """Compares what a tracker holds with what was logged.

    The learning rate is logged twice at the last step of an epoch, with the values of the step and with those of the
    epoch. A tracker that is read back may hold it once.
    """
    counts, wanted = collections.Counter(points), collections.Counter(expected(run_dir))
    assert set(counts) == set(wanted)
    again = {point: count for point, count in counts.items() if count > wanted[point]}
    print(f"{len(wanted)} values, {len(again)} of them too often")
    assert not (once and again), again


WHERE = pytest.mark.parametrize("where", ["folder", "bucket"])  # with a bucket, the folder is removed after each kill


@WHERE
def test_wandb_offline(tmp_path, environment, request, where):
    pytest.importorskip("wandb")
    if where == "bucket":
        request.getfixturevalue("bucket")
    run_dir = tmp_path / "run"
    assert killed_run(run_dir, "wandb", environment) > 0
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    (key,) = {folder.name.partition("-run-")[2].partition("-")[2] for folder in folders}
    assert len(folders) > 1, "a folder for each process"
    files = [path for folder in folders for path in folder.glob(f"run-{key}.wandb")]
    rows = [row for path in files for row in logged_rows(path)]
    points = [(row["_step"], n, v) for row in rows for n, v in row.items() if not n.startswith("_")]
    check(points, run_dir, once=False)


def mlflow_points(uri):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.name"].endswith("mlflow " + uri)
    assert json.loads(run.data.tags["jaxcb.data"])["rows"] == 64
    return [(p.step, n, p.value) for n in run.data.metrics for p in client.get_metric_history(run.info.run_id, n)]


@pytest.mark.parametrize(("store", "where"), [("database", "folder"), ("files", "folder"), ("database", "bucket")])
def test_mlflow_with_a_local_store(tmp_path, environment, monkeypatch, request, store, where):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    if where == "bucket":
        request.getfixturevalue("bucket")
    if store == "files":  # MLflow asks for this, because it no longer recommends them
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        environment |= {"MLFLOW_ALLOW_FILE_STORE": "true"}
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if store == "database" else (tmp_path / "mlruns").as_uri()
    assert killed_run(tmp_path / "run", "mlflow", environment, uri) > 0
    check(mlflow_points(uri), tmp_path / "run", once=True)


def test_mlflow_with_its_server_which_is_down_for_a_while(tmp_path, environment):
    pytest.importorskip("flask", reason="the server needs the whole mlflow package")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    uri, servers, output = f"http://127.0.0.1:{port}", [], tmp_path / "server.out"

    def serve(number=1):
        if number != 1:
            return
        store = ["--backend-store-uri", f"sqlite:///{tmp_path / 's.db'}", "--artifacts-destination", str(tmp_path)]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
        with output.open("wb") as file:
            servers.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True))
        until(lambda: is_up(f"{uri}/health") or has_failed())
        assert not has_failed(), output.read_text()

    def has_failed():
        return servers[0].poll() is not None or "Traceback" in output.read_text()

    def is_up(url):
        try:
            return urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        # it is down at the start, and comes up before the third process
        assert killed_run(tmp_path / "run", "mlflow", environment, uri, meanwhile=serve) > 0
        check(mlflow_points(uri), tmp_path / "run", once=True)
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(PATIENCE)


@WHERE
def test_trackio(tmp_path, environment, request, where):
    pytest.importorskip("trackio")
    if where == "bucket":
        request.getfixturevalue("bucket")
    assert killed_run(tmp_path / "run", "trackio", environment) > 0
    program = (
        "import json, sys, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "(run,) = trackio.Api().runs('digits')\n"
        "assert run.name.startswith('first-'), run.name\n"
        "assert run.config['jaxcb']['data']['rows'] == 64, run.config\n"
        "print(json.dumps(S.get_logs('digits', run.name, run_id=run.id)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    rows = json.loads(answer.stdout.splitlines()[-1])
    points = [(r["step"], n, v) for r in rows for n, v in r.items() if n not in ("step", "timestamp")]
    check(points, tmp_path / "run", once=True)
