"""A session: streams, calls and status between a node and a relay, over a resumable link.

Sans-I/O: it takes bytes and the time, and returns events and bytes. A session outlives its
connections: call `attach` after each handshake and `detach` when a connection is lost; the streams
are not affected.

Each `bytes_to_send` chooses anew what is sent first: a replay, then link frames, then control
frames, then DATA, one frame in turn from each stream that has some (SPEC sections 4 to 6).
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Final

from msgspec.structs import replace

from . import frames as f
from .errors import Fault, LocalProtocolError, RemoteProtocolError, WaiError, fault_for_wire_code
from .events import (
    CallReceived,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    NodeEvent,
    PeerDead,
    ReplyReceived,
    StatusReceived,
    StreamEnded,
    StreamOpened,
    StreamReset,
    TurnEnded,
    Writable,
)
from .limits import (
    MAX_CALLS,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_CHARS,
    MAX_REASON_CHARS,
    MAX_UNDELIVERED_BYTES,
    SEND_HIGH_WATER_BYTES,
    SEND_LOW_WATER_BYTES,
    SESSION_GROWTH_BYTES,
    WRITE_BUDGET_BYTES,
    Limits,
)
from .link import Link
from .pace import PaceKeeper, frame_cost
from .status import NodeStatus
from .stream import Stream
from .surface import Headers
from .window import GrowthBudget

_DATA: Final = int(f.FrameType.DATA)
_PONG: Final = int(f.FrameType.PONG)
_EVENT: Final = int(f.FrameType.EVENT)
_NO_END: Final = 1 << 62


class Role(enum.Enum):
    """Which end a session is. Only the relay sends OPEN and CALL; only the node sends STATUS."""

    NODE = "node"
    RELAY = "relay"


class Session:
    """One end of a session. Not thread-safe."""

    def __init__(
        self,
        role: Role,
        *,
        local: Limits | None = None,
        peer: Limits | None = None,
        growth: GrowthBudget | None = None,
        turn_cost: int | None = None,
    ) -> None:
        """Begin a session without a connection.

        `local`, `peer`: the limits that this end and the peer told each other. `growth`: the budget
        that all sessions of the process share for larger stream windows. `turn_cost`: how much work
        one `receive_data` does before it ends with a `TurnEnded` (see `limits.TURN_COST`); None: no
        bound.
        """
        self._is_relay = role is Role.RELAY
        self._local = local or Limits()
        self.peer_limits = peer or Limits()
        self._link = Link(self._local)
        self._growth = GrowthBudget(SESSION_GROWTH_BYTES, above=growth)
        self._decoder = f.FrameDecoder()
        self._turn_cost = turn_cost or _NO_END
        self._pace = PaceKeeper()
        self._streams: dict[int, Stream] = {}
        self._highest_stream = 0
        self._calls: set[int] = set()  # CALLs without a REPLY, on either end
        self._last_call = 0
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._ready: deque[Stream] = deque()
        self._status = b""  # a STATUS that waits to be sent
        self._probe = b""  # a PING that waits to be sent
        self._events: list[Event] = []
        self._now = 0.0
        self.going_away = False
        """Whether this end sent GOAWAY."""
        self.peer_going_away = False
        """Whether the peer sent GOAWAY: no stream can be opened."""

    # -- connections

    @property
    def attached(self) -> bool:
        """Whether there is a connection."""
        return self._link.attached

    @property
    def received(self) -> int:
        """The offset to tell the peer in the next handshake."""
        return self._link.received

    @property
    def heard_at(self) -> float:
        """When bytes were last received, by the caller's clock."""
        return self._link.heard_at

    @property
    def unanswered_ping_at(self) -> float | None:
        """When a PING was sent that no byte has followed, by the caller's clock; else None."""
        return self._link.unanswered_ping_at

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip of this connection in seconds, None if not measured yet."""
        return self._link.rtt_s

    @property
    def unacknowledged_bytes(self) -> int:
        """How many sent bytes are kept for a replay."""
        return self._link.unacknowledged_bytes

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def attach(self, peer_received: int, now: float, *, peer: Limits | None = None) -> None:
        """Continue on a new connection, from the offset `peer_received` of the handshake.

        `peer`: the peer's limits, if the handshake told them. Raises `RemoteProtocolError` for an
        invalid offset.
        """
        self._now = now
        if peer is not None:
            self.peer_limits = peer
        self._link.attach(peer_received, now)
        self._decoder = f.FrameDecoder()
        self._probe = self._link.ping(now)

    def detach(self) -> None:
        """Note that the connection is lost; streams wait for the next one."""
        self._link.detach()

    # -- bytes in

    def receive_data(self, data: bytes | memoryview, now: float) -> list[Event]:
        """Process bytes from the connection, and return the events that they cause.

        After a `TurnEnded`, call it again with b"" in a later turn of the event loop. Raises
        `RemoteProtocolError` if the peer violates the protocol: then close the connection and end
        the session.
        """
        self._now = now
        link = self._link
        link.heard_at = now
        decoder = self._decoder
        if data:
            decoder.feed(data)
        room = self._turn_cost
        start = decoder.position
        while decoder.holds_bytes and (item := decoder.next_frame()) is not None:
            end = decoder.position
            if item[0] == _DATA:
                self._receive_frame_data(item)
                link.received += end - start
                room -= 1
            else:
                room -= self._receive_other(item, end - start)
            start = end
            if room <= 0 and decoder.holds_bytes:
                self._events.append(TurnEnded())
                break
        events, self._events = self._events, []
        return events

    def _receive_other(self, item: list[Any], size: int) -> int:
        """Process a frame that is not DATA; return its `frame_cost`."""
        kind = item[0]
        self._pace.count(kind, self._now)
        if kind < f.FIRST_SESSION_TYPE:
            self._link.receive_link_frame(item, self._now)
            if kind == _PONG and not self._streams:  # no DATA in a queue: the path itself is longer
                self._link.adopt_recent_rtt()
        else:
            self._receive_frame(f.decode(item, size))
            self._link.received += size
        return frame_cost(kind, size)

    def _receive_frame_data(self, item: list[Any]) -> None:
        if len(item) < 3 or type(item[1]) is not int or type(item[2]) is not bytes:
            raise RemoteProtocolError("DATA frame has a field of the wrong type")
        stream_id, data = item[1], item[2]
        size = len(data)
        if not 0 < size <= MAX_DATA_BYTES:
            raise RemoteProtocolError(f"DATA frame with {size} bytes")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._lookup_stream(stream_id)
            return
        if not stream.head_done and self._is_relay:
            raise RemoteProtocolError(f"DATA on stream {stream_id} before its HEADERS")
        stream.inbound.receive(size)
        self._events.append(DataReceived(stream_id, data))

    def _receive_frame(self, frame: f.SessionFrame) -> None:
        match frame:  # the most frequent first
            case f.End(stream_id):
                self._receive_end(stream_id)
            case f.HeadersFrame(stream_id, status, headers):
                self._require_from_node("HEADERS")
                self._receive_head(stream_id, status, headers)
            case f.Open():
                self._require_from_relay("OPEN")
                self._receive_open(frame)
            case f.Credit(stream_id, increment):
                self._receive_credit(stream_id, increment)
            case f.Reset(stream_id, code, reason):
                known = self._lookup_stream(stream_id) is not None
                if known:
                    self._remove_stream(stream_id)
                # A node's owner is also told of the reset of a stream that has ended here: the
                # relay may want an EVENT that says how many tokens it took (SPEC section 6).
                if known or not self._is_relay:
                    shown = f.printable(reason)
                    self._add_event(StreamReset(stream_id, fault_for_wire_code(code), shown))
            case f.GoAway(code, reason, after_ms):
                self.peer_going_away = True
                after_s = None if after_ms is None else after_ms / 1000
                self._add_event(
                    GoAwayReceived(fault_for_wire_code(code), f.printable(reason), after_s)
                )
            case f.Status(value):
                self._require_from_node("STATUS")
                self._add_event(StatusReceived(NodeStatus.from_wire(value)))
            case f.Call(call, method, params):
                self._require_from_relay("CALL")
                if self._receive_call(call):
                    self._add_event(CallReceived(call, method, params))
            case f.Reply(call, ok, value):
                self._require_from_node("REPLY")
                if not 0 < call <= self._last_call:
                    raise RemoteProtocolError(f"REPLY to call {call}, which was never asked")
                if call in self._calls:  # else it is too late: see `give_up_call`
                    self._calls.remove(call)
                    self._add_event(ReplyReceived(call, ok, value))
            case f.Event(call, name, value):
                self._require_from_node("EVENT")
                self._add_event(NodeEvent(call, name, value))

    def _receive_open(self, frame: f.Open) -> None:
        if frame.stream <= self._highest_stream:
            raise RemoteProtocolError(f"OPEN of stream {frame.stream}, which is not a new one")
        self._highest_stream = frame.stream
        self._check_answers_are_received()
        if len(self._streams) >= self._local.max_streams:
            self._send(f.Reset(frame.stream, Fault.OVERLOADED.row.wire_code, "too many streams"))
            return
        stream = self._add_stream(frame.stream)
        stream.inbound.ended = frame.end
        self._add_event(
            StreamOpened(
                frame.stream, frame.method, frame.path, frame.headers, frame.model, frame.end
            )
        )

    def _receive_call(self, call: int) -> bool:
        """Register a CALL; return whether the owner is to answer it.

        If too many are open, it is refused here.
        """
        if call <= self._last_call:
            raise RemoteProtocolError(f"CALL {call} is not a new one")
        self._check_answers_are_received()
        self._last_call = call
        self._calls.add(call)
        if len(self._calls) <= MAX_CALLS:
            return True
        self.reply_error(call, WaiError("too many calls to this node are open", Fault.OVERLOADED))
        return False

    def _check_answers_are_received(self) -> None:
        """Raise `RemoteProtocolError` if the peer sends requests but does not receive the answers.

        Without this bound the answers would be kept without limit.
        """
        if self._control_bytes - self._link.room > MAX_UNDELIVERED_BYTES:
            raise RemoteProtocolError(
                "the peer sends requests but does not receive the answers", Fault.FLOW_CONTROL
            )

    def _receive_head(self, stream_id: int, status: int, headers: Headers) -> None:
        stream = self._lookup_stream(stream_id)
        if stream is None:
            return
        if stream.head_done or stream.inbound.ended or not 200 <= status <= 599:
            raise RemoteProtocolError(f"HEADERS of stream {stream_id} twice, late or no status")
        stream.head_done = True
        stream.inbound.measure_from(self._now)
        self._add_event(HeadersReceived(stream_id, status, headers))

    def _receive_end(self, stream_id: int) -> None:
        stream = self._lookup_stream(stream_id)
        if stream is None:
            return
        if stream.inbound.ended or (self._is_relay and not stream.head_done):
            raise RemoteProtocolError(f"END of stream {stream_id} twice or before its HEADERS")
        stream.inbound.ended = True
        self._remove_if_ended(stream)
        self._add_event(StreamEnded(stream_id))

    def _receive_credit(self, stream_id: int, increment: int) -> None:
        stream = self._lookup_stream(stream_id)
        if stream is None:
            return
        stream.credit_out += increment
        if increment == 0 or stream.credit_out > 1 << 40:
            raise RemoteProtocolError(f"CREDIT of {increment} for stream {stream_id}")
        self._schedule(stream)

    def _lookup_stream(self, stream_id: int) -> Stream | None:
        """Return the stream, or None if it is over: frames may still arrive for it.

        Raises `RemoteProtocolError` if it was never opened.
        """
        stream = self._streams.get(stream_id)
        if stream is None and not 0 < stream_id <= self._highest_stream:
            raise RemoteProtocolError(f"a frame for stream {stream_id}, which was never opened")
        return stream

    def _require_from_relay(self, name: str) -> None:
        if self._is_relay:
            raise RemoteProtocolError(f"{name} from the wrong side")

    def _require_from_node(self, name: str) -> None:
        if not self._is_relay:
            raise RemoteProtocolError(f"{name} from the wrong side")

    def _add_event(self, event: Event) -> None:
        self._events.append(event)

    # -- bytes out

    @property
    def has_bytes_to_send(self) -> bool:
        """Whether `bytes_to_send` may return bytes. False means that it certainly returns none."""
        if self._ready or self._control or self._probe or self._status:
            return True
        return self._link.has_bytes_to_send

    def bytes_to_send(self) -> bytes:
        """Return the bytes to send now, about `WRITE_BUDGET_BYTES` at most; b"" if there are none.

        A shorter result is all that can be sent for now. Write it to the current connection only,
        and call this again once the transport has taken it. May add `Writable` events: see
        `take_events`.
        """
        link = self._link
        if not link.attached:
            return b""
        out: list[bytes] = []
        if self._probe:
            out.append(self._probe)
            self._probe = b""
        if link.link_frames_due:
            out.append(link.take_link_frames())
        budget = WRITE_BUDGET_BYTES
        if link.replaying:
            out += link.take_replay(budget)
            if link.replaying:
                return b"".join(out)
        if self._status:
            self._queue_control(self._status)
            self._status = b""
        while self._control and budget > 0:
            frame = self._control.popleft()
            self._control_bytes -= len(frame)
            budget -= len(frame)
            link.record(frame)
            out.append(frame)
        if self._ready:
            self._take_data(out, budget)
        return out[0] if len(out) == 1 else b"".join(out)

    def _take_data(self, out: list[bytes], budget: int) -> None:
        link, ready = self._link, self._ready
        budget = min(budget, link.room)
        while ready and budget > 0:
            stream = ready.popleft()
            data = stream.take(MAX_DATA_BYTES)
            if data:
                frame = f.encode_data(stream.id, data)
                link.record(frame)
                out.append(frame)
                budget -= len(frame)
                if stream.stopped and stream.pending_bytes <= SEND_LOW_WATER_BYTES:
                    stream.stopped = False
                    self._events.append(Writable(stream.id))
            if stream.end_queued and not stream.pending_bytes and not stream.local_ended:
                frame = f.encode_end(stream.id)
                link.record(frame)
                out.append(frame)
                stream.local_ended = True
                self._remove_if_ended(stream)
            if stream.pending_bytes and stream.credit_out > 0:
                ready.append(stream)
            else:
                stream.scheduled = False

    def take_events(self) -> list[Event]:
        """Return the events that arose outside `receive_data` and `handle_timeout`."""
        events, self._events = self._events, []
        return events

    # -- time

    def next_deadline(self) -> float | None:
        """Return when to call `handle_timeout`; None while there is no connection."""
        return self._link.next_deadline()

    def handle_timeout(self, now: float) -> list[Event]:
        """Send a PING if it is due, or report `PeerDead`. Does nothing if called early."""
        self._now = now
        if self._link.is_dead(now):
            self._add_event(PeerDead())
        elif self._link.ping_due(now):
            self._probe = self._link.ping(now)
        return self.take_events()

    def probe(self, now: float) -> None:
        """Send a PING now, for example after the clock jumped or the address changed."""
        self._probe = self._link.ping(now)

    # -- streams

    def open_stream(
        self, method: str, path: str, headers: Headers, model: str, *, end: bool
    ) -> int:
        """Open a stream with a request's head, and return its number.

        `model`: see `frames.Open`; `end`: the request has no body. Raises `WaiError` (OVERLOADED,
        DRAINING) if no stream can be opened now, and `LocalProtocolError` for an invalid head.
        """
        if not self._is_relay:
            raise LocalProtocolError("only the relay opens streams")
        if self.peer_going_away:
            raise WaiError("the node is draining and takes no new requests", Fault.DRAINING)
        crowded = len(self._streams) >= self.peer_limits.max_streams
        if crowded or self._control_bytes > MAX_CONTROL_BYTES:
            raise WaiError("the node has no room for another stream", Fault.OVERLOADED)
        stream_id = self._highest_stream + 1
        frame = f.encode_open(stream_id, method, path, headers, model, end=end)
        if len(frame) > MAX_FRAME_BYTES:
            raise LocalProtocolError("an OPEN frame is too large")
        self._highest_stream = stream_id
        stream = self._add_stream(stream_id)
        stream.local_ended = stream.end_queued = end
        self._queue_control(frame)
        return stream_id

    def send_headers(self, stream_id: int, status: int, headers: Headers) -> None:
        """Send a response's head.

        Does nothing if the stream is over. The same holds for all methods that send on a stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if self._is_relay or stream.head_done or not 200 <= status <= 599:
            raise LocalProtocolError("a response has one head and a status, and the node sends it")
        self._send_encoded("HeadersFrame", f.encode_headers(stream_id, status, headers))
        stream.head_done = stream.may_send = True

    def send_data(self, stream_id: int, data: bytes) -> bool:
        """Queue body bytes.

        Returns False if the caller should wait for `Writable` before it sends more; the bytes are
        queued nevertheless.
        """
        stream = self._streams.get(stream_id)
        if stream is None or not data:
            return True
        if stream.end_queued or not stream.may_send:
            raise LocalProtocolError(f"data on stream {stream_id} after its end or before its head")
        stream.queue(data)
        if not stream.scheduled and stream.credit_out > 0:
            stream.scheduled = True
            self._ready.append(stream)
        if stream.pending_bytes > SEND_HIGH_WATER_BYTES:
            stream.stopped = True
            return False
        return True

    def end_stream(self, stream_id: int) -> None:
        """End this direction of the stream after the queued bytes."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.may_send:
            raise LocalProtocolError(f"stream {stream_id} cannot end before its head was sent")
        stream.end_queued = True
        self._schedule(stream)

    def reset_stream(self, stream_id: int, fault: Fault, reason: str = "") -> bool:
        """End the stream now, in both directions; queued bytes are dropped.

        Returns whether a RESET frame is now waiting to be sent: not if the stream was over.
        """
        if stream_id not in self._streams:
            return False
        self._remove_stream(stream_id)
        self._send(f.Reset(stream_id, fault.row.wire_code, reason[:MAX_REASON_CHARS]))
        self._pace.allow(_EVENT, self._now)  # the node's `spent` event (SPEC section 6)
        return True

    def consume(self, stream_id: int, size: int, now: float | None = None) -> bool:
        """Note that `size` received bytes of the stream were used, so that the peer may send more.

        `now`: when they were used (None: when bytes were last received). Returns whether a CREDIT
        frame is now waiting to be sent.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        if now is not None:
            self._now = now
        link = self._link
        window = stream.inbound
        increment = window.consume(
            *(size, link.rtt_s, self._growth, self._now),
            alone=len(self._streams) == 1,
            recent_rtt_s=link.recent_rtt_s,
        )
        if increment:
            self._send(f.Credit(stream_id, increment))
            if window.longer_way:
                window.longer_way = False
                link.adopt_recent_rtt()
            if link.measure_due(self._now):
                self._probe = link.ping(self._now)
        return increment > 0

    def fail_streams(self, fault: Fault, reason: str) -> list[Event]:
        """End all streams and calls, because the session is over, and return the events for that.

        There is a `StreamReset` for each open stream and, at the relay, a `ReplyReceived` with the
        error `fault` and `reason` for each open call.
        """
        for stream_id in list(self._streams):
            self._remove_stream(stream_id)
            self._add_event(StreamReset(stream_id, fault, reason))
        value = {"code": fault.row.wire_code, "message": reason}
        if self._is_relay:
            for call in sorted(self._calls):
                self._add_event(ReplyReceived(call, ok=False, value=value))
        self._calls.clear()
        return self.take_events()

    def _add_stream(self, stream_id: int) -> Stream:
        stream = Stream(
            stream_id,
            window_in=self._local.stream_window_bytes,
            window_out=self.peer_limits.stream_window_bytes,
            now=self._now,
        )
        stream.may_send = self._is_relay
        self._streams[stream_id] = stream
        return stream

    def _schedule(self, stream: Stream) -> None:
        if not stream.scheduled and stream.sendable:
            stream.scheduled = True
            self._ready.append(stream)

    def _remove_if_ended(self, stream: Stream) -> None:
        if stream.local_ended and stream.inbound.ended:
            self._remove_stream(stream.id)

    def _remove_stream(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id)
        stream.close(self._growth)

    # -- status, calls, going away

    def send_status(self, status: NodeStatus) -> None:
        """Send a STATUS to the relay. It replaces one that still waits to be sent.

        A status that does not fit into a frame is sent without its `detail` and its last models.
        """
        if self._is_relay:
            raise LocalProtocolError("only a node has a status")
        encoded = f.encode(f.Status(status.to_wire()))
        while len(encoded) > MAX_FRAME_BYTES:
            status = replace(status, models=status.models[: len(status.models) // 2], detail={})
            encoded = f.encode(f.Status(status.to_wire()))
        self._status = encoded

    def call(self, method: str, params: dict[str, Any]) -> int:
        """Send a CALL to the node, and return the number that its REPLY will carry.

        Raises `WaiError` (OVERLOADED) if too many are open.
        """
        if not self._is_relay:
            raise LocalProtocolError("only the relay calls")
        if len(self._calls) >= MAX_CALLS:
            raise WaiError("too many calls to this node are open", Fault.OVERLOADED)
        self._last_call += 1
        self._send(f.Call(self._last_call, method, params))
        self._calls.add(self._last_call)
        return self._last_call

    def give_up_call(self, call: int) -> None:
        """Stop counting a CALL as open. A REPLY that arrives later is ignored."""
        self._calls.discard(call)

    def reply(self, call: int, value: object) -> None:
        """Answer a CALL. Does nothing if it is answered already, or the session is over."""
        self._reply(f.Reply(call, ok=True, value=value))

    def reply_error(self, call: int, error: WaiError) -> None:
        """Answer a CALL with an error; see `reply`."""
        value = {"code": error.fault.row.wire_code, "message": str(error)[:MAX_MESSAGE_CHARS]}
        self._reply(f.Reply(call, ok=False, value=value))

    def _reply(self, frame: f.Reply) -> None:
        if self._is_relay:
            raise LocalProtocolError("only a node answers calls")
        if frame.call in self._calls:
            self._send(frame)
            self._calls.remove(frame.call)

    def emit(self, name: str, value: object, call: int = 0) -> None:
        """Send an EVENT to the relay. `call`: the CALL that it belongs to, or 0."""
        self._send(f.Event(call, name, value))

    def go_away(self, fault: Fault, reason: str, *, reconnect_in_s: float | None = None) -> None:
        """Announce that this end accepts or opens no new streams; those in progress go on.

        `reconnect_in_s`: after this time the node should begin a new session (None: it need not).
        """
        self.going_away = True
        after_ms = None if reconnect_in_s is None else round(reconnect_in_s * 1000)
        self._send(f.GoAway(fault.row.wire_code, reason[:MAX_REASON_CHARS], after_ms))

    def _send(self, frame: f.SessionFrame) -> None:
        self._send_encoded(type(frame).__name__, f.encode(frame))

    def _send_encoded(self, name: str, encoded: bytes) -> None:
        if len(encoded) > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a {name} frame has {len(encoded)} bytes")
        self._queue_control(encoded)

    def _queue_control(self, encoded: bytes) -> None:
        self._control.append(encoded)
        self._control_bytes += len(encoded)
