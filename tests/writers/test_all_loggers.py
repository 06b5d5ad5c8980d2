"""All loggers at once in one run: each has the same values, whatever happens to the others."""

import http.server
import json
import threading
import urllib.parse
import warnings

import numpy as np
import pytest
from _patience import PATIENCE
from loop._runs import fit

import jaxcb as jc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they and their dependencies think of this Python is not ours
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install jaxcb[wandb]")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install jaxcb[mlflow]")


@pytest.fixture
def posted():
    """The records that a server on this machine is sent."""
    records = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            records.append(json.loads(urllib.parse.parse_qs(body)["data"][0]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", records
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_all_loggers_at_once(executor, tmp_path, monkeypatch, posted):
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONSOLE": "off",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    root, got = posted
    logged = {}
    monkeypatch.setattr(wandb.Run, "log", lambda self, values, step: logged.update({step: values}))
    uri = (tmp_path / "mlruns").as_uri()
    told = {}
    try:
        result = fit(
            executor,
            epochs=None,
            steps=13,
            eval_every=3,
            run_dir=tmp_path / "run",
            callbacks=[
                jc.CSVLogger("log.csv"),
                jc.callbacks.JSONLogger("log.jsonl"),
                jc.callbacks.LogTo(lambda step, values: told.update({step: values})),
                jc.RemoteMonitor(root, timeout=PATIENCE),
                jc.callbacks.WandbLogger("all"),
                jc.callbacks.MLflowLogger("all", uri),
                jc.EarlyStopping(patience=50),
            ],
        )
    finally:
        wandb.teardown()
    history = result.history
    expected = {
        int(step): {n: history[n][row] for n in history if history.reported(n)[row]}
        for row, step in enumerate(history.step)
    }
    assert list(expected) == [3, 5, 6, 9, 10, 12, 13]

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("all").experiment_id])
    stored = {step: {} for step in expected}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            stored[point.step][name] = point.value
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    header, *cells = [line.split(",") for line in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    rows = [{n: float(c) for n, c in zip(header, row, strict=True) if c != "NA"} for row in cells]
    for records in (lines, rows, got):
        assert [r["step"] for r in records] == list(expected)
    by_step = [
        {int(r["step"]): {n: v for n, v in r.items() if n not in ("epoch", "step")} for r in part}
        for part in (lines, rows, got)
    ]
    for values in (told, logged, stored, *by_step):
        assert {s: {n: np.float32(v) for n, v in row.items()} for s, row in values.items()} == expected
