"""An `Exchange` in memory: the request's body is given beforehand, the response is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers
from wai_relay.http.exchange import Exchange, Request

CALLER_KEY = b"wai_sk_test"


def make_request(
    method: str = "POST",
    path: str = "/v1/chat/completions",
    *,
    headers: Headers | None = None,
    query: str = "",
    content_length: int | None = None,
) -> Request:
    """Return a request's head; without `headers` it has a valid key."""
    if headers is None:
        headers = [(b"authorization", b"Bearer " + CALLER_KEY)]
    return Request(
        method=method,
        path=path,
        query=query,
        headers=headers,
        http_version="1.1",
        scheme="https",
        authority="relay.test",
        peer="127.0.0.1",
        request_id="req_test",
        content_length=content_length,
    )


class FakeExchange(Exchange):
    """Checks that a handler keeps the contract: start once, then write, then end or abort.

    `pieces` is the body as it arrives; with `stays_open` its end does not come by itself.
    `websocket_key`: it asks for a WebSocket.
    """

    def __init__(
        self,
        request: Request,
        pieces: Iterable[bytes] = (),
        *,
        stays_open: bool = False,
        websocket_key: bytes = b"",
    ) -> None:
        self.websocket_key = websocket_key
        self.request = request
        self.status = 0
        self.headers: Headers = []
        self.written: list[bytes] = []
        self.ended = False
        self.aborted = False
        self._pieces = list(pieces)
        self._stays_open = stays_open
        self._paused = False
        self._bytes_in = 0
        self.changed: Callable[[], None] | None = None

    async def read(self) -> bytes:
        if self._pieces:
            data = self._pieces.pop(0)
            self._bytes_in += len(data)
            return data
        if self._stays_open:
            await anyio.sleep_forever()
        return b""

    def start(self, status: int, headers: Headers) -> None:
        if self.status:
            raise LocalProtocolError("started twice")
        self.status = status
        self.headers = headers

    def switch(self, headers: Headers) -> None:
        if not self.websocket_key:
            raise LocalProtocolError("the request asks for no WebSocket")
        self.start(101, headers)

    def write(self, data: bytes) -> None:
        if not self.status or self.over:
            raise LocalProtocolError("write outside a response")
        self.written.append(data)

    def end(self) -> None:
        if not self.status or self.over:
            raise LocalProtocolError("end outside a response")
        self.ended = True

    def abort(self) -> None:
        if not self.ended:
            self.aborted = True

    @property
    def started(self) -> bool:
        return bool(self.status)

    @property
    def over(self) -> bool:
        return self.ended or self.aborted

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """The caller stops reading."""
        self._paused = True

    def resume(self) -> None:
        """The caller reads again."""
        self._paused = False
        if self.on_resume is not None:
            self.on_resume()

    @property
    def bytes_in(self) -> int:
        return self._bytes_in

    @property
    def bytes_out(self) -> int:
        return len(self.body)

    @property
    def body(self) -> bytes:
        """Everything sent so far."""
        return b"".join(self.written)

    def header(self, name: bytes) -> bytes | None:
        """The response's first header of that name."""
        return next((value for key, value in self.headers if key == name), None)
