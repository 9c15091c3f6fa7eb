"""HTTP/1.1 callers: heads in, bodies streamed both ways, one request at a time per connection.

Heads go through `heads.parse_head` alone: reading them a second time, with h11, costs 35 µs and
could only disagree with it. Chunked bodies go through h11, their head included. Responses are
framed in `h1_response`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from wai_protocol.errors import Fault, RequestError

from .body import RequestBody
from .connection import CallerConnection
from .edge import (
    BODY_STALL_S,
    HEAD_DEADLINE_S,
    IDLE_TIMEOUT_S,
    LINGER_S,
    READ_AHEAD_BYTES,
    Edge,
    TunnelFactory,
    body_stalled,
    refusal,
)
from .exchange import Request
from .h1_response import H1Exchange, response_head
from .heads import MAX_HEAD_BYTES, Head, check_partial, parse_head

TUNNEL_PATH: Final = "/wai"
TUNNEL_PROTOCOL: Final = b"wai/1"
# An unread rest of a body up to this size is swallowed to keep the connection; more costs the
# caller's uplink more time than the new connection that it saves.
MAX_SWALLOWED_BYTES: Final = 64 * 1024

_HEAD_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: wai/1\r\n\r\n"
)


class H1Connection(CallerConnection):
    """One HTTP/1.1 (or 1.0) connection. Pipelined requests wait and are answered in order."""

    __slots__ = (
        "_body",
        "_body_left",
        "_buffer",
        "_chunks",
        "_exchange",
        "_fresh",
        "_reading_paused",
        "_scanned",
        "_task",
        "_waiting_since",
        "continue_due",
        "lingering",
    )

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self.continue_due = False
        self.lingering = False  # the last answer is sent; what still comes is dropped
        self._buffer = bytearray()  # of heads and pipelined requests
        self._fresh = True  # no request came yet
        self._scanned = 0  # bytes of `_buffer` in which no head ends
        self._exchange: H1Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._body: RequestBody | None = None  # of the current request; None between requests
        self._body_left = 0
        self._chunks: h11.Connection | None = None
        self._reading_paused = False
        self._waiting_since = 0.0  # for what comes next: a head's end, a request, a body's bytes

    # -- reading
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a first request."""
        super().connection_made(transport)
        self._waiting_since = self._loop.time()
        self.arm(self._waiting_since + HEAD_DEADLINE_S)

    def data_received(self, data: bytes) -> None:
        """Bytes from the caller: of a head, of a body, or of a request that has to wait."""
        if self.lingering or self.closing:
            return
        body = self._body
        if body is not None and not body.complete:
            self._waiting_since = self._loop.time()
            self._receive_body(body, data)
            return
        if not self._buffer and self._exchange is None:
            self._waiting_since = self._loop.time()
        self._buffer += data
        if self._exchange is None:
            self._next_request()
        elif len(self._buffer) > READ_AHEAD_BYTES:
            self._pause_reading()

    def _next_request(self) -> None:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112 section 2.2: old callers send one after a body
            del buffer[:2]
            self._scanned = 0
        end = buffer.find(_HEAD_END, max(0, self._scanned - 3))
        try:
            if end < 0:
                check_partial(buffer, self._scanned)
                self._scanned = len(buffer)
                if buffer:
                    self.arm(self._waiting_since + HEAD_DEADLINE_S)
                return
            if end > MAX_HEAD_BYTES:
                check_partial(buffer, end)
            raw = bytes(buffer[:end])
            rest = bytes(buffer[end + len(_HEAD_END) :])
            buffer.clear()
            self._scanned = 0
            head = parse_head(raw)
        except RequestError as error:
            self._refuse(error)
            return
        if self.edge.tunnel_factory is not None and _asks_for_tunnel(head):
            self._hand_over(self.edge.tunnel_factory, rest)
        else:
            self._begin(head, raw, rest)

    def _begin(self, head: Head, raw: bytes, rest: bytes) -> None:
        self._fresh = False
        body = RequestBody()
        exchange = H1Exchange(self, self._request(head), body, keep_alive=head.keep_alive)
        self._exchange, self._body = exchange, body
        self.continue_due = head.expects_continue
        if head.chunked:
            self._chunks = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
            self._receive_body(body, raw + _HEAD_END + rest)
        elif head.content_length:
            self._body_left = head.content_length
            if rest:
                self._receive_body(body, rest)
        else:
            body.complete = True
            self._buffer += rest
        if not body.complete:
            self._waiting_since = self._loop.time()
            self.arm(self._waiting_since + BODY_STALL_S)
        self._task = self.edge.serve(exchange)

    def _request(self, head: Head) -> Request:
        return Request(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            http_version=head.http_version,
            scheme=head.scheme or self.scheme,
            authority=head.authority,
            peer=self.peer,
            request_id=self.edge.new_request_id(),
            content_length=None if head.chunked else head.content_length or 0,
        )

    def _receive_body(self, body: RequestBody, data: bytes) -> None:
        if body.failed:
            return
        if self._chunks is not None:
            self._receive_chunks(self._chunks, body, data)
        elif len(data) < self._body_left:
            self._body_left -= len(data)
            self._feed(body, data)
        else:
            left, self._body_left = self._body_left, 0
            self._feed(body, data[:left])
            body.finish()
            self._buffer += data[left:]
        if body.complete:
            self.continue_due = False
            if self._exchange is None:
                self._ready()
        elif body.waiting_bytes > READ_AHEAD_BYTES:
            self._pause_reading()

    def _receive_chunks(self, chunks: h11.Connection, body: RequestBody, data: bytes) -> None:
        try:
            chunks.receive_data(data)
            while True:
                event = chunks.next_event()
                if isinstance(event, h11.Data):
                    self._feed(body, bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._chunks = None
                    body.finish()
                    self._buffer += chunks.trailing_data[0]
                    return
                elif not isinstance(event, h11.Request):  # NEED_DATA
                    return
        except h11.RemoteProtocolError as error:
            what = str(error).partition(": bytearray")[0]  # h11 goes on with its own buffer
            body.fail(RequestError(f"the chunked request body is broken: {what}"))
            if self._exchange is None:
                self.linger()

    def _feed(self, body: RequestBody, data: bytes) -> None:
        if self._exchange is None:  # it is answered already; this is what is left of its body
            return
        self.continue_due = False  # the caller did not wait for it
        body.feed(data)

    # -- what the exchange says
    def body_wanted(self) -> None:
        """The handler reads: a caller that asked for leave to send its body gets it."""
        if self.continue_due:
            self.continue_due = False
            self._waiting_since = self._loop.time()
            self.send(_CONTINUE)

    def body_taken(self) -> None:
        """The handler took what waited: read on."""
        if self._reading_paused and self._body is not None and not self._body.complete:
            self._resume_reading()

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection once this one is answered."""
        body = self._body
        if self.edge.draining or body is None or body.failed:
            return False
        if body.complete:
            return True
        return (
            not self.continue_due
            and self._chunks is None
            and self._body_left <= MAX_SWALLOWED_BYTES
        )

    def response_ended(self, *, keep: bool) -> None:
        """The response is complete; `keep`: nothing in it said that the connection closes."""
        self.flush()
        body, self._exchange, self._task = self._body, None, None
        assert body is not None
        body.discard()
        self._waiting_since = self._loop.time()
        if not keep:
            if body.complete:
                self.close()
            else:
                self.linger()
        elif body.complete:
            self._ready()
        else:  # a small rest of it is still to come, and dropped
            self._resume_reading()
            self.arm(self._waiting_since + BODY_STALL_S)

    def _ready(self) -> None:
        """The last request is over on both sides: take the next."""
        self._body = None
        self._waiting_since = self._loop.time()
        self._resume_reading()
        if self.edge.draining and not self._buffer:
            self.close()
            return
        self.arm(self._waiting_since + IDLE_TIMEOUT_S)
        if self._buffer:
            self._next_request()

    def linger(self) -> None:
        """Drop what the caller still sends, for a bounded time, then close."""
        self.flush()
        self.lingering = True
        self._buffer.clear()
        self._resume_reading()
        self._waiting_since = self._loop.time()
        self.arm(self._waiting_since + LINGER_S)

    def _refuse(self, error: RequestError) -> None:
        """Answer a head that is no request. Nothing after it can be trusted to begin one."""
        request_id = self.edge.new_request_id()
        self.edge.refused(request_id, error)
        status, headers, body = refusal(error)
        lines = [b"%b: %b\r\n" % field for field in headers]
        head = response_head(self.edge, status, lines, request_id)
        self.send(head + b"connection: close\r\n\r\n" + body)
        self.linger()

    def _hand_over(self, tunnel_factory: TunnelFactory, rest: bytes) -> None:
        """From here on it is a node's session, behind a proxy that ended TLS."""
        self.send(_SWITCHING)
        self.flush()
        self._resume_reading()
        self.leave()
        tunnel = tunnel_factory()
        self.transport.set_protocol(tunnel)
        tunnel.connection_made(self.transport)
        if rest:
            tunnel.data_received(rest)

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.lost:
            self._reading_paused = False
            self._waiting_since = self._loop.time()
            self.transport.resume_reading()
            if self._body is not None and not self._body.complete:
                self.arm(self._waiting_since + BODY_STALL_S)

    # -- time
    def next_deadline(self) -> float | None:
        """A lingering end, a head, the next request, or the body: whichever is waited for."""
        if self.lingering:
            return self._waiting_since + LINGER_S
        if self._body is None:
            timeout_s = HEAD_DEADLINE_S if self._buffer or self._fresh else IDLE_TIMEOUT_S
            return self._waiting_since + timeout_s
        if self._body.complete or self._body.failed or self._reading_paused or self.continue_due:
            return None
        return self._waiting_since + BODY_STALL_S

    def overdue(self, now: float) -> None:
        """The caller took too long with what `next_deadline` was about."""
        if self.lingering or self._body is None:
            if self._buffer and not self.lingering:
                self._refuse(
                    RequestError(
                        f"the request head was not complete after {HEAD_DEADLINE_S:g} s",
                        Fault.TIMED_OUT,
                    )
                )
            else:
                self.close()
        elif self._exchange is None:
            self.close()
        else:
            self._body.fail(body_stalled())

    # -- the end
    def writable_again(self) -> None:
        """Tell the handler that its caller took what waited."""
        if self._exchange is not None and self._exchange.on_resume is not None:
            self._exchange.on_resume()

    def caller_gone(self) -> None:
        """Cancel the handler whose response nobody waits for any more."""
        task, exchange = self._task, self._exchange
        self._task = self._exchange = None
        if exchange is not None:
            exchange.cut()
        if task is not None and not task.done():
            self.edge.counters.callers_gone += 1
            task.cancel()

    def drain(self) -> None:
        """The response that runs says `Connection: close`, if its head is not sent yet."""

    def close_if_idle(self) -> None:
        """Close between requests; a response that runs closes when it ends."""
        if self._exchange is None and not self._buffer:
            self.close()


def _asks_for_tunnel(head: Head) -> bool:
    return (
        head.upgrade == TUNNEL_PROTOCOL
        and head.path == TUNNEL_PATH
        and head.method == "GET"
        and not head.chunked
        and not head.content_length
    )
