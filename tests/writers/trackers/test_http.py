"""`RemoteMonitor` against real servers on this machine: one that works, one that is down, one that hangs."""

import http.server
import json
import socket
import threading
import urllib.parse

import numpy as np
import pytest
from _patience import PATIENCE, until
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.writers.trackers import http as http_tracker


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Server:
    """Answers each POST with `status`, and keeps what came."""

    def __init__(self, port=0):
        self.requests, self.status, self.hang = [], 200, None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if outer.hang is not None:
                    outer.hang.wait()
                    return
                status = outer.status  # as it is before the request is seen by who changes it then
                outer.requests.append((self.path, dict(self.headers), body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self):
        if self.hang is not None:
            self.hang.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def held():
    """A socket whose port refuses connections, and is given to nobody else."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


def monitor(root, *given, **more):
    """One whose messages arrive, however slow the machine is."""
    return jc.RemoteMonitor(root, *given, **{"timeout": PATIENCE} | more)


def records(server):
    """What a server got in forms, field by field."""
    return [json.loads(urllib.parse.parse_qs(body)["data"][0]) for _, _, body in server.requests]


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_form_an_epoch_as_keras_sends_it(executor, server):
    result = fit(executor, epochs=3, callbacks=[monitor(server.root)])
    assert [path for path, _, _ in server.requests] == ["/publish/epoch/end/"] * 3
    assert {headers["Content-Type"] for _, headers, _ in server.requests} == {"application/x-www-form-urlencoded"}
    got = records(server)
    assert [(r["epoch"], r["step"]) for r in got] == [(0, 5), (1, 10), (2, 15)]
    for row, record in enumerate(got):
        assert set(record) == {"epoch", "step", *result.history}
        assert np.float32(record["val_loss"]) == result.history["val_loss"][row]


def test_the_body_is_json_where_that_is_asked_for(server):
    own = monitor(server.root, "/in", send_as_json=True, headers={"X-Run": "seven"}, every=4)
    fit(epochs=1, callbacks=[own], validation_data=None)
    assert [path for path, _, _ in server.requests] == ["/in", "/in"]
    headers = server.requests[0][1]
    assert (headers["Content-Type"], headers["X-Run"]) == ("application/json", "seven")
    bodies = [json.loads(body) for _, _, body in server.requests]
    assert [(b["step"], "batch_loss" in b, "loss" in b) for b in bodies] == [(4, True, False), (5, False, True)]


def test_a_server_that_is_down_is_told_once_and_loses_nothing_of_the_run(tmp_path, held):
    path = tmp_path / "log.jsonl"
    root = f"http://127.0.0.1:{held.getsockname()[1]}"
    with pytest.warns(RuntimeWarning) as caught:
        result = fit(
            epochs=4,
            steps_per_execution=5,
            callbacks=[jc.RemoteMonitor(root), jc.callbacks.JSONLogger(path), jc.EarlyStopping(patience=50)],
        )
    texts = [str(w.message) for w in caught]
    assert ["could not be reached" in t for t in texts] == [True, False]
    assert "127.0.0.1" in texts[0]
    assert "could not be reached by RemoteMonitor" in texts[0]
    assert "did not receive 4 of 4 records of RemoteMonitor" in texts[1]
    assert int(result.state.step) == 20
    assert len(path.read_text().splitlines()) == 4


def test_a_server_that_comes_up_later_gets_all_records(monkeypatch, held):
    send, failed, started, port = http_tracker.post, [], [], held.getsockname()[1]

    def noted_send(*given):
        try:
            send(*given)
        except OSError as error:
            failed.append(error)
            raise

    def start(run):
        if run.epoch == 2:
            until(lambda: failed)
            held.close()
            started.append(Server(port))

    monkeypatch.setattr(http_tracker, "post", noted_send)
    watch = jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Call(start)))
    with pytest.warns(RuntimeWarning, match="could not be reached") as caught:
        fit(
            epochs=4,
            steps_per_execution=5,
            validation_data=None,
            callbacks=[monitor(f"http://127.0.0.1:{port}"), watch],
        )
    (server,) = started
    server.close()
    assert [record["step"] for record in records(server)] == [5, 10, 15, 20]
    assert len(caught) == 1


def test_a_server_that_hangs_does_not_hold_the_run(server):
    server.hang = threading.Event()
    with pytest.warns(RuntimeWarning) as caught:
        result = fit(epochs=3, callbacks=[jc.RemoteMonitor(server.root, timeout=0.2)])
    assert "did not receive 3 of 3 records" in str(caught[-1].message)
    assert int(result.state.step) == 15


def test_a_server_that_refuses_is_not_asked_again(server):
    server.status = 404
    with pytest.warns(RuntimeWarning) as caught:
        fit(epochs=2, callbacks=[monitor(server.root)], validation_data=None)
    assert "404 Not Found" in str(caught[0].message)
    assert len(server.requests) == 2


def test_an_error_of_the_server_is_tried_again(server):
    server.status = 503

    def mend(run):
        until(lambda: server.requests)
        server.status = 200

    watch = jc.make_callback(on_train_end=lambda s, m: (s, jc.actions.Call(mend)))
    with pytest.warns(RuntimeWarning, match="503") as caught:
        fit(epochs=1, callbacks=[monitor(server.root), watch], validation_data=None)
    assert len(caught) == 1
    assert len(server.requests) >= 2
    assert {record["step"] for record in records(server)} == {5}


def test_a_login_in_the_address_is_sent_and_not_told(server):
    root = server.root.replace("http://", "http://me:se%2Fcret@")
    fit(epochs=1, validation_data=None, callbacks=[monitor(root)])
    (path, headers, _) = server.requests[0]
    assert (path, headers["Authorization"]) == ("/publish/epoch/end/", "Basic bWU6c2UvY3JldA==")
    server.status = 401
    with pytest.warns(RuntimeWarning) as caught:
        fit(epochs=1, validation_data=None, callbacks=[monitor(root)])
    assert not any("cret" in str(w.message) for w in caught)
