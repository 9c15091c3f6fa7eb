"""What all connections of callers share: the handler and its tasks, the limits, and the drain.

An `Edge` owns every task that serves a request, so that no task outlives it. Connections (`h1`,
`h2`) register with it while they are open. It sends no bytes and does not depend on the HTTP
version.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Headers
from wai_transport.heap import HeapTrimmer

from .exchange import Exchange
from .problems import openai_error
from .trusted_proxies import TrustedProxies
from .turns import Turns

# Body bytes that may wait for the handler before an HTTP/1.1 connection is not read any more: four
# DATA frames of the tunnel. HTTP/2 has a window of its own.
READ_AHEAD_BYTES: Final = 64 * 1024
# Response bytes that may wait for a slow caller before `paused`: four DATA frames of the tunnel. A
# fast caller always has data to receive, and 10,000 stalled ones cost no more than 640 MiB.
WRITE_HIGH_WATER_BYTES: Final = 64 * 1024
WRITE_LOW_WATER_BYTES: Final = 16 * 1024
# Unsent bytes that the kernel buffers for one caller (TCP_NOTSENT_LOWAT). The default grows to
# 4 MiB, so that the relay would notice a slow caller late. Bytes in flight are not counted.
UNSENT_BYTES: Final = 128 * 1024
# Time for a whole head, from its first byte (or from the start of the connection): a phone on a bad
# network needs a second or two. It bounds how long a slow-loris attack holds a connection.
HEAD_DEADLINE_S: Final = 15.0
# How long an idle connection is kept; it costs about 10 KiB with its TLS state. nginx keeps them
# for 75 s. The SDKs close theirs after 5 to 60 s, so that the caller closes first, and no request
# meets a connection that is being closed.
IDLE_TIMEOUT_S: Final = 75.0
# Time without a byte of a body that the handler waits for. Longer than any hand-over of a mobile
# network.
BODY_STALL_S: Final = 60.0
# Time without a byte accepted by a caller whose response waits. The request occupies a slot at the
# node for as long.
WRITE_STALL_S: Final = 120.0
# After a refusal the caller may still be sending. Closing a socket with unread bytes makes the
# kernel reset the connection, and the caller might not receive the answer. So the edge reads and
# drops bytes for this long before it closes.
LINGER_S: Final = 3.0
# Time after `close` in which the caller accepts no byte of the rest; then the rest is dropped.
CLOSE_S: Final = 10.0
# How long idle connections are kept after a drain began: a request that is already on its way (one
# round trip around the world takes 0.3 s) is still answered, with `Connection: close`.
DRAIN_GRACE_S: Final = 1.0
# Time that a cancelled handler has for its `finally` blocks.
CANCEL_BOUND_S: Final = 5.0
# One relay is designed for 10,000 open streams. Each connection takes a file descriptor and 50 KiB.
MAX_CONNECTIONS: Final = 20_000
# Connections from one address, which may be an office or a carrier's NAT. Loopback is not counted:
# a proxy on the same host, which terminates TLS for all callers, has that address.
MAX_CONNECTIONS_PER_PEER: Final = 1_000
_DAYS: Final = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS: Final = tuple(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())


class TunnelProtocol(asyncio.Protocol):
    """What takes over the connection of a node. `peer`: its address, which is not the transport's
    if it comes through a trusted proxy."""

    peer = ""


Handler = Callable[[Exchange], Awaitable[None]]
TunnelFactory = Callable[[], asyncio.Protocol]

_REQUEST_ID_CHARS: Final = 24  # 144 random bits
_REQUEST_IDS_AT_ONCE: Final = 128  # one system call for as many requests

_log = logging.getLogger("wai.edge")
_access_log = logging.getLogger("wai.access")


class ServedExchange(Exchange):
    """An exchange that also says whether its response has ended."""

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether the response has ended, normally or aborted."""


class Connection(abc.ABC):
    """The interface of a caller's connection that the edge uses."""

    @abc.abstractmethod
    def drain(self) -> None:
        """Announce the end of the connection; requests in progress go on."""

    @abc.abstractmethod
    def close_if_idle(self) -> None:
        """Close the connection unless a request is in progress: the drain's grace time is over."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Reset the connection, and cancel its requests."""


def http_date(second: int) -> bytes:
    """A time in seconds since 1970 as RFC 9110 section 5.6.7 wants it, whatever the locale is."""
    at = time.gmtime(second)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return b"%b, %02d %b %d %02d:%02d:%02d GMT" % (
        day,
        at.tm_mday,
        month,
        at.tm_year,
        at.tm_hour,
        at.tm_min,
        at.tm_sec,
    )


class EdgeCounters(msgspec.Struct):
    """Counters since start.

    `callers_gone`: requests cancelled because the caller disconnected. `cut`: responses that were
    aborted in the middle. `floods`: connections closed because of a flood of small frames.
    """

    connections: int = 0
    connections_refused: int = 0
    requests: int = 0
    heads_refused: int = 0
    callers_gone: int = 0
    cut: int = 0
    floods: int = 0


class Edge:
    """The handler of requests, and what its connections share. Belongs to one event loop.

    `tunnel_factory`: makes the protocol that takes over the connection of a node (ALPN `wai/1`, or
    HTTP Upgrade). None: no nodes are accepted.
    """

    def __init__(self, handler: Handler, *, tunnel_factory: TunnelFactory | None = None) -> None:
        self.handler = handler
        self.tunnel_factory = tunnel_factory
        self.proxies = TrustedProxies()
        """Whose word is taken for a caller's address."""
        self.connections: set[Connection] = set()
        self.counters = EdgeCounters()
        self.turns = Turns()
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()
        self._heap_trimmer = HeapTrimmer(
            lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call)
        )
        self._request_ids = ""
        self._date_second = 0
        self._date = b""

    # -- connections
    def add(self, connection: Connection) -> None:
        """Register an open connection."""
        self.connections.add(connection)
        self.counters.connections += 1
        self._heap_trimmer.update(len(self.connections))
        if self.draining:
            connection.drain()

    def remove(self, connection: Connection) -> None:
        """Deregister a connection: it is closed, or was handed over to a tunnel."""
        self.connections.discard(connection)
        self._heap_trimmer.update(len(self.connections))
        if self.draining and not self.connections:
            self._all_closed.set()

    # -- requests
    @property
    def serving(self) -> int:
        """The number of requests in progress."""
        return len(self._tasks)

    def serve(self, exchange: ServedExchange) -> asyncio.Task[None]:
        """Run the handler with `exchange` in a task that the edge owns, and return the task."""
        self.counters.requests += 1
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def new_request_id(self) -> str:
        """Return "req_" and 24 random URL-safe characters."""
        if not self._request_ids:
            raw = os.urandom(_REQUEST_ID_CHARS * 3 // 4 * _REQUEST_IDS_AT_ONCE)
            self._request_ids = base64.urlsafe_b64encode(raw).decode("ascii")
        ids = self._request_ids
        self._request_ids = ids[_REQUEST_ID_CHARS:]
        return "req_" + ids[:_REQUEST_ID_CHARS]

    def date(self) -> bytes:
        """Return the current value of the Date header, which is formatted once per second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = http_date(second)
        return self._date

    def refused(self, request: str, error: WaiError) -> None:
        """Count a request that was refused before it reached the handler, and log it.

        `request` is its id. The line goes to the access log.
        """
        self.counters.heads_refused += 1
        row = error.fault.row
        fields = {"request_id": request, "status": row.http_status, "fault": row.openai_code}
        line = " ".join(f"{name}={value}" for name, value in fields.items())
        _access_log.info("%s", line, extra={"fields": fields})

    async def drain(self, bound_s: float, *, idle_s: float = DRAIN_GRACE_S) -> int:
        """Let requests in progress finish for up to `bound_s` seconds, then abort all connections.

        Connections that are idle after `idle_s` seconds are closed. Stop accepting connections
        before you call this. Returns how many connections were aborted.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            loop = asyncio.get_running_loop()
            grace = loop.call_later(min(idle_s, bound_s), self._close_idle)
            try:
                async with asyncio.timeout(bound_s):
                    await self._all_closed.wait()
            except TimeoutError:
                count = len(self.connections)
                _log.warning("drain: %d connections were aborted after %g s", count, bound_s)
            finally:
                grace.cancel()
        cut = list(self.connections)
        for connection in cut:
            connection.abort()
        await self._end_tasks(bound_s)
        return len(cut)

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()

    async def _end_tasks(self, bound_s: float) -> None:
        """Wait for handlers that clean up after their response, and cancel those that hang."""
        for step_s in (min(bound_s, CANCEL_BOUND_S), CANCEL_BOUND_S):
            if not self._tasks:
                return
            await asyncio.wait(self._tasks, timeout=step_s)
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            _log.error("drain: %d handlers ignore their cancellation", len(self._tasks))

    async def _serve(self, exchange: ServedExchange) -> None:
        try:
            await self.handler(exchange)
        except asyncio.CancelledError:
            # Not raised again: the task would keep the error, whose traceback refers to the task,
            # and this cycle would hold 40 KiB until a garbage collection.
            exchange.abort()
        except WaiError as error:
            _log.log(error.fault.row.log_level, "%s: %s", exchange.request.request_id, error)
            fail(exchange, error)
        except Exception:  # any error must be answered
            _log.exception("%s: the handler failed", exchange.request.request_id)
            fail(exchange, WaiError("the relay failed to serve this request", Fault.INTERNAL))
        else:
            if not exchange.finished:
                _log.error("%s: the handler did not end its response", exchange.request.request_id)
                exchange.abort()


def fail(exchange: ServedExchange, error: WaiError) -> None:
    """Answer `exchange` with `error`, or abort its response if that has started.

    The gateway ends a response that it has started by itself, in the caller's dialect
    (`gateway.reply`).
    """
    if exchange.started:
        exchange.abort()
        return
    status, headers, body = refusal(error)
    exchange.start(status, headers)
    exchange.write(body)
    exchange.end()


def refusal(error: WaiError) -> tuple[int, Headers, bytes]:
    """Return status, headers and JSON body of the response for `error`."""
    body = openai_error(error.fault, str(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    return error.fault.row.http_status, headers, body


def body_stalled() -> RequestError:
    """Return the error for a handler whose caller stopped in the middle of a body."""
    return RequestError(
        f"no byte of the request body arrived for {BODY_STALL_S:g} s", Fault.TIMED_OUT
    )
