"""`LogHTTP` actions: records sent to a web service."""

import base64
import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import Request, urlopen

from jaxcb._src.writers.base import Writer
from jaxcb._src.writers.queue import AsyncSender, RefusedError
from jaxcb._src.writers.scalars import fresh_scalars_of, json_numbers

_COME_AGAIN = (408, 425, 429)  # the 4xx status codes that ask for a retry


class PostWriter(Writer):
    """Posts each record from a background thread."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._outboxes: dict[str, tuple[AsyncSender, float]] = {}

    def prepare(self, action: Any) -> None:
        if action.owner not in self._outboxes:
            host = urlsplit(action.url).netloc.rpartition("@")[2]  # without a password
            outbox = AsyncSender(
                f"{action.owner} at {host}",
                lambda requests: _send(requests, action.timeout),
                self.context.warn,
                capacity=action.queue_size,
            )
            self._outboxes[action.owner] = (outbox, action.timeout)

    def write(self, record: Any) -> None:
        values = json_numbers(fresh_scalars_of(record.action))
        if values and not self.context.trial:
            place = {"epoch": record.epoch, "step": record.step}
            self._outboxes[record.action.owner][0].put(_request(record.action, place | values | place))

    def tick(self, status: Any) -> None:
        for outbox, _ in self._outboxes.values():
            outbox.check()

    def close(self) -> None:
        for outbox, timeout in self._outboxes.values():
            outbox.close(timeout)


def _request(action: Any, payload: dict[str, Any]) -> Request:
    text = json.dumps(payload, allow_nan=False)
    if action.field is None:
        body, kind = text, "application/json"
    else:
        body, kind = urlencode({action.field: text}), "application/x-www-form-urlencoded"
    url, login = _without_login(action.url)
    return Request(url, body.encode(), {"Content-Type": kind} | login | dict(action.headers), method="POST")


def _without_login(url: str) -> tuple[str, dict[str, str]]:
    """Converts `name:password@` in a URL, which urllib does not support, to an Authorization header."""
    parts = urlsplit(url)
    login, found, host = parts.netloc.rpartition("@")
    if not found:
        return url, {}
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {encoded}"}


def _send(requests: list[Request], timeout: float) -> None:
    for request in requests:
        try:
            with urlopen(request, timeout=timeout) as answer:
                answer.read(1)
        except HTTPError as error:
            error.close()
            if 400 <= error.code < 500 and error.code not in _COME_AGAIN:
                raise RefusedError(f"{error.code} {error.reason}") from None
            raise
