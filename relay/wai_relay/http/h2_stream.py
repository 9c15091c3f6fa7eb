"""One HTTP/2 stream as an `Exchange`: it queues its response until the caller's window has room.

A full queue delays only its own stream. The connection (`h2`) does the framing, counts the windows
and keeps the fair order; a stream tells it by `ready` that it has something to send.
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
    """A request on an HTTP/2 stream, and its response."""

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
        self.head: Headers | None = None  # the head that waits to be sent
        self.malformed = False  # reset the stream with an error after the response that says why
        self.progress_at = 0.0  # when bytes of the body last arrived or were read (loop's clock)
        self.blocked_since: float | None = None  # since when response bytes wait for window
        self.was_paused = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._queue: list[bytes | memoryview] = []
        self._queued = 0
        self._ended = False

    # -- called by the handler
    async def read(self) -> bytes:
        """Return the next piece of the request's body, and open the caller's window by its size."""
        if self.continue_due and not self.body.waiting_bytes:
            self.continue_due = False
            self._connection.send_continue(self)
        data = await self.body.read()
        if data:
            self._connection.consumed(self, len(data))
        return data

    def start(self, status: int, headers: Headers) -> None:
        """Send the head at the end of this turn of the event loop."""
        if self._finished:
            return  # the caller has disconnected, and the handler will be cancelled
        fields: Headers = [(b":status", b"%d" % status)]
        for field in self._fields_to_send(status, headers):
            if not is_clean(field[1], 0):
                raise LocalProtocolError("a response header contains a control character")
            fields.append(field)
        fields.append((b"date", self._connection.edge.date()))
        # Not indexed: a random value in HPACK's table would evict fields that are sent repeatedly.
        request_id = self.request.request_id.encode("ascii")
        fields.append(NeverIndexedHeaderTuple(b"x-request-id", request_id))
        self._started = True
        self.head = fields
        self._connection.ready(self)

    def write(self, data: bytes) -> None:
        """Queue body bytes; they are sent at the end of this turn if the window has room."""
        if self._finished or not data:
            return
        if not self._started or self._ended:
            raise LocalProtocolError("write before start or after end")
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
        """Reset the stream with INTERNAL_ERROR."""
        if not self._finished and not self._ended:
            self._connection.abort_stream(self)

    # -- called by the connection
    @property
    def lacks_body(self) -> bool:
        """Whether less of the body has arrived than its Content-Length says."""
        body = self.body
        return body.read_bytes + body.waiting_bytes < (self.request.content_length or 0)

    @property
    def queued_bytes(self) -> int:
        """How many bytes of the response wait for window."""
        return self._queued

    @property
    def to_end(self) -> bool:
        """Whether the response ends with the queued bytes (END_STREAM)."""
        return self._ended

    def take(self, size: int) -> bytes:
        """Remove up to `size` bytes from the queue and return them."""
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
        """Update `paused`, and call `on_resume` if it has become False."""
        if self._queued > WRITE_HIGH_WATER_BYTES:
            self.was_paused = True
        elif self.was_paused and self._queued <= WRITE_LOW_WATER_BYTES:
            self.was_paused = False
            if self.on_resume is not None:
                self.on_resume()

    def cut(self) -> None:
        """Drop the queue and ignore further writes: the stream is over."""
        self._finished = True
        self._queue.clear()
        self._queued = 0
        self.blocked_since = None
        self.head = None

    # -- called by both
    @property
    def finished(self) -> bool:
        """Whether the response has ended, normally or aborted; some of it may still be queued."""
        return self._finished or self._ended

    @property
    def paused(self) -> bool:
        """Whether the caller is slow: above the high-water mark, until below the low-water one."""
        if self._queued > WRITE_HIGH_WATER_BYTES:
            self.was_paused = True
        return self.was_paused
