"""Callbacks are told of each complete checkpoint, on the run's thread, while it is there."""

import base64
import http.server
import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc


class Told(jc.HostCallback):
    def __init__(self):
        self.saved, self.steps = [], []

    def on_checkpoint_saved(self, checkpoint):
        assert threading.current_thread() is threading.main_thread()
        assert (checkpoint.path / ("manifest.json" if checkpoint.kind == "run" else "jaxcb.json")).is_file()
        self.saved.append(checkpoint)
        self.steps.append(self.run.step)


def kinds(told, kind):
    return [(s.step, s.epoch, s.owner) for s in told.saved if s.kind == kind]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("async_", [False, True])
def test_each_export_and_each_checkpoint_of_the_run_is_told(executor, async_, tmp_path):
    told, own = Told(), []
    save = jc.ModelCheckpoint("exports/{step}", async_=async_, max_to_keep=1, on_saved=own.append)
    fit(executor, epochs=3, run_dir=tmp_path, callbacks=[save, told], steps_per_execution=5)
    assert kinds(told, "export") == [(5, 0, "ModelCheckpoint"), (10, 1, "ModelCheckpoint"), (15, 2, "ModelCheckpoint")]
    assert own == [s for s in told.saved if s.kind == "export"]
    run = kinds(told, "run")
    assert run[0] == (0, 0, "")
    assert run[-1][0] == 15
    assert {s.path.parent for s in told.saved if s.kind == "run"} == {tmp_path / "checkpoints"}


def test_a_run_without_a_directory_has_exports(tmp_path):
    told = Told()
    save = jc.ModelCheckpoint(tmp_path / "{step}", async_=True, save_at_end=True)
    fit(epochs=1, callbacks=[save, told])
    assert [s.step for s in told.saved] == [5, 5]


def test_a_resumed_run_is_told_of_its_own(tmp_path):
    fit(epochs=1, run_dir=tmp_path, callbacks=[Told()])
    told = Told()
    fit(epochs=2, run_dir=tmp_path, resume=True, callbacks=[told])
    assert told.saved[-1].step == 10
    assert 0 not in [s.step for s in told.saved]


def test_a_hand_written_loop_is_told(tmp_path):
    told = Told()
    callbacks = jc.chain(jc.ModelCheckpoint("{step}", save_weights_only=True), told)
    state = jc.TrainState.create(params={"w": jnp.ones(2)})
    with jc.Recorder(tmp_path, callbacks=callbacks, verbose=0) as recorder:
        _, actions = callbacks.on_epoch_end(callbacks.init(), jc.Metrics({"loss": 0.5}))
        recorder.perform(actions, state, step=3)
        assert [s.step for s in told.saved] == [3]


def test_an_error_names_callback_and_checkpoint(tmp_path):
    class Fails(jc.HostCallback):
        def on_checkpoint_saved(self, checkpoint):
            raise ValueError("no room")

    with pytest.raises(ValueError, match="no room") as caught:
        fit(epochs=1, run_dir=tmp_path, callbacks=[Fails()])
    assert any("This happened in Fails, for the checkpoint " in note for note in caught.value.__notes__)


def test_another_signature_is_refused():
    with pytest.raises(jc.errors.CallbackError, match=r"expected \(self, checkpoint\)"):

        class Wrong(jc.HostCallback):
            def on_checkpoint_saved(self):
                pass

    with pytest.raises(TypeError, match="on_saved must be a function"):
        jc.ModelCheckpoint("a", on_saved=3)


class Hub:
    """As much of the Hub's protocol as an upload of small files needs."""

    def __init__(self):
        self.commits, self.repos, self.status = [], [], 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = outer.answer(self.path, body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, path, body):
        if self.status != 200:
            return self.status, {"error": "down"}
        if path == "/api/repos/create":
            self.repos.append(json.loads(body)["name"])
            return 200, {"url": f"{self.root}/me/digits"}
        if path.endswith("/preupload/main"):
            files = [f["path"] for f in json.loads(body)["files"]]
            return 200, {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        assert path.split("?")[0].endswith("/commit/main"), path
        lines = [json.loads(line) for line in body.splitlines()]
        title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        self.commits.append((title, files))
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.root}/me/digits/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install jaxcb[hub]")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = Hub()
    yield hub
    hub.close()


def test_the_hub_holds_what_was_saved(hub, tmp_path):
    upload = jc.callbacks.HubUpload("me/digits", endpoint=hub.root, path_in_repo="weights")
    save = jc.ModelCheckpoint("{epoch:02d}", save_weights_only=True)
    result = fit(epochs=2, run_dir=tmp_path / "run", callbacks=[save, upload])
    assert [title for title, _ in hub.commits] == ["Step 5, epoch 1", "Step 10, epoch 2"]
    for name, content in hub.commits[-1][1].items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for part, loaded in jc.load(tmp_path / "copy" / "weights" / "02", what="params").items():
        np.testing.assert_array_equal(loaded, result.params[part])


def test_a_hub_that_is_down_is_told_and_the_run_continues(hub, tmp_path, monkeypatch):
    hub.status = 400
    upload = jc.callbacks.HubUpload("me/digits", endpoint=hub.root)
    save = jc.ModelCheckpoint(str(tmp_path / "a"), save_weights_only=True)
    with pytest.warns(RuntimeWarning, match="HubUpload could not upload .*a to me/digits"):
        result = fit(epochs=1, callbacks=[save, upload])
    assert int(result.state.step) == 5
