"""One HTTP/1.1 request under way: its body goes out by `write`, its answer comes to a sink.

Push style, because a token must cost a few plain calls: no task, no future and no queue per chunk.
It knows the order of things (connecting, sending, answering, over), its one timer, and whether the
request may be sent again; `http_connection` moves the bytes and `http_client` finds a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from wai_protocol.errors import Fault, LocalProtocolError, TransportError, WaiError
from wai_protocol.http1 import LAST_CHUNK, ResponseHead, chunk
from wai_protocol.surface import Headers

RESEND_BYTES: Final = 64 * 1024
"""How much of a request's body is kept to send it again when a kept-alive connection turns out to
be dead: a long chat history fits; a larger upload has shown that its connection lives."""


class ResponseSink(Protocol):
    """Where an answer goes. Exactly one of `on_end` and `on_error` comes last, unless closed."""

    def on_headers(self, status: int, headers: Headers) -> None:
        """The head of the final response; names are lower-case."""

    def on_data(self, data: bytes) -> None:
        """The payload of everything that arrived in one read; never empty."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_error(self, error: WaiError) -> None:
        """The answer can't be had, or broke off. Nothing is sent or received any more."""


class Timeouts(msgspec.Struct, frozen=True):
    """How long what may take, in seconds."""

    connect_s: float = 10.0  # with the TLS handshake; a box on the same LAN answers in ms
    first_byte_s: float = 600.0  # from the last byte sent: a queue and a long prefill lie in it
    between_s: float = 300.0  # between reads; llama-server sends a comment each 30 s of prefill
    idle_s: float = 4.0  # a kept-alive connection; llama-server and uvicorn close theirs at 5 s
    resend_s: float = 1.0  # from the last byte sent: the way there and back, on a slow network


class ConnectionOfRequest(Protocol):
    """What a request asks of the connection that carries it (`http_connection.HttpConnection`)."""

    @property
    def write_paused(self) -> bool:
        """Whether more than the high-water mark waits for the socket."""

    def carry(self, request: ClientRequest, /) -> None:
        """Take `request` on; its bytes follow by `write`."""

    def drop_request(self) -> None:
        """Forget the request: it is over."""

    def write(self, data: bytes, /) -> None:
        """Send bytes at the end of this loop turn."""

    def set_reading(self, *, paused: bool) -> None:
        """Stop taking bytes from the socket, or go on."""

    def arm(self, deadline: float, /) -> None:
        """See to it that `ClientRequest.handle_timeout` is called then at the latest."""

    def abort(self) -> None:
        """Close the socket at once."""


class ClientRequest:
    """A request and the connection that carries it. Made by `HttpClient.request`.

    `accept`: it asks for a WebSocket, and this is what the answer must say (`websocket`); its body
    is then what both ends send each other, unframed, for as long as they like.
    """

    __slots__ = (
        "_answered",
        "_body_left",
        "_connection",
        "_drained",
        "_loop",
        "_over",
        "_reconnect",
        "_resend",
        "_resend_bytes",
        "_sent",
        "_timeouts",
        "accept",
        "connecting",
        "deadline",
        "method",
        "on_writable",
        "reading_paused",
        "reused",
        "sink",
    )

    def __init__(
        self,
        method: str,
        head: bytes,
        sink: ResponseSink,
        body_length: int | None,
        timeouts: Timeouts,
        reconnect: Callable[[ClientRequest], None],
        accept: bytes = b"",
    ) -> None:
        self.method = method
        self.accept = accept
        self.sink = sink
        self.on_writable: Callable[[], None] | None = None
        """Called when `write` has returned False and the socket has taken what waited."""
        self.connecting: asyncio.Task[None] | None = None
        self.reused = False
        self.reading_paused = False
        self._reconnect = reconnect
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._connection: ConnectionOfRequest | None = None
        self._body_left = body_length
        self._resend: list[bytes] | None = [head]
        self._resend_bytes = 0
        self._sent = False
        self._answered = False
        self._over = False
        self._drained: asyncio.Future[None] | None = None
        self.deadline = 0.0
        """By when, by the loop's clock, something must come or leave, once it has a connection."""

    # -- the request, as its owner drives it

    @property
    def over(self) -> bool:
        """Whether the exchange has ended, failed or been closed."""
        return self._over

    @property
    def fully_sent(self) -> bool:
        """Whether `end` was called."""
        return self._sent

    def write(self, data: bytes) -> bool:
        """Send body bytes. False: wait for `drain` or `on_writable` before more.

        Once the exchange is over (an early answer), what is written is dropped. Raises
        `LocalProtocolError` on more bytes than the announced length.
        """
        if self._over or not data:
            return True
        if self._sent:
            raise LocalProtocolError("the request's body has already ended")
        if self.accept:
            self.touch()  # who only listens may be silent
        elif self._body_left is None:
            data = chunk(data)
        elif len(data) > self._body_left:
            raise LocalProtocolError("the request's body is longer than announced")
        else:
            self._body_left -= len(data)
        self._send(data)
        return self.writable

    @property
    def writable(self) -> bool:
        """Whether `write` may go on."""
        if self._over:
            return True
        if self._connection is None:
            return self._resend_bytes < RESEND_BYTES
        return not self._connection.write_paused

    async def drain(self) -> None:
        """Wait until `write` may go on. One waiter at a time; returns when the exchange is over."""
        if not self.writable:
            self._drained = self._loop.create_future()
            await self._drained

    def end(self) -> None:
        """End the body. Raises `LocalProtocolError` when it is shorter than announced."""
        if self._over or self._sent:
            return
        if self._body_left:
            raise LocalProtocolError("the request's body is shorter than announced")
        if self._body_left is None and not self.accept:
            self._send(LAST_CHUNK)
        self._sent = True

    def close(self) -> None:
        """Give the exchange up: the socket is closed at once, nothing more comes. Idempotent.

        A closed socket is what frees a llama-server slot; there is no softer way in HTTP/1.1.
        """
        if self._over:
            return
        connection = self._finish()
        if connection is not None:
            connection.abort()

    def pause_reading(self) -> None:
        """Take no more from the socket until `resume_reading`. The read timeout rests."""
        self.reading_paused = True
        if self._connection is not None:
            self._connection.set_reading(paused=True)

    def resume_reading(self) -> None:
        """Go on reading."""
        self.reading_paused = False
        if self._connection is not None:
            self.touch()
            self._connection.set_reading(paused=False)

    # -- what the connection and the client tell it

    def attach(self, connection: ConnectionOfRequest, *, reused: bool) -> None:
        """A connection is there: send what waited."""
        self.connecting = None
        self.reused = reused
        self._connection = connection
        connection.carry(self)
        if self.reading_paused:
            connection.set_reading(paused=True)
        waiting = self._resend or []
        for data in waiting:
            connection.write(data)
        if not reused:
            self._resend = None
        self.deadline = self._loop.time() + self._timeouts.first_byte_s
        connection.arm(self.deadline)
        if not connection.write_paused:
            self.writing_resumed()

    def head_received(self, head: ResponseHead) -> None:
        """The answer has begun."""
        self._answered = True
        self._resend = None
        self.deadline = self._loop.time() + self._timeouts.between_s
        if self._connection is not None:
            self._connection.arm(self.deadline)
        self.sink.on_headers(head.status, head.headers)

    def touch(self) -> None:
        """Something arrived (or, on a WebSocket, was sent): the time between reads starts anew."""
        if self._answered:
            self.deadline = self._loop.time() + self._timeouts.between_s

    def answer_ended(self) -> None:
        """The answer is complete."""
        self._finish()
        self.sink.on_end()

    def connection_lost(self, error: WaiError, *, answered: bool) -> None:
        """The connection is gone, or what came over it is not HTTP. `answered`: bytes had come."""
        if self._over:
            return
        if self.reused and not answered and self._resend is not None and self._just_sent:
            self.reused = False
            self._connection = None
            self._reconnect(self)
            return
        self.fail(error)

    def fail(self, error: WaiError) -> None:
        """End the exchange with `error`; the connection, if any, is of no more use."""
        if self._over:
            return
        connection = self._finish()
        if connection is not None:
            connection.abort()
        self.sink.on_error(error)

    def writing_resumed(self) -> None:
        """The socket has taken what waited."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.on_writable is not None and not self._over:
            self.on_writable()

    def handle_timeout(self, now: float) -> None:
        """Fail if `deadline` is over at `now` (the loop's clock). Else ask again at `deadline`."""
        if self.reading_paused:  # a slow reader downstream is not the upstream's fault
            self.touch()
        if now < self.deadline:
            return
        limit = self._timeouts.between_s if self._answered else self._timeouts.first_byte_s
        stage = "went silent" if self._answered else "did not answer"
        self.fail(TransportError(f"the upstream {stage} for {limit:g} s", Fault.UPSTREAM_TIMEOUT))

    # -- inside

    def _send(self, data: bytes) -> None:
        if self._resend is not None:
            self._resend.append(data)
            self._resend_bytes += len(data)
        if self._connection is None:
            return
        self._connection.write(data)
        if not self._answered:
            self.deadline = self._loop.time() + self._timeouts.first_byte_s
        if self._resend_bytes > RESEND_BYTES:
            self._resend = None

    @property
    def _just_sent(self) -> bool:
        """Whether the server may have closed before it got the request. One that closes later has
        worked on it: sent again, it would be done, and paid for, twice."""
        sent_at = self.deadline - self._timeouts.first_byte_s
        return self._loop.time() - sent_at <= self._timeouts.resend_s

    def _finish(self) -> ConnectionOfRequest | None:
        """Become over; returns the connection, which no longer knows us."""
        self._over = True
        self._resend = None
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop_request()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self.on_writable = None
        return connection
