"""The real client of S3 and a network that fails: a proxy before the server answers in its place, or not at all."""

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from storage.buckets._faulty import ADDRESS, Machine, contents, files_in
from storage.buckets.test_faults import STEPS, expected, in_the_bucket, run_to

from jaxcb._src.storage.buckets.bucket import Bucket, ConflictError, connect

REFUSALS = {  # none of them is performed
    "throttled": (503, "SlowDown"),
    "too many": (429, "TooManyRequests"),
    "conflict": (409, "ConditionalRequestConflict"),
    "expired": (403, "ExpiredToken"),
    "broken": (500, "InternalError"),
}
FAULTS = [*REFUSALS, "lost", "no answer", "half an answer"]


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to a server.

    Attributes:
        faults: what becomes of the next requests; those after it are passed on.
        met: the faults that have happened, with the method of each request.
    """

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults, self.met = urlsplit(url).netloc, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()

    def next_fault(self, method: str) -> str:
        with self._lock:
            fault = self.faults.pop(0) if self.faults else ""
            if fault:
                self.met.append((method, fault))
            return fault

    def handle_error(self, request, client_address) -> None:
        """A client that leaves early is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy: Any = self.server
        fault = proxy.next_fault(self.command)
        if fault == "lost":
            self.close_connection = True
            return
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            self.answer(status, [], f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
            return
        with contextlib.closing(http.client.HTTPConnection(proxy.target)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            data = response.read()
        if fault == "no answer":
            self.close_connection = True
            return
        self.answer(response.status, response.getheaders(), data, cut=fault == "half an answer")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def answer(self, status, headers, data, *, cut=False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[Proxy]:
    """A proxy that the client uses; the server's bucket is made."""
    s3.make_bucket(ADDRESS.bucket)
    proxy = Proxy(s3.url)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    yield proxy
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def through(proxy: Proxy, monkeypatch):
    """Returns obstore's own client of S3 that sends its requests to the proxy."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return connect(ADDRESS)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(faults=[""] * 17 + ["no answer"])
@given(faults=st.lists(st.sampled_from(["", "", *FAULTS]), min_size=12, max_size=18))
def test_a_run_through_a_network_that_fails_ends_alike(proxy, monkeypatch, tmp_path_factory, faults):
    folder, direct = tmp_path_factory.mktemp("network"), connect(ADDRESS)
    direct.delete(list(contents(direct)))
    states = expected(folder / "whole")
    machine = Machine(through(proxy, monkeypatch), folder / "a", patience=300.0).open()
    proxy.faults, proxy.met = list(faults), []  # what is denied before the first save is an error at once
    run_to(machine, STEPS)
    assert not proxy.faults
    machine.close()
    assert len(proxy.met) == len([fault for fault in faults if fault])
    assert in_the_bucket(direct, folder / "fresh") == states[-1] == files_in(folder / "a")


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_a_conditional_put_counts_once_whatever_its_answer(proxy, monkeypatch, fault):
    direct = connect(ADDRESS)
    direct.delete(list(contents(direct)))
    bucket = Bucket(ADDRESS, store=through(proxy, monkeypatch), sleep=lambda seconds: None)
    bucket.put("other", b"")  # then a denial may be one of expired credentials
    proxy.faults = [fault]
    first = bucket.put_if("a", b"1", None)
    proxy.faults = [fault]
    second = bucket.put_if("a", b"2", first)
    proxy.faults = [fault]
    with pytest.raises(ConflictError):
        bucket.put_if("a", b"3", first)
    with pytest.raises(ConflictError):
        bucket.put_if("a", b"3", None)
    found = bucket.get("a")
    assert found is not None
    assert (found.data, found.version) == (b"2", second)
