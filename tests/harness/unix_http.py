"""HTTP to a server at a unix socket, by the standard library alone."""

from __future__ import annotations

import http.client
import io
import json
import socket
import urllib.error
from email.message import Message
from typing import Any, Final

TIMEOUT_S: Final = 30.0


class UnixConnection(http.client.HTTPConnection):
    """A connection to the socket at `path`."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(url: str, path: str, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON answer of the server at `url` (unix:///…) to a POST, or a GET without a `body`.
    Raises `urllib.error.HTTPError` on an error status."""
    connection = UnixConnection(url.removeprefix("unix://"))
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body)
    try:
        connection.request("GET" if body is None else "POST", path, data, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status >= 400:
            raise urllib.error.HTTPError(
                url, response.status, response.reason, Message(), io.BytesIO(content)
            )
        answer: dict[str, Any] = json.loads(content)
        return answer
    finally:
        connection.close()
