"""One HTTP/2 stream as an `Exchange`: queues its response until the caller's window has room.

What waits in a stream holds up that stream alone. Framing, windows and the fair order are the
connection's (`h2`); a stream only says that it has something (`ready`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from hpack import NeverIndexedHeaderTuple

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers

from .body import RequestBody
from .edge import WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES, Edge
from .exchange import Request
from .heads import is_clean
from .response import CountedExchange


class ConnectionOfStream(Protocol):
    """What a stream asks of the connection that it arrived on (`h2.H2Connection`)."""

    @property
    def edge(self) -> Edge:
        """What all connections share."""

    def ready(self, exchange: H2Exchange, /) -> None:
        """`exchange` has something to send: a head, body bytes or the end."""

    def consumed(self, exchange: H2Exchange, size: int, /) -> None:
        """The handler took `size` body bytes: open the caller's window by as many."""

    def send_continue(self, exchange: H2Exchange, /) -> None:
        """Ask the caller for the body that it holds back (`Expect: 100-continue`)."""

    def abort_stream(self, exchange: H2Exchange, /) -> None:
        """Reset the stream of `exchange`."""


class H2Exchange(CountedExchange):
    """A request on an HTTP/2 stream, and its answer."""

    __slots__ = (
        "_connection",
        "_ended",
        "_queue",
        "_queued",
        "blocked_since",
        "continue_due",
        "head",
        "malformed",
        "progress_at",
        "stream_id",
        "task",
        "was_paused",
    )

    def __init__(self, connection: ConnectionOfStream, stream_id: int, request: Request) -> None:
        super().__init__(request, RequestBody())
        self.stream_id = stream_id
        self.continue_due = False
        self.head: Headers | None = None  # to be sent
        self.malformed = False  # its stream ends in an error, after the answer that says why
        self.progress_at = 0.0  # when bytes of the body last came or were read, by the loop's clock
        self.blocked_since: float | None = None  # when response bytes met a window that was shut
        self.was_paused = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._queue: list[bytes | memoryview] = []
        self._queued = 0
        self._ended = False

    # -- the handler's side
    async def read(self) -> bytes:
        """The next piece of the request's body; taking it opens the caller's window."""
        if self.continue_due and not self.body.waiting_bytes:
            self.continue_due = False
            self._connection.send_continue(self)
        data = await self.body.read()
        if data:
            self._connection.consumed(self, len(data))
        return data

    def start(self, status: int, headers: Headers) -> None:
        """Send the head, together with what else this turn writes."""
        if self._finished:
            return  # the caller went away; the handler is about to hear of it
        fields: Headers = [(b":status", b"%d" % status)]
        for field in self._fields_to_send(status, headers):
            if not is_clean(field[1], 0):
                raise LocalProtocolError("a response header contains a control character")
            fields.append(field)
        fields.append((b"date", self._connection.edge.date()))
        # Random: in HPACK's table it would only push out the fields that do come again.
        request_id = self.request.request_id.encode("ascii")
        fields.append(NeverIndexedHeaderTuple(b"x-request-id", request_id))
        self._started = True
        self.head = fields
        self._connection.ready(self)

    def write(self, data: bytes) -> None:
        """Queue body bytes; they leave at the end of this turn if the window has room."""
        if self._finished or not data:
            return
        if not self._started or self._ended:
            raise LocalProtocolError("write outside of the response")
        size = len(data)
        self._bytes_out += size
        if self._bodiless:
            return
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                self.abort()
                return
        self._queue.append(data)
        self._queued += size
        self._connection.ready(self)

    def _end(self) -> None:
        self._ended = True
        self._connection.ready(self)

    def abort(self) -> None:
        """Reset the stream: INTERNAL_ERROR."""
        if not self._finished and not self._ended:
            self._connection.abort_stream(self)

    # -- the connection's side
    @property
    def lacks_body(self) -> bool:
        """Whether less of the body has come than its Content-Length says."""
        body = self.body
        return body.read_bytes + body.waiting_bytes < (self.request.content_length or 0)

    @property
    def queued_bytes(self) -> int:
        """Response bytes that wait for window."""
        return self._queued

    @property
    def to_end(self) -> bool:
        """Whether END_STREAM goes with the last byte that waits."""
        return self._ended

    def take(self, size: int) -> bytes:
        """At most `size` of the bytes that wait, in order."""
        queue = self._queue
        data = queue[0] if len(queue) == 1 else b"".join(queue)
        if len(data) <= size:
            queue.clear()
            self._queued = 0
            return bytes(data)
        view = memoryview(
            data
        )  # a large write is cut into frames without copying its rest each time
        self._queue = [view[size:]]
        self._queued -= size
        return bytes(view[:size])

    def note_pressure(self) -> None:
        """Tell the handler if its caller took enough of what made `paused` true."""
        if self._queued > WRITE_HIGH_WATER_BYTES:
            self.was_paused = True
        elif self.was_paused and self._queued <= WRITE_LOW_WATER_BYTES:
            self.was_paused = False
            if self.on_resume is not None:
                self.on_resume()

    def cut(self) -> None:
        """The stream is over: what is still written leads nowhere."""
        self._finished = True
        self._queue.clear()
        self._queued = 0
        self.blocked_since = None
        self.head = None

    # -- what both read
    @property
    def finished(self) -> bool:
        """Whether the response ended, cleanly or not; the last of it may still wait for window."""
        return self._finished or self._ended

    @property
    def paused(self) -> bool:
        """Whether the caller is slow. Stays true until little waits, as `on_resume` tells."""
        if self._queued > WRITE_HIGH_WATER_BYTES:
            self.was_paused = True
        return self.was_paused
