"""What HTTP/1.1 and HTTP/2 connections have in common: joined writes, one coarse timer, closing.

`CallerConnection` moves bytes to the transport once per loop turn and keeps the one timer; what the
bytes mean is its subclasses' business.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final, cast

from wai_transport.read_buffer import READ_BUFFER, SharedBufferProtocol

from .edge import (
    BUSY_S,
    CLOSE_S,
    LOOK_S,
    SLICE_BYTES,
    TURN_S,
    UNSENT_BYTES,
    WRITE_HIGH_WATER_BYTES,
    WRITE_LOW_WATER_BYTES,
    WRITE_STALL_S,
    Connection,
    Edge,
)
from .liveness import GONE_S, has_shut_its_window, set_unanswered_limit, watch

# SO_LINGER on, 0 s: `close` then resets, and the caller sees its response cut even where a plain
# FIN could pass for the end of it.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class CallerConnection(Connection, SharedBufferProtocol):
    """One caller's connection. Subclasses read; this writes, times and closes.

    A caller that closes its sending side counts as gone: SDKs and curl never do so while they wait
    for an answer, and a vanished caller looks just like it. Waiting to find out would hold a slot.
    """

    __slots__ = (
        "_busy_s",
        "_closing_since",
        "_flush_due",
        "_in_turns",
        "_later",
        "_limit_raised",
        "_look_at",
        "_loop",
        "_out",
        "_out_bytes",
        "_reading_paused",
        "_stalled_since",
        "_taken_at_stall",
        "_timer",
        "_timer_at",
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
        self.edge = edge
        self.transport: asyncio.Transport
        self.peer = ""
        self.scheme = "http"
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # whoever counted this connection in
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing_since: float | None = None
        self._written_bytes = 0  # given to the transport
        self._stalled_since: float | None = None
        self._taken_at_stall = 0  # of `_written_bytes`, when the stall began
        self._look_at = 0.0  # when to look whether a stalled caller is alive
        self._limit_raised = False  # it is: the kernel waits for it as long as we do
        self._reading_paused = False
        self._in_turns = False  # in the midst of what `receive_in_turns` was given
        self._undecoded = b""  # the rest of that, for a later turn of the loop
        self._later: asyncio.Handle | None = None
        self._busy_s = 0.0  # spent on what was given, in the turns so far

    # -- what subclasses say
    @abc.abstractmethod
    def caller_gone(self) -> None:
        """The connection is lost or about to be: cancel what is served on it."""

    @abc.abstractmethod
    def next_deadline(self) -> float | None:
        """When, by the loop's clock, something is overdue; None while nothing is awaited."""

    @abc.abstractmethod
    def overdue(self, now: float) -> None:
        """The deadline passed: act, so that `next_deadline` lies ahead of `now` again."""

    @abc.abstractmethod
    def writable_again(self) -> None:
        """The transport took enough: who waited may go on."""

    @abc.abstractmethod
    def data_received(self, data: bytes) -> None:
        """Bytes from the caller."""

    @abc.abstractmethod
    def take_slice(self, data: bytes) -> None:
        """Decode a piece of what `receive_in_turns` was given."""

    # -- asyncio's calls
    def buffer_updated(self, nbytes: int) -> None:
        """Bytes from the caller are in `READ_BUFFER`."""
        self.data_received(bytes(READ_BUFFER[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. The listener calls this once it knows which protocol is spoken."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES)
        self.peer = peer_name(transport)
        if transport.get_extra_info("ssl_object") is not None:
            self.scheme = "https"
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # gone already: `connection_lost` comes next
                watch(sock)
        self.edge.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        self.lost = True
        self._out.clear()
        self._undecoded = b""
        self.leave()
        self.caller_gone()
        # uvloop's TLS transport keeps its protocol: without this the two would outlive the caller
        # until a garbage collection. Nothing is asked of a transport once `lost` is set.
        del self.transport

    def leave(self) -> None:
        """The edge has this connection no more: it is gone, or it is a node's from now on."""
        self._disarm()
        self.edge.remove(self)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def eof_received(self) -> bool:
        """The caller sends no more: see the class's docstring."""
        self.caller_gone()
        self.close()
        return False

    def pause_writing(self) -> None:
        """The caller takes less than it is sent."""
        self._stalled_since = self._loop.time()
        self._taken_at_stall = self._taken_bytes
        self._look_at = self._stalled_since + LOOK_S
        self.arm(self._look_at)

    def resume_writing(self) -> None:
        """The caller took most of what waited, or all of it if we are closing."""
        self._stalled_since = None
        if self.closing:
            self.transport.close()
            return
        if self._limit_raised:
            self._limit_raised = False
            self._limit_unanswered(GONE_S)
        self.writable_again()

    # -- reading
    @property
    def slice_bytes(self) -> int:
        """How much to decode at a time."""
        return SLICE_BYTES

    def receive_in_turns(self, data: bytes) -> None:
        """Give `data` to `take_slice` in pieces; what would take too long goes on later."""
        if self._later is not None:
            self._undecoded += data
        elif len(data) <= SLICE_BYTES:
            self.take_slice(data)
        else:
            self._take_slices(data)

    def _take_slices(self, data: bytes) -> None:
        self._in_turns = True
        began = time.thread_time()  # not the loop's clock, which stands still within a turn
        start, size = 0, len(data)
        while start < size:
            if self.lost or self.closing:
                return
            spent_s = time.thread_time() - began
            if spent_s > TURN_S:
                self._undecoded = data[start:]
                self.pause_reading()
                self._take_rest_later(spent_s)
                return
            end = start + self.slice_bytes
            self.take_slice(data[start:end])
            start = end
        self._in_turns = False
        self._busy_s = 0.0

    def _take_rest_later(self, spent_s: float) -> None:
        self._busy_s += spent_s
        if self._busy_s < BUSY_S:
            self._later = self._loop.call_soon(self._take_rest)
        else:
            self._later = self._loop.call_later(self._busy_s, self._take_rest)
            self._busy_s = 0.0

    def _take_rest(self) -> None:
        self._later = None
        data, self._undecoded = self._undecoded, b""
        if not self.lost and not self.closing:
            self._take_slices(data)
            if self._later is None:
                self.turns_over()

    def turns_over(self) -> None:
        """All that came is decoded: read on."""
        self.resume_reading()

    def pause_reading(self) -> None:
        """Leave what the caller sends in the kernel."""
        if not self._reading_paused and not self.lost:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless what has come is still to be decoded."""
        if self._reading_paused and self._later is None and not self.lost:
            self._reading_paused = False
            self.transport.resume_reading()

    # -- writing
    @property
    def write_paused(self) -> bool:
        """Whether more waits than a transport should hold, this turn's bytes included."""
        return self._stalled_since is not None or self._out_bytes > WRITE_HIGH_WATER_BYTES

    def send(self, data: bytes) -> None:
        """Send at the end of this loop turn, joined with what else is sent in it."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush_soon(self) -> None:
        """Have `flush` called once at the end of this turn."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand over to the transport, in one write, what waits: under TLS each costs a record."""
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
    def arm(self, deadline: float) -> None:
        """Look at the deadlines at `deadline` at the latest.

        A timer that is already set for earlier stays: it finds nothing overdue and moves on, which
        is cheaper than a new timer for each request.
        """
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.handle_timeout(self._loop.time())

    def handle_timeout(self, now: float) -> None:
        """Act on what is overdue at `now` (the loop's clock, seconds); set the timer again."""
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
            if self._stalled_since is not None and not self.lost:
                if now >= self._look_at:
                    self._look(now)
                stall_deadline = min(self._stalled_since + WRITE_STALL_S, self._look_at)
                deadline = stall_deadline if deadline is None else min(deadline, stall_deadline)
        if deadline is not None and not self.lost:
            self.arm(deadline)

    def _look(self, now: float) -> None:
        """Have the kernel wait for a caller that is alive and reads nothing as long as we do.

        To the kernel's timeout it looks just like one that has vanished.
        """
        self._look_at = now + LOOK_S
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return
        try:
            alive = has_shut_its_window(sock)
        except OSError:
            return  # gone already: `connection_lost` comes next
        if alive is not self._limit_raised:
            self._limit_raised = alive
            self._limit_unanswered(WRITE_STALL_S + LOOK_S if alive else GONE_S)

    def _limit_unanswered(self, limit_s: float) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # as in `_look`
                set_unanswered_limit(sock, limit_s)

    @property
    def _taken_bytes(self) -> int:
        """How much of what was written the transport got rid of."""
        return self._written_bytes - self.transport.get_write_buffer_size()

    def _is_stalled(self, now: float) -> bool:
        if self._stalled_since is None or now < self._stalled_since + WRITE_STALL_S:
            return False
        taken = self._taken_bytes
        if taken > self._taken_at_stall:  # slow, but alive, however much was written meanwhile
            self._stalled_since, self._taken_at_stall = now, taken
            return False
        return True

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the end
    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing_since is not None

    def close(self) -> None:
        """Close once what waits is sent, as long as the caller takes some of it."""
        if self._closing_since is not None or self.lost:
            return
        self.flush()
        self._closing_since = self._loop.time()
        self._taken_at_stall = self._taken_bytes
        self.arm(self._closing_since + CLOSE_S)
        if self.transport.get_write_buffer_size():
            # Under TLS a transport drops after 5 s what it was closed with: see `resume_writing`.
            self.transport.set_write_buffer_limits(0, 0)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection: no FIN, no TLS close-notify, nothing that looks like an end."""
        if self.lost:
            return
        self._out.clear()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already: then there is nothing to reset
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The caller's address for logs and limits, without its port; "" where there is none.

    IPv4 is IPv4, also on a socket for both that a service manager opened (RFC 4291, 2.5.5.2).
    """
    name: Any = transport.get_extra_info("peername")
    address = str(name[0]) if isinstance(name, tuple) and name else ""
    mapped = address.startswith("::ffff:") and "." in address
    return address.removeprefix("::ffff:") if mapped else address


def limit_unsent(sock: socket.socket) -> None:
    """Bound what the kernel takes for one caller. Sockets accepted from `sock` inherit it."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
