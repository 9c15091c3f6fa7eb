"""One HTTP/1.1 exchange, and the framing of its response.

Sending a token is the hot path: h11 takes 2.5 µs and makes two objects for each chunk, a format
string takes 0.2 µs. The connection joins the bytes of one turn of the event loop into one write.
"""

from __future__ import annotations

import http
from typing import Final, Protocol

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers
from wai_protocol.websocket import ACCEPT_FIELD, accept_token

from .body import RequestBody
from .edge import Edge
from .exchange import Request
from .heads import is_clean
from .response import CountedExchange

# Load tools count a response without its standard phrase as failed.
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in http.HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}


def response_head(edge: Edge, status: int, lines: list[bytes], request_id: str) -> bytes:
    """Encode a response's head without framing fields and the empty line.

    Raises `LocalProtocolError` for a control character in a field: values come from upstreams,
    which are not trusted, and a CRLF in one could begin another response.
    """
    status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status
    head = b"%b%bdate: %b\r\nx-request-id: %b\r\n" % (
        status_line,
        b"".join(lines),
        edge.date(),
        request_id.encode("ascii"),
    )
    if not is_clean(head, len(lines) + 3):
        raise LocalProtocolError("a response header contains a control character")
    return head


class ConnectionOfExchange(Protocol):
    """What an exchange asks of the connection that it arrived on (`h1.H1Connection`)."""

    @property
    def edge(self) -> Edge:
        """What all connections share."""

    @property
    def write_paused(self) -> bool:
        """Whether more than the high-water mark waits to be sent."""

    @property
    def reusable(self) -> bool:
        """Whether another request may follow once this one is answered."""

    def send(self, data: bytes) -> None:
        """Queue bytes; they leave at the end of this loop turn."""

    def abort(self) -> None:
        """Reset the connection."""

    def body_wanted(self) -> None:
        """The handler waits for the request's body."""

    def body_taken(self) -> None:
        """The handler took the body bytes that waited."""

    def response_ended(self, *, keep: bool) -> None:
        """The response is complete; `keep`: its head did not announce a close."""

    def switched(self, body: RequestBody) -> None:
        """The request was a WebSocket's: all that comes from now on belongs to `body`."""


class H1Exchange(CountedExchange):
    """A request on an HTTP/1.1 connection, and its response."""

    __slots__ = ("_chunked", "_connection", "_keep", "websocket_key")

    def __init__(
        self,
        connection: ConnectionOfExchange,
        request: Request,
        body: RequestBody,
        *,
        keep_alive: bool,
        websocket_key: bytes = b"",
    ) -> None:
        super().__init__(request, body)
        self.websocket_key = websocket_key
        self._connection = connection
        self._keep = keep_alive
        self._chunked = False

    async def read(self) -> bytes:
        """Return the next piece of the request's body. See `Exchange.read`."""
        body = self.body
        if not body.complete:
            self._connection.body_wanted()
        data = await body.read()
        self._connection.body_taken()
        return data

    def start(self, status: int, headers: Headers) -> None:
        """Send the head. Without a length, chunk the body or close after it (1.0)."""
        if self._finished:
            return  # the caller has disconnected, and the handler will be cancelled
        connection, request = self._connection, self.request
        lines = [b"%b: %b\r\n" % field for field in self._fields_to_send(status, headers)]
        head = response_head(connection.edge, status, lines, request.request_id)
        if self._left is None and not self._bodiless:
            if request.http_version == "1.1":
                self._chunked = True
                head += b"transfer-encoding: chunked\r\n"
            else:
                self._keep = False
        self._keep = self._keep and connection.reusable
        self._started = True
        connection.send(head + (b"\r\n" if self._keep else b"connection: close\r\n\r\n"))

    def switch(self, headers: Headers) -> None:
        """Send a 101. See `Exchange.switch`."""
        if self._finished:
            return
        if not self.websocket_key or self._started:
            raise LocalProtocolError("the request can't become a WebSocket now")
        lines = [b"%b: %b\r\n" % field for field in headers]
        head = response_head(self._connection.edge, 101, lines, self.request.request_id)
        accept = accept_token(self.websocket_key)
        self._started, self._keep = True, False
        self._connection.send(
            b"%bupgrade: websocket\r\nconnection: Upgrade\r\n%b: %b\r\n\r\n"
            % (head, ACCEPT_FIELD, accept)
        )
        self._connection.switched(self.body)

    def write(self, data: bytes) -> None:
        """Send body bytes at the end of this loop turn."""
        if self._finished or not data:
            return
        if not self._started:
            raise LocalProtocolError("write before start")
        size = len(data)
        self._bytes_out += size
        if self._bodiless:
            return
        if self._chunked:
            self._connection.send(b"%x\r\n%b\r\n" % (size, data))
            return
        if self._left is not None:
            self._left -= size
            if self._left < 0:  # beyond Content-Length: the caller would read a second response
                self.abort()
                return
        self._connection.send(data)

    def _end(self) -> None:
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self._finished = True
        self._connection.response_ended(keep=self._keep)

    def abort(self) -> None:
        """Reset the connection."""
        if not self._finished:
            self._finished = True
            self._connection.edge.counters.cut += 1
            self._connection.abort()

    def cut(self) -> None:
        """Ignore further writes: the connection is lost."""
        self._finished = True

    @property
    def finished(self) -> bool:
        """Whether the response has ended, normally or aborted."""
        return self._finished

    @property
    def paused(self) -> bool:
        """Whether the caller is slow. See `Exchange.paused`."""
        return self._connection.write_paused
