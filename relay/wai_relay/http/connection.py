"""The common part of HTTP/1.1 and HTTP/2 connections: writing, reading in turns, timer, closing.

`CallerConnection` writes to the transport once per turn of the event loop, and has one timer for
all deadlines. Its subclasses parse and frame the bytes.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from wai_transport.deadline_timer import DeadlineTimer
from wai_transport.read_buffer import READ_BUFFER, SharedBufferProtocol

from .edge import (
    CLOSE_S,
    UNSENT_BYTES,
    WRITE_HIGH_WATER_BYTES,
    WRITE_LOW_WATER_BYTES,
    WRITE_STALL_S,
    Connection,
    Edge,
)
from .liveness import ALIVE_CHECK_S, GONE_S, WATCH_S, peer_state, set_user_timeout, watch
from .turns import SLICE_BYTES, TURN_S, Recent, next_slice_bytes

# SO_LINGER with 0 s makes `close` send a reset. So the caller notices an aborted response even
# where a FIN could be taken for its end.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class CallerConnection(Connection, DeadlineTimer, SharedBufferProtocol):
    """The connection of one caller.

    A caller that closes its sending side counts as disconnected. SDKs and curl never do so while
    they wait for an answer, and a caller that has vanished looks the same. To wait any longer would
    occupy a slot at the node.
    """

    __slots__ = (
        "_check_alive_at",
        "_closing_since",
        "_flush_due",
        "_in_turns",
        "_out",
        "_out_bytes",
        "_queued",
        "_reading_paused",
        "_recent",
        "_slice_bytes",
        "_stalled_since",
        "_taken_at_stall",
        "_timeout_raised",
        "_undecoded",
        "_written_bytes",
        "edge",
        "lost",
        "on_lost",
        "peer",
        "scheme",
        "transport",
    )

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        self.edge = edge
        self.transport: asyncio.Transport
        self.peer = ""
        self.scheme = "http"
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # the listener's: it counts connections
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._closing_since: float | None = None
        self._written_bytes = 0  # passed to the transport
        self._stalled_since: float | None = None
        self._taken_at_stall = 0  # the value of `_taken_bytes` when the stall began
        self._check_alive_at = 0.0  # when to check whether a stalled caller is alive
        self._timeout_raised = False  # whether the kernel's timeout is raised for a live caller
        self._reading_paused = False
        self._in_turns = False  # whether bytes of one read are decoded in several turns
        self._undecoded = b""  # bytes to decode in a later turn of the event loop
        self._queued = False  # whether the edge's `turns` will call `take_turn`
        self._recent = Recent()
        self._slice_bytes = SLICE_BYTES  # smaller while slices take long

    # -- implemented by subclasses
    @abc.abstractmethod
    def caller_gone(self) -> None:
        """Cancel the requests in progress: the connection is lost or will be closed."""

    @abc.abstractmethod
    def next_deadline(self) -> float | None:
        """Return when, by the loop's clock, `overdue` is to be called; None: nothing is awaited."""

    @abc.abstractmethod
    def overdue(self, now: float) -> None:
        """Handle a deadline that has passed, so that `next_deadline` is later than `now` again."""

    @property
    @abc.abstractmethod
    def answering(self) -> bool:
        """Whether a request is being served."""

    @abc.abstractmethod
    def writable_again(self) -> None:
        """Continue to write: the transport has accepted enough."""

    @abc.abstractmethod
    def data_received(self, data: bytes) -> None:
        """Process bytes from the caller."""

    @abc.abstractmethod
    def take_slice(self, data: bytes) -> None:
        """Decode a piece of the bytes that were passed to `receive_in_turns`."""

    # -- called by asyncio
    def buffer_updated(self, nbytes: int) -> None:
        """Process the caller's bytes in `READ_BUFFER`."""
        self.data_received(bytes(READ_BUFFER[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. The listener calls this once it has recognized the protocol."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        self.transport.set_write_buffer_limits(WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES)
        self.peer = peer_name(transport)
        if transport.get_extra_info("ssl_object") is not None:
            self.scheme = "https"
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already: `connection_lost` follows
                watch(sock)
        self.edge.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Deregister and cancel: the transport is closed, by either side."""
        self.lost = True
        self._out.clear()
        self._undecoded = b""
        self.leave()
        self.caller_gone()
        # uvloop's TLS transport keeps a reference to its protocol; without this the cycle would
        # exist until a garbage collection. `transport` is not used once `lost` is set.
        del self.transport

    def leave(self) -> None:
        """Deregister from the edge: the connection is closed, or handed over to a tunnel."""
        self.disarm()
        self.edge.remove(self)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def eof_received(self) -> bool:
        """Close: the caller closed its sending side (see the class)."""
        self.caller_gone()
        self.close()
        return False

    def pause_writing(self) -> None:
        """Note the beginning of a stall: the caller accepts less than it is sent."""
        self._stalled_since = self._loop.time()
        self._taken_at_stall = self._taken_bytes
        self._check_alive_at = self._stalled_since + ALIVE_CHECK_S
        self.arm(self._check_alive_at)

    def resume_writing(self) -> None:
        """End the stall: the caller accepted most of the waiting bytes (all of them if closing)."""
        self._stalled_since = None
        if self.closing:
            self.transport.close()
            return
        if self._timeout_raised:
            self._timeout_raised = False
            self._set_user_timeout(GONE_S)
        self.writable_again()

    # -- reading
    @property
    def undivided_bytes(self) -> int:
        """How many of the next bytes are quick to decode, so that they need not be divided."""
        return 0

    def receive_in_turns(self, data: bytes) -> None:
        """Pass `data` to `take_slice` in pieces; if that takes long, continue in a later turn."""
        if self._queued:
            self._undecoded += data
        elif self._recent.is_modest(self._loop.time()):
            self._take_slices(data, TURN_S)
        elif self.edge.turns.crowded:
            self._in_turns = True
            self._queue(data)
        else:
            self._take_slices(data, self.edge.turns.left_s)

    def _take_slices(self, data: bytes, limit_s: float) -> None:
        """Decode at least one slice, and queue what is left after `limit_s`."""
        turns = self.edge.turns
        size = len(data)
        self._in_turns = self._in_turns or size > SLICE_BYTES
        began = turns.clock()  # not the loop's clock, which stands still within a turn
        start, spent_s = 0, 0.0
        while start < size and not self.lost and not self.closing:
            if start and spent_s >= limit_s:
                self._queue(data[start:])
                break
            end = start + max(self._slice_bytes, self.undivided_bytes)
            self.take_slice(data[start:end])
            start = end
            before_s, spent_s = spent_s, turns.clock() - began
            self._slice_bytes = next_slice_bytes(self._slice_bytes, spent_s - before_s)
        else:
            self._in_turns = False
        self._recent.spend(spent_s, self._loop.time())
        turns.spend(spent_s)

    def _queue(self, data: bytes) -> None:
        self._undecoded = data
        self._queued = True
        self.pause_reading()
        self.edge.turns.wait(self)

    def take_turn(self) -> None:
        """Decode more of the bytes that were left over by earlier turns."""
        self._queued = False
        data, self._undecoded = self._undecoded, b""
        if not self.lost and not self.closing:
            self._take_slices(data, self.edge.turns.left_s)
            if not self._queued:
                self.turns_over()

    def turns_over(self) -> None:
        """Resume reading: all received bytes are decoded."""
        self.resume_reading()

    def pause_reading(self) -> None:
        """Stop reading; the caller's bytes stay in the kernel."""
        if not self._reading_paused and not self.lost:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, unless there are bytes that are not decoded yet."""
        if self._reading_paused and not self._queued and not self.lost:
            self._reading_paused = False
            self.transport.resume_reading()

    # -- writing
    @property
    def write_paused(self) -> bool:
        """Whether too many bytes wait to be sent, those of this turn included."""
        return self._stalled_since is not None or self._out_bytes > WRITE_HIGH_WATER_BYTES

    def send(self, data: bytes) -> None:
        """Send `data` at the end of this turn of the event loop, joined with others."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush_soon(self) -> None:
        """Call `flush` once at the end of this turn."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the waiting bytes with one call: under TLS, each write makes a record."""
        self._flush_due = False
        out = self._out
        if not out or self.lost:
            return
        was_over = self._out_bytes > WRITE_HIGH_WATER_BYTES
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_bytes = 0
        self._written_bytes += len(data)
        self.transport.write(data)
        if was_over and self._stalled_since is None:
            self.writable_again()

    # -- the timer
    def handle_timeout(self, now: float) -> None:
        """Handle what is overdue at `now` (the loop's clock), and set the timer again."""
        if self.lost:
            return
        if self._closing_since is not None:
            if now >= self._closing_since + CLOSE_S:
                taken = self._taken_bytes
                if taken <= self._taken_at_stall:
                    self.abort()
                    return
                self._closing_since, self._taken_at_stall = now, taken
            deadline: float | None = self._closing_since + CLOSE_S
        elif self._is_stalled(now):
            self.edge.counters.cut += 1
            self.abort()
            return
        else:
            deadline = self.next_deadline()
            if deadline is not None and now >= deadline:
                self.overdue(now)
                deadline = self.next_deadline()
            if not self.lost and (self._stalled_since is not None or self.answering):
                if now >= self._check_alive_at:
                    self._check_alive(now)
                watch_deadline = self._check_alive_at
                if self._stalled_since is not None:
                    watch_deadline = min(self._stalled_since + WRITE_STALL_S, watch_deadline)
                deadline = watch_deadline if deadline is None else min(deadline, watch_deadline)
        if deadline is not None and not self.lost:
            self.arm(deadline)

    def watch_answer(self) -> None:
        """Check from time to time, from now until the end of the answer, that the caller lives."""
        self._check_alive_at = self._loop.time() + WATCH_S
        self.arm(self._check_alive_at)

    def _check_alive(self, now: float) -> None:
        """Abort if the caller closed its window and vanished, keep it if it only reads nothing.

        The kernel does not distinguish the two, and would end the connection before
        `WRITE_STALL_S` in both cases.
        """
        self._check_alive_at = now + (WATCH_S if self._stalled_since is None else ALIVE_CHECK_S)
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return
        try:
            state = peer_state(sock)
        except OSError:
            return  # closed already: `connection_lost` follows
        if state is None:
            return
        if state.has_vanished:
            self.abort()
        elif state.has_closed_window:
            self._timeout_raised = True
            self._set_user_timeout(state.user_timeout_s)
        elif self._timeout_raised:
            self._timeout_raised = False
            self._set_user_timeout(GONE_S)

    def _set_user_timeout(self, limit_s: float) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already
                set_user_timeout(sock, limit_s)

    @property
    def _taken_bytes(self) -> int:
        """How many of the written bytes the transport has passed to the kernel."""
        return self._written_bytes - self.transport.get_write_buffer_size()

    def _is_stalled(self, now: float) -> bool:
        if self._stalled_since is None or now < self._stalled_since + WRITE_STALL_S:
            return False
        taken = self._taken_bytes
        if taken > self._taken_at_stall:  # the caller is slow, but accepts bytes
            self._stalled_since, self._taken_at_stall = now, taken
            return False
        return True

    # -- the end
    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing_since is not None

    def close(self) -> None:
        """Close once the waiting bytes are sent. Abort if the caller accepts none for `CLOSE_S`."""
        if self._closing_since is not None or self.lost:
            return
        self.flush()
        self._closing_since = self._loop.time()
        self._taken_at_stall = self._taken_bytes
        self.arm(self._closing_since + CLOSE_S)
        if self.transport.get_write_buffer_size():
            # A TLS transport drops the bytes that still wait 5 s after its `close`. So it is closed
            # only when all are sent: see `resume_writing`.
            self.transport.set_write_buffer_limits(0, 0)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection, without a FIN or TLS close-notify that would look like an end."""
        if self.lost:
            return
        self._out.clear()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Return the peer's IP address without its port, for logs and limits; "" if there is none.

    An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is returned as IPv4. A dual-stack socket
    from a service manager has such peers.
    """
    return peer_name_in(transport.get_extra_info("peername"))


def peer_name_in(name: Any) -> str:
    """Return the IP address in a peer's socket address, as `peer_name` does."""
    address = str(name[0]) if isinstance(name, tuple) and name else ""
    mapped = address.startswith("::ffff:") and "." in address
    return address.removeprefix("::ffff:") if mapped else address


def peer_key(peer: str) -> str:
    """Return the key for counting connections: an IPv4 address, an IPv6 /64 network, or "".

    "" means not counted. That holds for loopback, because a proxy on this host has that address for
    all its callers.
    """
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif not address.is_loopback:
            return str(ipaddress.IPv6Network((address, 64), strict=False))
    return "" if address.is_loopback else str(address)


def limit_unsent(sock: socket.socket) -> None:
    """Bound the unsent bytes in the kernel for each connection accepted from the socket `sock`."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
