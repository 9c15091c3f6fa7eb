"""The interface between HTTP connections and the handlers of requests, for every HTTP version.

The edge (`h1`, `h2`) makes an `Exchange` for each request and runs the relay's handler with it in a
task of its own. The handler pulls the request's body (`read`), so that an upload goes no faster
than the handler reads. It pushes the response (`start`, `write`, `end`), so that a token costs
plain calls and no task switch. When the caller disconnects, the edge cancels the handler's task; a
handler cleans up in a `finally` block.

A handler must call `start` once, then `write` any number of times, then either `end` or `abort`. If
it returns or raises without that, the edge logs an error and aborts the response.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import msgspec

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers


class Request(msgspec.Struct):
    """A request's head, already checked by the edge.

    `path` is the raw path, not percent-decoded; `query` is what follows the `?`, "" if nothing
    does. Header names are lower-case. `content_length` is None if the body's length is not known
    beforehand. `peer` is the caller's IP address for the log. `request_id` is made by the edge
    ("req_…").
    """

    method: str
    path: str
    query: str
    headers: Headers
    http_version: str
    scheme: str
    authority: str
    peer: str
    request_id: str
    content_length: int | None
    index: dict[bytes, bytes] = {}
    """The first value of each header; made here."""

    def __post_init__(self) -> None:
        self.index = dict(reversed(self.headers))  # keeps the first value of a repeated header

    def header(self, name: bytes, default: bytes = b"") -> bytes:
        """Return the first value of the header `name` (lower-case), or `default`."""
        return self.index.get(name, default)


class Exchange(abc.ABC):
    """A request and the methods that answer it. Not thread-safe; belongs to one event loop."""

    request: Request
    added_headers: Sequence[tuple[bytes, bytes]] = ()
    """Fields that the edge adds to the response, whoever makes it (`cors`)."""

    # -- the request's body
    @abc.abstractmethod
    async def read(self) -> bytes:
        """Return the next piece of the request's body, b"" at its end and after it.

        When more than `edge.READ_AHEAD_BYTES` wait to be read, an HTTP/1.1 connection is not read
        further. An HTTP/2 stream has a window of `h2.STREAM_WINDOW_BYTES`, which is reopened as the
        body is read. Raises `RequestError` for invalid framing or a stalled caller.
        """

    @property
    def at_end(self) -> bool:
        """Whether all of the body was read for sure, so that `read` would return b"" at once."""
        return False

    # -- the response
    @abc.abstractmethod
    def start(self, status: int, headers: Headers) -> None:
        """Send the response's head.

        The edge adds Date, X-Request-Id and the framing headers. A `content-length` in `headers` is
        sent; without one, an HTTP/1.1 response is chunked.
        """

    websocket_key: bytes = b""
    """The `Sec-WebSocket-Key` of a request that asks for a WebSocket (RFC 6455); else b""."""

    def switch(self, headers: Headers) -> None:
        """Accept the WebSocket that the request asks for.

        From now on `read` returns the bytes of the caller's frames and `write` sends frames; `end`
        closes the connection. Raises `LocalProtocolError` if the request asks for none.
        """
        raise LocalProtocolError("the request asks for no WebSocket")

    @abc.abstractmethod
    def write(self, data: bytes) -> None:
        """Send body bytes at the end of this turn of the event loop. Never blocks."""

    @abc.abstractmethod
    def end(self) -> None:
        """End the response normally."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Abort the response so that the caller notices: reset the connection (HTTP/1.1) or stream.

        Idempotent. Does nothing after `end`.
        """

    @property
    @abc.abstractmethod
    def started(self) -> bool:
        """Whether the head has been sent."""

    # -- back-pressure of the response
    @property
    @abc.abstractmethod
    def paused(self) -> bool:
        """Whether more than `edge.WRITE_HIGH_WATER_BYTES` wait to be sent to a slow caller.

        `write` still accepts data; the handler should stop its source until `on_resume`.
        """

    on_resume: Callable[[], None] | None = None
    """Called when `paused` becomes False. Set by the handler."""

    @property
    @abc.abstractmethod
    def bytes_in(self) -> int:
        """Bytes of the request's body read so far."""

    @property
    @abc.abstractmethod
    def bytes_out(self) -> int:
        """Bytes of the response's body passed to `write` so far."""
