"""An HTTP/1.1 connection of a caller: it serves one request at a time and streams bodies.

Heads are parsed by `heads.parse_head`, chunked bodies by the strict reader in `wai_protocol.http1`;
the tests compare both with h11. How long a body may be is its handler's to say, who reads it.
Responses are framed in `h1_response`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wai_protocol.errors import Fault, RemoteProtocolError, RequestError
from wai_protocol.http1 import ChunkedBody
from wai_protocol.websocket import KEY_FIELD, VERSION, VERSION_FIELD, is_key

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
    TunnelProtocol,
    body_stalled,
    refusal,
)
from .exchange import Request
from .h1_response import H1Exchange, response_head
from .heads import MAX_HEAD_BYTES, Head, KnownLines, check_partial, parse_head

TUNNEL_PATH: Final = "/wai"
TUNNEL_PROTOCOL: Final = b"wai/1"
# RFC 9112 section 2.2 asks a server to ignore at least one empty line before a request: some old
# clients send one after a body.
MAX_EMPTY_LINES: Final = 2
# An unread rest of a body up to this size is read and dropped, to keep the connection. To send more
# would take the caller longer than a new connection.
MAX_SWALLOWED_BYTES: Final = 64 * 1024

_EMPTY_LINE: Final = b"\r\n"
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
        "_empty_lines",
        "_exchange",
        "_fresh",
        "_known_lines",
        "_scanned",
        "_switched",
        "_task",
        "_waiting_since",
        "continue_due",
        "lingering",
    )

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self.continue_due = False
        self.lingering = False  # the last response is sent; further bytes are dropped
        self._buffer = bytearray()  # an incomplete head, and pipelined requests
        self._empty_lines = 0  # number of empty lines before the next request
        self._known_lines = KnownLines()
        self._fresh = True  # whether no request has arrived yet
        self._switched = False  # whether all that comes belongs to a WebSocket
        self._scanned = 0  # bytes of `_buffer` that were searched for the end of a head
        self._exchange: H1Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._body: RequestBody | None = None  # the current request's; None between requests
        self._body_left = 0
        self._chunks: ChunkedBody | None = None
        self._waiting_since = 0.0  # start of the current wait, for a request, a head or a body

    # -- reading
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._waiting_since = self._loop.time()
        self.arm(self._waiting_since + HEAD_DEADLINE_S)

    def data_received(self, data: bytes) -> None:
        """Process bytes of a head, of a body, or of a pipelined request."""
        if self.lingering or self.closing:
            return
        if self._queued:
            self._undecoded += data
            return
        body = self._body
        if body is not None and not body.complete:
            self._waiting_since = self._loop.time()
            self._receive_body(body, data)
            return
        had_begun = self._head_begun
        self._buffer += data
        if self._exchange is None:
            self._next_request(had_begun=had_begun)
        if self._exchange is not None and len(self._buffer) > READ_AHEAD_BYTES:
            self.pause_reading()

    @property
    def _head_begun(self) -> bool:
        """Whether the first bytes of a head have arrived; a single CR may be an empty line's."""
        return bool(self._buffer) and self._buffer != b"\r"

    def _next_request(self, *, had_begun: bool) -> None:
        """Parse the next head, if it is complete, and serve its request.

        `had_begun`: the head's first bytes came earlier, so that its deadline is running.
        """
        buffer = self._buffer
        try:
            if buffer.startswith(_EMPTY_LINE):
                self._skip_empty_lines()
            if not had_begun and self._head_begun:
                self._waiting_since = self._loop.time()
            end = buffer.find(_HEAD_END, max(0, self._scanned - 3))
            if end < 0:
                check_partial(buffer, self._scanned)
                self._scanned = len(buffer)
                if self._head_begun:
                    self.arm(self._waiting_since + HEAD_DEADLINE_S)
                return
            if end > MAX_HEAD_BYTES:
                check_partial(buffer, end)
            raw = bytes(buffer[:end])
            del buffer[: end + len(_HEAD_END)]
            self._scanned = 0
            head = parse_head(raw, self._known_lines)
        except RequestError as error:
            self.refuse(error)
            return
        tunnel_factory = self.edge.tunnel_factory
        if tunnel_factory is not None and not self._in_turns and _asks_for_tunnel(head, raw):
            self.hand_over(tunnel_factory, head, self._take(len(buffer)))
        else:
            self.begin(head)

    def _take(self, size: int) -> bytes:
        """Remove the first `size` bytes from the buffer and return them. Cheap for a bytearray."""
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._scanned = 0
        return taken

    def _skip_empty_lines(self) -> None:
        """Drop empty lines before a request, `MAX_EMPTY_LINES` at most. Deadlines do not change."""
        buffer = self._buffer
        while buffer.startswith(_EMPTY_LINE):
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise RequestError(
                    f"more than {MAX_EMPTY_LINES} empty lines came before the request line"
                )
            self._take(len(_EMPTY_LINE))

    def begin(self, head: Head) -> None:
        """Serve a request whose head has arrived."""
        self._fresh = False
        self._empty_lines = 0
        body = RequestBody()
        request = self._request(head)
        key = _websocket_key(head, request) if head.upgrade else b""
        exchange = H1Exchange(self, request, body, keep_alive=head.keep_alive, websocket_key=key)
        self._exchange, self._body = exchange, body
        self.continue_due = head.expects_continue
        if head.chunked:
            self._chunks = ChunkedBody(over_limit=Fault.BODY_TOO_LARGE)
            if self._buffer:
                self._receive_body(body, self._take(len(self._buffer)))
        elif head.content_length:
            self._body_left = head.content_length
            if self._buffer:
                self._receive_body(body, self._take(head.content_length))
        else:
            body.complete = True
        if not body.complete:
            self._waiting_since = self._loop.time()
            self.arm(self._waiting_since + BODY_STALL_S)
        self._task = self.edge.serve(exchange)
        self.watch_answer()

    def _request(self, head: Head) -> Request:
        return Request(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            http_version=head.http_version,
            scheme=head.scheme or self.scheme,
            authority=head.authority,
            peer=self.edge.proxies.caller(self.peer, head.headers),
            request_id=self.edge.new_request_id(),
            content_length=None if head.chunked else head.content_length or 0,
        )

    def switched(self, body: RequestBody) -> None:
        """Pass on whatever comes: the exchange has accepted a WebSocket."""
        self._switched = True
        body.complete = False
        if self._buffer:  # frames came before the caller could know that they are welcome
            self._receive_body(body, self._take(len(self._buffer)))
        self.body_taken()

    def _receive_body(self, body: RequestBody, data: bytes) -> None:
        if body.failed:
            return
        if self._switched:
            body.feed(data)
            self._body_received(body)
            return
        if self._chunks is not None:
            self.receive_in_turns(data)
            return
        if len(data) < self._body_left:
            self._body_left -= len(data)
            self._feed(body, data)
        else:
            left, self._body_left = self._body_left, 0
            self._feed(body, data[:left])
            body.finish()
            self._buffer += data[left:]
        self._body_received(body)

    @property
    def undivided_bytes(self) -> int:
        """The rest of the current chunk: only many small chunks take long to decode."""
        return 0 if self._chunks is None else self._chunks.left_bytes

    def take_slice(self, data: bytes) -> None:
        """Decode a piece of a chunked body; bytes after its end belong to the next request."""
        body, chunks = self._body, self._chunks
        if self.lingering:
            return
        if body is None or chunks is None:
            self.data_received(data)
        elif not body.failed:
            self._receive_chunks(chunks, body, data)
            self._body_received(body)

    def turns_over(self) -> None:
        """Resume reading, unless the handler must first read some of the body."""
        if self._body is None or self._body.waiting_bytes <= READ_AHEAD_BYTES:
            self.resume_reading()

    def _body_received(self, body: RequestBody) -> None:
        if body.complete:
            self.continue_due = False
            if self._exchange is None:
                self._ready()
        elif body.waiting_bytes > READ_AHEAD_BYTES:
            self.pause_reading()

    def _receive_chunks(self, chunks: ChunkedBody, body: RequestBody, data: bytes) -> None:
        try:
            payload = chunks.receive_data(data)
        except RemoteProtocolError as error:
            body.fail(_broken_body(error))
            if self._exchange is None:
                self.linger()
            return
        if payload:
            self._feed(body, payload)
        if chunks.ended:
            self._chunks = None
            body.finish()
            self._buffer += chunks.rest

    def _feed(self, body: RequestBody, data: bytes) -> None:
        if self._exchange is None:  # the response has ended already: drop the rest of the body
            return
        self.continue_due = False  # the caller did not wait for `100 Continue`
        body.feed(data)

    # -- called by the exchange
    def body_wanted(self) -> None:
        """Send `100 Continue` if the caller waits for it: the handler wants to read the body."""
        if self.continue_due:
            self.continue_due = False
            self._waiting_since = self._loop.time()
            self.send(_CONTINUE)

    def body_taken(self) -> None:
        """Resume reading: the handler has read the waiting bytes."""
        if self._reading_paused and self._body is not None and not self._body.complete:
            self.resume_reading()

    @property
    def reusable(self) -> bool:
        """Whether the connection may be used for another request after the current one."""
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
        """Continue or close: the response is complete.

        `keep`: the connection may be used again (the response did not say `Connection: close`).
        """
        body, self._exchange, self._task = self._body, None, None
        assert body is not None
        body.discard()
        if self._switched:
            body.finish()
        self._waiting_since = self._loop.time()
        if not keep:
            if body.complete:
                self.close()
            else:
                self.linger()
        elif body.complete:
            self._ready()
        else:  # a small rest of the body will be read and dropped
            self.resume_reading()
            self.arm(self._waiting_since + BODY_STALL_S)

    def _ready(self) -> None:
        """Serve the next request: both the last request and its response are complete."""
        self._body = None
        self._waiting_since = self._loop.time()
        if len(self._buffer) <= READ_AHEAD_BYTES:
            self.resume_reading()
        if self.edge.draining and not self._head_begun:
            self.close()
            return
        self.arm(self._waiting_since + IDLE_TIMEOUT_S)
        if self.write_paused:
            self.pause_reading()  # serve no more until the responses are sent: see `writable_again`
        elif self._buffer:
            self._next_request(had_begun=False)

    def linger(self) -> None:
        """Read and drop bytes for `LINGER_S`, then close."""
        self.flush()
        self.lingering = True
        self._buffer.clear()
        self._undecoded = b""
        self.resume_reading()
        self._waiting_since = self._loop.time()
        self.arm(self._waiting_since + LINGER_S)

    def refuse(self, error: RequestError) -> None:
        """Answer an invalid head, and close: where the next request begins is not certain."""
        request_id = self.edge.new_request_id()
        self.edge.refused(request_id, error)
        status, headers, body = refusal(error)
        lines = [b"%b: %b\r\n" % field for field in headers]
        head = response_head(self.edge, status, lines, request_id)
        self.send(head + b"connection: close\r\n\r\n" + body)
        self.linger()

    def hand_over(self, tunnel_factory: TunnelFactory, head: Head, rest: bytes) -> None:
        """Answer the Upgrade of a node and hand the connection over to a tunnel.

        Nodes use it behind a proxy that terminates TLS.
        """
        self.send(_SWITCHING)
        self.flush()
        self.resume_reading()
        self.leave()
        tunnel = tunnel_factory()
        if isinstance(tunnel, TunnelProtocol):
            tunnel.peer = self.edge.proxies.caller(self.peer, head.headers)
        self.transport.set_protocol(tunnel)
        tunnel.connection_made(self.transport)
        if rest:
            tunnel.data_received(rest)

    def resume_reading(self) -> None:
        """Resume reading; the current wait begins now."""
        was_paused = self._reading_paused
        super().resume_reading()
        if was_paused and not self._reading_paused:
            self._waiting_since = self._loop.time()
            if self._body is not None and not self._body.complete:
                self.arm(self._waiting_since + BODY_STALL_S)

    # -- time
    @property
    def answering(self) -> bool:
        """See `CallerConnection`."""
        return self._exchange is not None

    def next_deadline(self) -> float | None:
        """Return the deadline of the current wait: for an end, a head, a request or a body."""
        if self.lingering:
            return self._waiting_since + LINGER_S
        if self._body is None:
            timeout_s = HEAD_DEADLINE_S if self._head_begun or self._fresh else IDLE_TIMEOUT_S
            return self._waiting_since + timeout_s
        if self._body.complete or self._body.failed or self._reading_paused or self.continue_due:
            return None
        if self._switched:  # may be silent for long; the handler has a deadline of its own
            return None
        return self._waiting_since + BODY_STALL_S

    def overdue(self, now: float) -> None:
        """Refuse, fail or close: the current wait took too long."""
        if self.lingering or self._body is None:
            if self._head_begun and not self.lingering:
                self.refuse(
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
        """Resume the handler, or serve the next request: the waiting bytes are sent."""
        if self._exchange is None:
            if self._body is None and not self.closing and not self.lingering:
                self._ready()
        elif self._exchange.on_resume is not None:
            self._exchange.on_resume()

    def caller_gone(self) -> None:
        """Cancel the handler of the current request."""
        task, exchange = self._task, self._exchange
        self._task = self._exchange = None
        if exchange is not None:
            exchange.cut()
        if task is not None and not task.done():
            self.edge.counters.callers_gone += 1
            task.cancel()

    def drain(self) -> None:
        """Do nothing: while draining, the next head of a response says `Connection: close`."""

    def close_if_idle(self) -> None:
        """Close if no request is in progress; else the connection closes after the response."""
        if self._exchange is None and not self._head_begun:
            self.close()


def _broken_body(error: RemoteProtocolError) -> RequestError:
    """Return the error for a handler that reads an invalid chunked body."""
    if error.fault is Fault.BODY_TOO_LARGE:
        return RequestError(f"the request body is too large: {error}", Fault.BODY_TOO_LARGE)
    return RequestError(f"the chunked request body is invalid: {error}")


def _websocket_key(head: Head, request: Request) -> bytes:
    """Return the key of a WebSocket's handshake, b"" where `head` is none (RFC 6455 4.2.1)."""
    key = request.header(KEY_FIELD)
    asks = (
        head.upgrade == b"websocket"
        and head.method == "GET"
        and not head.chunked
        and not head.content_length
        and request.header(VERSION_FIELD) == VERSION
    )
    return key if asks and is_key(key) else b""


def _asks_for_tunnel(head: Head, raw: bytes) -> bool:
    return (
        head.upgrade == TUNNEL_PROTOCOL
        and head.path == TUNNEL_PATH
        and b"?" not in raw.partition(b"\r\n")[0]  # no query, not even an empty one
        and head.method == "GET"
        and not head.chunked
        and not head.content_length
    )
