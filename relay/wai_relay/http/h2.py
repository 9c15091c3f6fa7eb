"""An HTTP/2 connection of a caller: streams, flow control, fair sending, and bounds on floods.

The `h2` library keeps the state of the protocol. Heads are checked by `heads.check_fields`, which
takes a third of the time of h2's own check and gives the same messages as for HTTP/1.1. The bytes
of a response wait in its `H2Exchange`; they are framed once per turn of the event loop, one frame
from each stream in turn.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from h2.settings import SettingCodes
from hpack import HPACKError
from hyperframe.exceptions import InvalidDataError
from hyperframe.frame import GoAwayFrame

from wai_protocol.errors import Fault, RequestError

from .body import RequestBody
from .budgets import Budgets, Flood
from .connection import CallerConnection
from .edge import (
    BODY_STALL_S,
    HEAD_DEADLINE_S,
    IDLE_TIMEOUT_S,
    WRITE_HIGH_WATER_BYTES,
    WRITE_STALL_S,
    Edge,
    body_stalled,
    fail,
)
from .exchange import Request
from .h2_stream import H2Exchange
from .heads import MAX_HEAD_BYTES, Head, check_fields, check_trailers

# RFC 9113 recommends at least 100; load-testing tools commonly use 128.
MAX_CONCURRENT_STREAMS: Final = 128
# Bytes of a body that may wait per stream, instead of READ_AHEAD_BYTES: an HTTP/1.1 connection has
# the kernel's buffer besides. 256 KiB carry 2.5 MB/s at a round trip of 100 ms.
STREAM_WINDOW_BYTES: Final = 256 * 1024
# Bytes of unread bodies that may wait per connection: four uploads at full speed.
CONNECTION_WINDOW_BYTES: Final = 1024 * 1024
# Maximum payload of a DATA frame, which every client must accept (RFC 9113 section 4.2). A response
# waits behind at most 16 KiB of another one.
MAX_DATA_BYTES: Final = 16 * 1024
# Bytes that may wait in the transport of a caller that does not read, beyond those of responses:
# answers to PINGs and to frames for closed streams. Above it the connection is aborted.
MAX_UNTAKEN_BYTES: Final = 256 * 1024
# How long a caller may go on with a body that nobody reads any more, after the response: curl 7.88
# (Debian 12) loses a response if its stream is reset while it still sends. As nginx's lingering.
LINGER_S: Final = 1.0
# What such a body may have; a longer one is reset at once.
LINGER_BYTES: Final = STREAM_WINDOW_BYTES
# A DATA frame with fewer bytes is counted as SMALL_DATA.
SMALL_DATA_BYTES: Final = 64
_DEFAULT_WINDOW_BYTES: Final = 65_535
# The stream number of a first GOAWAY: streams that are already on their way are still served.
_LAST_STREAM: Final = 2**31 - 1

_CONFIG: Final = h2.config.H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_COUNTED: Final[dict[type[h2.events.Event], Flood]] = {
    h2.events.PingReceived: Flood.PING,
    h2.events.PingAckReceived: Flood.PING,
    h2.events.RemoteSettingsChanged: Flood.SETTINGS,
    h2.events.SettingsAcknowledged: Flood.SETTINGS,
    h2.events.StreamReset: Flood.RESET,
    h2.events.WindowUpdated: Flood.WINDOW_UPDATE,
    h2.events.PriorityUpdated: Flood.PRIORITY,
    h2.events.UnknownFrameReceived: Flood.UNKNOWN,
}


def _code_for(cause: BaseException | None) -> h2.errors.ErrorCodes | None:
    """Return the code that RFC 9113 demands where h2 says PROTOCOL_ERROR; None: h2 is right."""
    match cause:
        case HPACKError():  # section 4.3
            return h2.errors.ErrorCodes.COMPRESSION_ERROR
        case InvalidDataError(args=(str(text), *_)) if text.startswith("SETTINGS ack"):
            return h2.errors.ErrorCodes.FRAME_SIZE_ERROR  # section 6.5
        case _:
            return None


class _Unread:
    """A stream whose response is sent, and whose caller may end its body."""

    __slots__ = ("left_bytes", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.left_bytes = LINGER_BYTES


class H2Connection(CallerConnection):
    """One HTTP/2 connection and its streams."""

    __slots__ = (
        "_arrived_at",
        "_budgets",
        "_fresh",
        "_h2",
        "_idle_since",
        "_last_stream",
        "_ready",
        "_room_since",
        "_streams",
        "_unread",
    )

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self._h2 = h2.connection.H2Connection(_CONFIG)
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_CONCURRENT_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        self._h2.decoder.max_header_list_size = MAX_HEAD_BYTES
        # When the bytes that are decoded now arrived. Buckets refill by this time, so that they do
        # not refill while bytes wait to be decoded.
        self._arrived_at = 0.0
        self._budgets = Budgets()
        self._streams: dict[int, H2Exchange] = {}
        self._unread: dict[int, _Unread] = {}
        self._ready: dict[int, H2Exchange] = {}  # exchanges with something to send, in turn
        self._fresh = True  # whether no request has arrived yet
        self._last_stream: int | None = None  # set by a drain: later streams are refused
        self._idle_since = 0.0
        self._room_since = 0.0  # when the connection's receive window was last opened

    # -- reading
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send SETTINGS and wait for the first request."""
        super().connection_made(transport)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
        self._idle_since = self._loop.time()
        self.arm(self._idle_since + HEAD_DEADLINE_S)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Process bytes of frames."""
        if not self.closing and not self.lost:
            if not self._queued:
                self._arrived_at = self._loop.time()
            self.receive_in_turns(data)

    def take_slice(self, data: bytes) -> None:
        """Decode and process some frames."""
        now = self._arrived_at
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            # h2 has prepared a GOAWAY with the reason, which `close` sends.
            code = _code_for(error.__cause__)
            if code is not None:
                self._h2.clear_outbound_data_buffer()
                self._say_goodbye(self._h2.highest_inbound_stream_id, code)
            self.edge.counters.heads_refused += 1
            self.caller_gone()
            self.close()
            return
        for event in events:
            self._receive(event, now)
        self.flush_soon()

    def _receive(self, event: h2.events.Event, now: float) -> None:
        if self.closing:
            return
        flood = _COUNTED.get(type(event))
        if flood is not None and not self._budgets.spend(flood, now):
            self._calm_down()
            return
        match event:
            case h2.events.RequestReceived():
                self._begin(event, now)
            case h2.events.DataReceived():
                self._receive_body(event, now)
            case h2.events.StreamEnded(stream_id=int(stream_id)):
                self._read_off(stream_id)
                exchange = self._streams.get(stream_id)
                if exchange is not None:
                    exchange.body.finish()
            case h2.events.TrailersReceived(stream_id=int(stream_id), headers=trailers):
                self._check_trailers(stream_id, trailers or [])
            case h2.events.WindowUpdated(stream_id=stream_id):
                exchange = self._streams.get(stream_id or 0)
                if exchange is not None:
                    self._ready[exchange.stream_id] = exchange
                elif not stream_id:
                    self._retry_blocked()
            case h2.events.RemoteSettingsChanged():
                self._retry_blocked()
            case h2.events.StreamReset(stream_id=int(stream_id)):
                self._read_off(stream_id)
                exchange = self._streams.get(stream_id)
                if exchange is not None:
                    self._forget(exchange)
                    self._cancel(exchange)
            case h2.events.ConnectionTerminated():
                # h2 sends nothing after a GOAWAY was received. Callers send it only when they
                # leave.
                self.caller_gone()
                self.close()
            case _:
                pass  # nothing to do; kinds that can be sent as a flood are counted above

    def _begin(self, event: h2.events.RequestReceived, now: float) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        if self._last_stream is not None and stream_id > self._last_stream:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self._fresh = False
        try:
            head = check_fields(event.headers)
            if head.content_length and event.stream_ended is not None:
                raise RequestError("the request has a content-length and no body")
        except RequestError as error:
            exchange = H2Exchange(self, stream_id, self._request(None))
            exchange.malformed = error.fault is Fault.BAD_REQUEST
            self.edge.refused(exchange.request.request_id, error)
            self._streams[stream_id] = exchange
            exchange.body.fail(error)
            fail(exchange, error)
            return
        exchange = H2Exchange(self, stream_id, self._request(head))
        exchange.progress_at = now
        exchange.continue_due = head.expects_continue
        self._streams[stream_id] = exchange
        if event.stream_ended is not None:
            exchange.body.complete = True
        else:
            self.arm(now + BODY_STALL_S)
        exchange.task = self.edge.serve(exchange)
        if len(self._streams) == 1:
            self.watch_answer()

    def _check_trailers(self, stream_id: int, trailers: list[tuple[bytes, bytes]]) -> None:
        """Reset a stream whose trailers are malformed; valid ones are dropped, as in HTTP/1.1."""
        exchange = self._streams.get(stream_id)
        try:
            check_trailers(trailers)
            if exchange is not None and exchange.lacks_body:  # h2 checks it only without trailers
                raise RequestError("the request's body is shorter than its content-length")
        except RequestError:
            self.edge.counters.heads_refused += 1
            if exchange is not None:
                self._forget(exchange)
                self._cancel(exchange)
            self._reset(stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)

    def _request(self, head: Head | None) -> Request:
        """Make a `Request` from `head`; None: a placeholder for a head that was refused."""
        length = None
        if head is not None:
            length = head.content_length
        return Request(
            method=head.method if head else "GET",
            path=head.path if head else "/",
            query=head.query if head else "",
            headers=head.headers if head else [],
            http_version="2",
            scheme=self.scheme,
            authority=head.authority if head else "",
            peer=self.edge.proxies.caller(self.peer, head.headers) if head else self.peer,
            request_id=self.edge.new_request_id(),
            content_length=length,
        )

    def _receive_body(self, event: h2.events.DataReceived, now: float) -> None:
        data, size = event.data or b"", event.flow_controlled_length or 0
        exchange = self._streams.get(event.stream_id or 0)
        if len(data) < SMALL_DATA_BYTES and event.stream_ended is None:
            flood = Flood.SMALL_DATA if data else Flood.EMPTY_DATA
            if not self._budgets.spend(flood, now):
                self._calm_down()
                return
        if exchange is None or exchange.body.failed:
            self._open_window(event.stream_id or 0, size)
            if (unread := self._unread.get(event.stream_id or 0)) is not None:
                unread.left_bytes -= size
                if unread.left_bytes < 0:
                    self._linger_no_more(event.stream_id or 0)
            return
        exchange.progress_at = now
        exchange.continue_due = False
        if data:
            exchange.body.feed(data)
        if size > len(data):  # the handler does not read padding: give its credit back at once
            self._open_window(exchange.stream_id, size - len(data))

    # -- called by the exchanges
    def ready(self, exchange: H2Exchange) -> None:
        """Note that `exchange` has something to send."""
        if not self.lost and not self.closing:
            self._ready[exchange.stream_id] = exchange
            self.flush_soon()

    def consumed(self, exchange: H2Exchange, size: int) -> None:
        """Open the window by `size` bytes, which the handler has read from the body."""
        exchange.progress_at = self._loop.time()
        if not self.lost and not self.closing:
            self._open_window(exchange.stream_id, size)
            self.flush_soon()

    def send_continue(self, exchange: H2Exchange) -> None:
        """Send `100 Continue`, for which the caller waits: the handler wants to read the body."""
        if exchange.stream_id in self._streams and not exchange.started:
            self._h2.send_headers(exchange.stream_id, [(b":status", b"100")])
            self.flush_soon()

    def abort_stream(self, exchange: H2Exchange) -> None:
        """Reset the stream with INTERNAL_ERROR."""
        self.edge.counters.cut += 1
        if self._streams.get(exchange.stream_id) is exchange:
            self._forget(exchange)
            self._reset(exchange.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            exchange.cut()

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        if self.lost or self.closing:
            return
        try:
            self._h2.reset_stream(stream_id, code)
        except h2.exceptions.StreamClosedError:
            return  # the caller has reset it at the same time
        self.flush_soon()

    def _open_window(self, stream_id: int, size: int) -> None:
        if size:
            was_shut = self._window_is_shut
            self._h2.acknowledge_received_data(size, stream_id)
            if was_shut and not self._window_is_shut:  # from now on the caller can be late
                self._room_since = self._loop.time()
                self.arm(self._room_since + BODY_STALL_S)

    @property
    def _window_is_shut(self) -> bool:
        """Whether the connection's window is used up: no stream may send its body."""
        return self._h2.inbound_flow_control_window <= 0

    # -- writing
    def flush(self) -> None:
        """Frame the waiting bytes of the streams, and write them with h2's own frames at once."""
        self._flush_due = False
        if self.lost:
            return
        if not self.closing:
            self._frame_ready()
        data = self._h2.data_to_send()
        if self._out:
            data += b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
        if data:
            self._written_bytes += len(data)
            self.transport.write(data)
            if self._stalled_since is not None and not self.closing:
                self._check_untaken()
        if self._ready and self._stalled_since is None:
            self.flush_soon()

    def _check_untaken(self) -> None:
        """Abort the connection of a caller that causes answers but does not read them."""
        limit = WRITE_HIGH_WATER_BYTES + MAX_UNTAKEN_BYTES
        if self.transport.get_write_buffer_size() > limit:
            self.edge.counters.floods += 1
            self.abort()

    def _frame_ready(self) -> None:
        """Frame one DATA of each ready stream in turn, up to the transport's high-water mark."""
        ready, left = self._ready, WRITE_HIGH_WATER_BYTES
        while ready and left > 0 and self._stalled_since is None:
            exchange = ready.pop(next(iter(ready)))
            left -= self._frame(exchange)

    def _frame(self, exchange: H2Exchange) -> int:
        """Frame the head and at most one DATA of `exchange`; return the size of the payload."""
        stream_id, head = exchange.stream_id, exchange.head
        if head is not None:
            exchange.head = None
            last = exchange.to_end and not exchange.queued_bytes
            self._h2.send_headers(stream_id, head, end_stream=last and not exchange.malformed)
            if last:
                self._response_sent(exchange)
                return 0
        if not exchange.queued_bytes:
            if exchange.to_end:
                if not exchange.malformed:
                    self._h2.end_stream(stream_id)
                self._response_sent(exchange)
            return 0
        window = min(self._h2.local_flow_control_window(stream_id), MAX_DATA_BYTES)
        if window <= 0:  # the stream waits for WINDOW_UPDATE
            if exchange.blocked_since is None:
                exchange.blocked_since = self._loop.time()
                self.arm(exchange.blocked_since + WRITE_STALL_S)
            return 0
        data = exchange.take(window)
        last = exchange.to_end and not exchange.queued_bytes
        self._h2.send_data(stream_id, data, end_stream=last and not exchange.malformed)
        exchange.blocked_since = None
        if last:
            self._response_sent(exchange)
            return len(data)
        if exchange.queued_bytes:
            self._ready[stream_id] = exchange  # as the last one in turn
        exchange.note_pressure()
        return len(data)

    def _response_sent(self, exchange: H2Exchange) -> None:
        unread = not exchange.body.complete
        self._forget(exchange)
        if exchange.malformed:  # RFC 9113 section 8.1.1 permits a response before the error
            self._reset(exchange.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
        elif unread:  # RFC 9113 section 8.1: the response is valid, the rest of the body unwanted
            stream_id = exchange.stream_id
            timer = self._loop.call_later(LINGER_S, self._linger_no_more, stream_id)
            self._unread[stream_id] = _Unread(timer)

    def _linger_no_more(self, stream_id: int) -> None:
        self._read_off(stream_id)
        self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)

    def _read_off(self, stream_id: int) -> None:
        """A body that nobody reads is at its end, or is waited for no more."""
        if (unread := self._unread.pop(stream_id, None)) is not None:
            unread.timer.cancel()

    def _forget(self, exchange: H2Exchange) -> None:
        """Remove a stream that is over, and give back the window of its unread bytes."""
        stream_id = exchange.stream_id
        self._streams.pop(stream_id, None)
        self._ready.pop(stream_id, None)
        exchange.cut()
        dropped = exchange.body.discard()
        if dropped and not self.lost and not self.closing:
            self._open_window(stream_id, dropped)
        if not self._streams:
            self._idle_since = self._loop.time()
            self.arm(self._idle_since + IDLE_TIMEOUT_S)
            if self._last_stream is not None:
                self._loop.call_soon(self.close_if_idle)

    def _retry_blocked(self) -> None:
        for stream_id, exchange in self._streams.items():
            if exchange.queued_bytes:
                self._ready[stream_id] = exchange

    # -- time
    @property
    def answering(self) -> bool:
        """See `CallerConnection`."""
        return bool(self._streams)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a stream, or of the idle connection."""
        if not self._streams:
            return self._idle_since + (HEAD_DEADLINE_S if self._fresh else IDLE_TIMEOUT_S)
        return min(filter(None, map(self._stall_deadline, self._streams.values())), default=None)

    def _stall_deadline(self, exchange: H2Exchange) -> float | None:
        if exchange.blocked_since is not None:
            return exchange.blocked_since + WRITE_STALL_S
        body: RequestBody = exchange.body
        if (
            body.complete
            or body.failed
            or body.waiting_bytes
            or exchange.continue_due
            or self._reading_paused
            or self._window_is_shut
        ):
            return None
        return max(exchange.progress_at, self._room_since) + BODY_STALL_S

    def overdue(self, now: float) -> None:
        """Close an idle connection; end streams whose caller neither sends nor reads."""
        if not self._streams:
            self._say_goodbye(self._h2.highest_inbound_stream_id)
            self.close()
            return
        for exchange in list(self._streams.values()):
            deadline = self._stall_deadline(exchange)
            if deadline is None or now < deadline:
                continue
            if exchange.blocked_since is not None:
                self.edge.counters.cut += 1
                self._forget(exchange)
                self._reset(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
                self._cancel(exchange)
            else:
                exchange.body.fail(body_stalled())

    # -- the end
    def writable_again(self) -> None:
        """Frame the waiting bytes of the streams: the transport has accepted enough."""
        self.flush_soon()

    def caller_gone(self) -> None:
        """Cancel the requests of this connection."""
        exchanges = list(self._streams.values())
        self._streams.clear()
        self._ready.clear()
        for stream_id in list(self._unread):
            self._read_off(stream_id)
        for exchange in exchanges:
            ended = exchange.to_end
            exchange.cut()
            if not ended:
                self._cancel(exchange)

    def _cancel(self, exchange: H2Exchange) -> None:
        task = exchange.task
        if task is not None and not task.done() and not exchange.to_end:
            self.edge.counters.callers_gone += 1
            task.cancel()

    def _calm_down(self) -> None:
        self.edge.counters.floods += 1
        self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        self.caller_gone()
        self.close()

    def drain(self) -> None:
        """Send a first GOAWAY; streams that are already on their way are still served."""
        self._say_goodbye(_LAST_STREAM)

    def close_if_idle(self) -> None:
        """Refuse new streams from now on, and close if none is open."""
        if self.closing or self.lost:
            return
        if self._last_stream is None:
            self._last_stream = self._h2.highest_inbound_stream_id
            self._say_goodbye(self._last_stream)
        if not self._streams:
            self.close()

    def _say_goodbye(self, last_stream: int, code: int = h2.errors.ErrorCodes.NO_ERROR) -> None:
        """Send a GOAWAY. h2's `close_connection` would not let open streams continue."""
        frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code)
        self.send(frame.serialize())
