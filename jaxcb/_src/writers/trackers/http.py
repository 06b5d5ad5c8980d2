"""`LogHTTP` actions: records sent to a web service by HTTP POST."""

import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import Request, urlopen

from jaxcb._src.utils.errors import check_number, check_text, shown
from jaxcb._src.writers.scalars import json_numbers
from jaxcb._src.writers.trackers.base import RefusedError, TrackedRecord, Tracker
from jaxcb._src.writers.trackers.writer import TrackerWriter

_COME_AGAIN = (408, 425, 429)  # the 4xx status codes that ask for a retry


class PostWriter(TrackerWriter):
    """Posts each record. The service cannot be read, so a record comes at least once."""

    def tracker(self, action: Any) -> Tracker:
        return HTTPTracker(action.url, action.field, action.headers, action.timeout)

    def capacity(self, action: Any) -> int:
        return action.queue_size


@dataclass(frozen=True)
class HTTPTracker(Tracker):
    """Posts each record to an address.

    Args:
        url: the address.
        field: the form field that holds the JSON text; None sends that text as the body.
        headers: HTTP headers, pairs of name and value.
        timeout: seconds before a request fails; also how long the end of the run waits.
    """

    url: str
    field: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0

    batch = 1  # so that each record is acknowledged

    def __post_init__(self) -> None:
        check_text("HTTPTracker", "url", self.url)
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"HTTPTracker: url must begin with http:// or https://, got {self.url!r}.")
        if self.field is not None:
            check_text("HTTPTracker", "field", self.field)
        pairs = self.headers if isinstance(self.headers, tuple | list) else None
        if pairs is None or not all(isinstance(p, tuple) and [type(x) for x in p] == [str, str] for p in pairs):
            raise TypeError(
                f"HTTPTracker: headers must be pairs of texts, such as (('Authorization', 'Bearer ...'),), got "
                f"{shown(self.headers)}."
            )
        if not check_number("HTTPTracker", "timeout", self.timeout) > 0:
            raise ValueError(f"HTTPTracker: timeout must be above 0 seconds, got {self.timeout!r}.")

    @property
    def close_seconds(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How long the end of a run waits for the server."""
        return self.timeout

    @property
    def service(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The server's name, without a password."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def send(self, records: list[TrackedRecord]) -> None:
        for record in records:
            place = {"epoch": record.epoch, "step": record.step}
            post(self._request(place | json_numbers(record.values) | place), self.timeout)

    def _request(self, payload: dict[str, Any]) -> Request:
        text = json.dumps(payload, allow_nan=False)
        if self.field is None:
            body, kind = text, "application/json"
        else:
            body, kind = urlencode({self.field: text}), "application/x-www-form-urlencoded"
        url, login = _without_login(self.url)
        return Request(url, body.encode(), {"Content-Type": kind} | login | dict(self.headers), method="POST")


def post(request: Request, timeout: float) -> None:
    """Sends a request.

    Raises:
        RefusedError: if the server says that the request is wrong.
        OSError: if it cannot be reached, or asks to come again.
    """
    try:
        with urlopen(request, timeout=timeout) as answer:
            answer.read(1)
    except HTTPError as error:
        error.close()
        if 400 <= error.code < 500 and error.code not in _COME_AGAIN:
            raise RefusedError(f"{error.code} {error.reason}") from None
        raise


def _without_login(url: str) -> tuple[str, dict[str, str]]:
    """Converts `name:password@` in a URL, which urllib does not support, to an Authorization header."""
    parts = urlsplit(url)
    login, found, host = parts.netloc.rpartition("@")
    if not found:
        return url, {}
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {encoded}"}
