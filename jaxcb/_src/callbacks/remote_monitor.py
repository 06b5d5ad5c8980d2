"""`RemoteMonitor`: posts the metrics to a web service."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import LogHTTP
from jaxcb._src.utils.errors import check_bool, check_int, check_number, check_text
from jaxcb._src.utils.pytree import static


class RemoteMonitor(Reporter):
    """Posts the metrics of each epoch, and of each validation within an epoch, to a web service.

    A thread sends them, so the run never waits. If the server is down, there is one warning; waiting records are sent
    in order when it is up again. In a run with a `run_dir` they wait there, and a resumed run sends them. A record may
    arrive twice (if a response is lost); `step` identifies it. Metrics that are arrays are left out; non-finite numbers
    are sent as "NaN", "Infinity" and "-Infinity".

    Args:
        root: the server's address, http or https.
        path: appended to `root`.
        field: the form field that holds the JSON text: an object with `epoch` (from 0), `step` and the reported
            values.
        headers: further HTTP headers, a dict.
        send_as_json: whether the JSON text is the body itself, as application/json; `field` is then not used.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.
        timeout: seconds before a POST request fails; also the longest time that the end of the run waits for unsent
            records.
        queue_size: number of records that may wait in memory, in a run without a `run_dir`; when the queue is full, the
            oldest is dropped.

    Raises:
        TypeError: if the headers are not a dict of strings.
        ValueError: for an invalid address, or another number out of range.

    Example:
        >>> import jaxcb as jc
        >>> _, action = jc.RemoteMonitor().on_epoch_end((), jc.Metrics({"loss": 0.5}))
        >>> action.url
        'http://localhost:9000/publish/epoch/end/'

    Source: `keras.callbacks.RemoteMonitor`, which waits for the server, and does not send `step`.
    """

    root: str = static(default="http://localhost:9000")
    path: str = static(default="/publish/epoch/end/")
    field: str = static(default="data")
    headers: Any = static(default=None)
    send_as_json: bool = static(default=False)
    timeout: float = static(default=10.0, kw_only=True)
    queue_size: int = static(default=1000, kw_only=True)

    def __post_init__(self) -> None:
        _check_address(self.root, self.path)
        headers = {} if self.headers is None else self.headers
        if not isinstance(headers, Mapping) or not all(isinstance(x, str) for pair in headers.items() for x in pair):
            raise TypeError(f"RemoteMonitor: headers must be a dict of strings, got {self.headers!r}.")
        check_text("RemoteMonitor", "field", self.field)
        self._set("send_as_json", check_bool("RemoteMonitor", "send_as_json", self.send_as_json))
        timeout = check_number("RemoteMonitor", "timeout", self.timeout)
        if not timeout > 0:
            raise ValueError(f"RemoteMonitor: timeout must be above 0 seconds, got {self.timeout!r}.")
        self._set("headers", tuple(sorted(headers.items())))  # hashable, as static fields are
        self._set("timeout", timeout)
        self._set("queue_size", check_int("RemoteMonitor", "queue_size", self.queue_size, least=1))
        self._check_every()

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> LogHTTP:
        field = None if self.send_as_json else self.field
        return LogHTTP(
            values, fresh, self.root + self.path, field, self.headers, self.timeout, self.queue_size, when=when
        )


def _check_address(root: Any, path: Any) -> None:
    """Rejects invalid addresses, and paths that change the host, such as "@elsewhere"."""
    if not isinstance(root, str) or not isinstance(path, str):
        raise TypeError(f"RemoteMonitor: root and path must be strings, got {root!r} and {path!r}.")
    try:
        server, whole_url = urlsplit(root), urlsplit(root + path)
        sound = server.scheme in ("http", "https") and bool(server.hostname)
        same = (server.hostname, server.port) == (whole_url.hostname, whole_url.port)
    except ValueError:  # the port is not a number
        sound = same = False
    if not sound or not same:
        raise ValueError(
            f"RemoteMonitor: root + path must be an address on one server, such as 'http://localhost:9000' + "
            f"'/publish', got {root!r} + {path!r}."
        )
