"""The shell around a session: moves its bytes over whatever connection it has, and keeps its time.

A `LiveSession` outlives its connections. `attach` gives it a new one, which wins at once over an
older one; when a connection dies it waits for the next until its time to live is over. It decides
nothing: what is sent, when a peer counts as dead and what a stream may do is the core's business.

It writes once per loop turn, whatever happened in that turn, and never more than the transport
takes, so that the session can choose anew what goes first. Its clock is the loop's, read for
itself: uvloop's `time` counts whole milliseconds, and a round trip may take less.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

from wai_protocol.errors import Fault, RemoteProtocolError
from wai_protocol.events import Event, PeerDead, TurnEnded
from wai_protocol.limits import WRITE_BUDGET_BYTES, Limits
from wai_protocol.session import Session

from .read_buffer import READ_BUFFER, SharedBufferProtocol

HIGH_WATER_BYTES: Final = 64 * 1024
"""What may wait in the transport: one `bytes_to_send`."""

LOW_WATER_BYTES: Final = 16 * 1024

UNSENT_BYTES: Final = 128 * 1024
"""TCP_NOTSENT_LOWAT: what the kernel takes beyond what is on its way, so that a token that is
written now waits for 128 KiB of upload at most: 10 ms at 100 Mbit/s."""

CLOSE_S: Final = 2.0
"""How long a last GOAWAY or REFUSE may take to leave before the connection is dropped."""

_log = logging.getLogger("wai.session")


class Ended(enum.Enum):
    """Why a live session is over."""

    EXPIRED = "no connection came back in time"
    CLOSED = "closed by this side"
    BROKEN = "the peer broke the protocol"
    REPLACED = "the peer began a new session"
    LEFT = "the peer said goodbye"


class LiveSession:
    """A session with its timers and its current connection, if it has one.

    Its owner calls `core` for what it wants sent, and then `flush`. Only `consume` goes by here,
    since it needs the time.

    `on_event` gets each event. `on_detached` is called when the connection is lost and the session
    waits; `on_ended` once, when it is over for good: its streams were reset before that, by events.
    Events are only ever delivered from the event loop, never from inside a call of yours.
    """

    def __init__(
        self,
        core: Session,
        *,
        on_event: Callable[[Event], None],
        on_detached: Callable[[LiveSession], None],
        on_ended: Callable[[LiveSession, Ended], None],
        ttl_s: float,
    ) -> None:
        self.core = core
        self.ended: Ended | None = None
        self.connections = 0
        """How many connections it has had."""
        self._on_event = on_event
        self._on_detached = on_detached
        self._on_ended = on_ended
        self._ttl_s = ttl_s
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_scheduled = False
        self._start_expiry()

    # -- connections

    @property
    def attached(self) -> bool:
        """Whether it has a connection."""
        return self._connection is not None

    @property
    def addresses(self) -> tuple[str, str, int] | None:
        """Our IP address, the peer's and its port, on the current connection; None without one."""
        if self._connection is None:
            return None
        ours = self._connection.transport.get_extra_info("sockname")
        theirs = self._connection.transport.get_extra_info("peername")
        if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
            return None
        return ours[0], theirs[0], theirs[1]

    def attach(
        self,
        transport: asyncio.Transport,
        peer_received: int,
        leftover: bytes = b"",
        *,
        peer: Limits | None = None,
    ) -> None:
        """Go on over `transport`, whose handshake is done. An older connection is closed at once.

        The transport comes with its reading paused, and is resumed here once `leftover`, what the
        handshake read too far, was taken: bytes that come meanwhile must not overtake it, and on
        uvloop a socket may be read before what `call_soon` put off.

        Raises `RemoteProtocolError` for an impossible offset; the session is then as it was.
        """
        old, self._connection = self._connection, None
        if old is not None:
            self.core.detach()
            old.drop()
        try:
            self.core.attach(peer_received, time.monotonic(), peer=peer)
        except RemoteProtocolError:
            self._start_expiry()
            raise
        self.connections += 1
        self._stop_expiry()
        connection = _Connection(self, transport)
        self._connection = connection
        tune(transport)
        transport.set_protocol(connection)
        self._arm_timer()
        self.flush()
        self._loop.call_soon(connection.begin, leftover)

    def drop_connection(self) -> None:
        """Lose the connection on purpose: the session waits for the next one."""
        if self._connection is not None:
            self._connection.drop()
            self._lost(self._connection)

    def close(self, fault: Fault = Fault.DRAINING, reason: str = "closed") -> None:
        """End the session: streams that are still open are reset with `fault`. Idempotent."""
        self._end(Ended.CLOSED, fault, reason)

    def replace(self) -> None:
        """The peer began a new session: what was open in this one is lost."""
        self._end(Ended.REPLACED, Fault.SESSION_LOST, "the session was lost")

    def leave(self) -> None:
        """The peer said that it goes away, and has gone: nobody comes back into this session."""
        self._end(Ended.LEFT, Fault.SESSION_LOST, "the session is over")

    def probe(self) -> None:
        """Ask for a sign of life now."""
        if self._connection is not None:
            self.core.probe(time.monotonic())
            self.flush()

    def _lost(self, connection: _Connection) -> None:
        if connection is not self._connection:
            return  # an older one, which was replaced
        self._connection = None
        self.core.detach()
        self._stop_timer()
        if self.ended is None:
            self._start_expiry()
            self._on_detached(self)

    def _end(self, why: Ended, fault: Fault, reason: str) -> None:
        if self.ended is not None:
            return
        self._write()
        self.ended = why
        self._stop_expiry()
        self._stop_timer()
        connection, self._connection = self._connection, None
        self.core.detach()
        if connection is not None:
            connection.close()
        self._deliver(self.core.fail_streams(fault, reason))
        self._on_ended(self, why)

    def _start_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = self._loop.call_later(self._ttl_s, self._expire)

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        self._expiry = None
        self._end(Ended.EXPIRED, Fault.SESSION_LOST, "the node's connection was lost")

    # -- bytes and time

    def flush(self) -> None:
        """Write what `core` has to send, at the end of this loop turn. Call it after calls to
        `core`; any number of calls in a turn make one write."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._write)

    def consume(self, stream: int, size: int) -> None:
        """Give credit back, for bytes that were used now. See `Session.consume`."""
        if self.core.consume(stream, size, time.monotonic()):
            self.flush()

    def _write(self) -> None:
        self._flush_scheduled = False
        connection = self._connection
        core = self.core
        if connection is not None:
            more = True
            while more and not connection.paused and (data := core.bytes_to_send()):
                connection.transport.write(data)
                more = len(data) >= WRITE_BUDGET_BYTES
        if events := core.take_events():
            self._deliver(events)

    def _received(self, connection: _Connection, data: bytes | memoryview) -> None:
        if connection is not self._connection:
            return
        try:
            events = self.core.receive_data(data, time.monotonic())
        except RemoteProtocolError as error:
            _log.error("the peer broke the protocol: %s", error)
            self._end(Ended.BROKEN, error.fault, str(error))
            return
        if events and type(events[-1]) is TurnEnded:
            events.pop()
            if not connection.behind:
                connection.hold()
                self._loop.call_soon(self._go_on, connection)
        self._deliver(events)
        # What the handlers sent has flushed already; this is for an ACK or PONG that is due.
        if not self._flush_scheduled and self.core.has_bytes_to_send:
            self.flush()

    def _go_on(self, connection: _Connection) -> None:
        """Take what an earlier turn left over."""
        connection.behind = False
        self._received(connection, b"")
        if not connection.behind:
            connection.caught_up()

    def _deliver(self, events: list[Event]) -> None:
        """Tell the owner. A handler that fails fails its own event: the others are still told."""
        on_event = self._on_event
        for event in events:
            if type(event) is PeerDead:
                self.drop_connection()
                continue
            try:
                on_event(event)
            except Exception:  # whatever it is: the other streams' events must not be lost with it
                _log.exception("a handler failed on %s", type(event).__name__)
                if isinstance(stream := getattr(event, "stream", None), int):
                    self.core.reset_stream(stream, Fault.INTERNAL, "this end failed; see its log")
                    self.flush()

    def _arm_timer(self) -> None:
        """One timer, late rather than often: bytes move the deadline, and nobody re-arms it."""
        deadline = self.core.next_deadline()
        if deadline is not None and self._timer is None:
            self._timer = self._loop.call_at(deadline, self._timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timeout(self) -> None:
        self._timer = None
        self._deliver(self.core.handle_timeout(time.monotonic()))
        self._arm_timer()
        self.flush()


class _Connection(SharedBufferProtocol):
    """One connection of a live session, from the end of its handshake to its loss."""

    __slots__ = ("_lost", "_session", "behind", "paused", "transport")

    def __init__(self, session: LiveSession, transport: asyncio.Transport) -> None:
        self._session = session
        self._lost = False
        self.transport = transport
        self.paused = False
        self.behind = False
        """Whether the core holds more frames of it than it has acted upon."""

    def begin(self, leftover: bytes) -> None:
        """Take what the handshake read too far, then what comes."""
        if leftover:
            self._session._received(self, leftover)
        if not self._lost and not self.behind and not self.transport.is_closing():
            self.transport.resume_reading()

    def hold(self) -> None:
        """Read no more: the core has enough for this turn."""
        self.behind = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def caught_up(self) -> None:
        """Read on. If it was lost meanwhile, that counts from now on."""
        if self._lost:
            self._over()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def buffer_updated(self, nbytes: int) -> None:
        self._session._received(self, READ_BUFFER[:nbytes])

    def eof_received(self) -> bool:
        return False  # a peer that half-closes is gone: close

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._session.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.paused = self._lost = True
        if not self.behind:  # else what it has brought is taken first
            self._over()

    def _over(self) -> None:
        self._session._lost(self)
        # Under TLS it knows us: some 80 KB would wait for a garbage collection, which is rare.
        del self.transport

    def drop(self) -> None:
        """Close at once; nothing that waits is worth sending."""
        self.transport.abort()

    def close(self) -> None:
        """Let what is written leave, within a bound."""
        self.transport.close()
        asyncio.get_running_loop().call_later(CLOSE_S, self.transport.abort)


def tune(transport: asyncio.Transport) -> None:
    """Set a tunnel's socket up: no Nagle, and little waiting in the transport and in the kernel."""
    transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
