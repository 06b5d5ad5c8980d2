"""A server with S3's protocol on this machine, for the tests of this folder."""

import logging
import urllib.request
from collections.abc import Iterator

import pytest

pytest.importorskip("obstore")
moto_server = pytest.importorskip("moto.server")


class S3:
    """The server.

    Attributes:
        url: its address.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"

    def make_bucket(self, name: str) -> None:
        """Makes a bucket of a name that no other test uses."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    s3 = S3()
    yield s3
    s3.stop()


@pytest.fixture
def s3(server, monkeypatch, tmp_path) -> S3:
    """The server, as runs of this process and its children find it, and a cache of its own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    return server
