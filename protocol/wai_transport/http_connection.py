"""One HTTP/1.1 connection as an asyncio protocol: it carries one request at a time, never two.

It never half-closes (llama-server takes that for a disconnect) and never pipelines. The hot path is
`data_received` with a body under way: one call into the framing, one into the sink.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from wai_protocol.errors import Fault, RemoteProtocolError, TransportError, WaiError
from wai_protocol.http1 import BodyFraming, ResponseHeadReader

from .deadline_timer import DeadlineTimer
from .http_request import ClientRequest
from .tls import decrypt

WRITE_HIGH_WATER_BYTES: Final = 64 * 1024
"""What may wait for the socket before `write` says stop: four of our largest frames."""

JOINED_BYTES: Final = 8 * 1024
"""Up to here pieces are joined before they are written; copying more costs as much as the gathering
write that saves it."""

LAST_READ_BYTES: Final = 64 * 1024
MAX_LAST_READS: Final = 16
"""Of a connection that broke: an answer of 1 MiB, more than any that refuses a request."""


class HttpConnection(DeadlineTimer, asyncio.Protocol):
    """A connection to an origin, idle or carrying one request.

    `on_idle` gets it back when an exchange left it usable; `on_lost` hears when it is gone.
    """

    def __init__(
        self,
        on_idle: Callable[[HttpConnection], None],
        on_lost: Callable[[HttpConnection], None],
    ) -> None:
        super().__init__()
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.write_paused = False
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._request: ClientRequest | None = None
        self._head: ResponseHeadReader | None = None
        self._body: BodyFraming | None = None
        self._keep_alive = False
        self._answered = False
        self._refused = False
        self._idle_until: float | None = None  # by the loop's clock, while it is kept
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._tls: ssl.SSLObject | None = None
        self._left_fd = -1
        """Under TLS: the socket once more, since uvloop closes its own before `connection_lost`."""
        self._early: bytes | None = b""  # what came before the first request; None after it

    # -- for the request

    def carry(self, request: ClientRequest) -> None:
        """Take `request` on; its bytes follow by `write`."""
        self._request = request
        self._idle_until = None
        self._head = ResponseHeadReader(request.method, request.accept)
        self._body = None
        self._answered = False
        self._refused = False
        early, self._early = self._early, None
        if early:
            self._loop.call_soon(self._take_early, early)

    def drop_request(self) -> None:
        """Forget the request: it is over."""
        self._request = None
        self._body = None
        self._head = None

    def write(self, data: bytes) -> None:
        """Send bytes at the end of this loop turn, joined with what else is written in it: a head
        with its body, or all that one read of the tunnel brought. Each write is a system call."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > WRITE_HIGH_WATER_BYTES:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        out = self._out
        if out and not self.transport.is_closing():
            if self._out_bytes > JOINED_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        self._out_bytes = 0

    def set_reading(self, *, paused: bool) -> None:
        """Stop taking bytes from the socket, or go on."""
        if self.transport.is_closing():
            return
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def keep_until(self, deadline: float) -> None:
        """Be idle, and close at `deadline` (the loop's clock) unless it carries a request then."""
        self._idle_until = deadline
        self.arm(deadline)

    def handle_timeout(self, now: float) -> None:
        """See `DeadlineTimer`: the deadline of the request, or of being kept without one."""
        request = self._request
        if request is not None:
            request.handle_timeout(now)
            if self._request is request:
                self.arm(request.deadline)
        elif self._idle_until is not None:
            if now >= self._idle_until:
                self.transport.abort()
            else:
                self.arm(self._idle_until)

    def abort(self) -> None:
        """Close the socket at once; what waits to be sent is dropped."""
        self.transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not self.transport.is_closing()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection, with TLS where asked for, stands."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, ssl.SSLObject):
            with suppress(OSError):  # without a free descriptor, a refusal may get lost
                self._left_fd = os.dup(transport.get_extra_info("socket").fileno())
                self._tls = tls

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer. Between two requests they are a breach: the connection is closed."""
        body, request = self._body, self._request
        if request is None:
            self._receive_unasked(data)
            return
        try:
            if body is None:
                self._receive_head(request, data)
                return
            payload = body.receive_data(data)
        except RemoteProtocolError as error:
            request.fail(error)
            return
        request.touch()
        if payload:
            request.sink.on_data(payload)
        if body.ended and not request.over:
            self._complete(request, body)

    def eof_received(self) -> None:
        """The peer sends no more; the transport then closes, and `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: the end of a body that needs no other, else an error."""
        self.disarm()
        self._on_lost(self)
        try:
            if exc is not None and self._request is not None:
                self._read_what_is_left()
        finally:
            if self._tls is not None:
                os.close(self._left_fd)
                self._tls = None
        request, body = self._request, self._body
        if request is None:
            return
        error: WaiError
        if body is None or (exc is not None and not self._refused):
            stage = "while answering" if self._answered else "before it answered"
            error = TransportError(
                f"the upstream closed the connection {stage}", Fault.UPSTREAM_BROKE
            )
        else:
            try:
                body.receive_eof()
            except RemoteProtocolError as broken:
                error = broken
            else:
                request.answer_ended()
                return
        request.connection_lost(error, answered=self._answered)

    def _read_what_is_left(self) -> None:
        """Take what the peer sent before the connection broke.

        A server that refuses a body (413, 401) answers and closes without reading it, which resets
        the connection: our next write fails, while its answer waits in the socket, unread.
        """
        tls = self._tls
        if tls is not None:
            descriptor = self._left_fd
        else:
            descriptor = self.transport.get_extra_info("socket").fileno()
        for _ in range(MAX_LAST_READS):
            try:
                data = os.read(descriptor, LAST_READ_BYTES)
            except OSError:  # nothing is left, or the system has thrown it away
                return
            if not data or self._request is None:
                return
            if tls is None:
                self.data_received(data)
            elif plain := decrypt(tls, data):
                self.data_received(plain)

    def pause_writing(self) -> None:
        """The socket is slower than the body."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The socket has taken what waited."""
        self.write_paused = False
        if self._request is not None:
            self._request.writing_resumed()

    # -- inside

    def _receive_unasked(self, data: bytes) -> None:
        """A server may answer before it has read anything; our request is only a turn away."""
        if self._early is None:
            self.transport.abort()
            return
        self._early += data
        self.transport.pause_reading()

    def _take_early(self, early: bytes) -> None:
        self.data_received(early)
        request = self._request
        if not self.transport.is_closing() and (request is None or not request.reading_paused):
            self.transport.resume_reading()

    def _receive_head(self, request: ClientRequest, data: bytes) -> None:
        assert self._head is not None
        self._answered = True
        head = self._head.receive_data(data)
        if head is None:
            return
        rest = self._head.rest
        body = self._body = head.body
        self._keep_alive = head.keep_alive
        self._refused = head.status >= 400
        payload = body.receive_data(rest) if rest else b""
        request.head_received(head)
        if payload and not request.over:
            request.sink.on_data(payload)
        if body.ended and not request.over:
            self._complete(request, body)

    def _complete(self, request: ClientRequest, body: BodyFraming) -> None:
        """The answer is whole: keep the connection if both sides are done with it cleanly."""
        keep = (
            self._keep_alive
            and request.fully_sent
            and not body.surplus
            and not self.transport.is_closing()
            and not self._out
            and self.transport.get_write_buffer_size() == 0
        )
        paused = request.reading_paused
        self._request = None
        if keep:
            if paused:
                self.transport.resume_reading()
            self._on_idle(self)
        else:
            self.transport.abort()
        request.answer_ended()
