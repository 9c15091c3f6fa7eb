"""What all callers' connections share: the handler, its tasks, the limits, and the drain.

An `Edge` owns every task that serves a request, so that none outlives it unseen; connections
(`h1`, `h2`) register here while they live. It moves no bytes and knows no HTTP version.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Headers
from wai_transport.heap import HeapTrimmer

from .exchange import Exchange
from .problems import openai_error

# Body bytes that may wait for the handler: two of the kernel's usual reads, and four times what a
# node's stream takes in one frame. Then the connection isn't read (h1); h2 has a window of its own.
READ_AHEAD_BYTES: Final = 64 * 1024
# Received bytes are decoded in slices. A connection whose bytes take longer than `TURN_S` goes on
# in the loop's next turn, and after `BUSY_S` of that it rests as long: the smallest frames cost
# 20 µs for 9 bytes, so that one read of the socket (256 KiB) could hold the loop for half a second.
# An honest caller's slice takes 3 µs. Both times are the processor's.
SLICE_BYTES: Final = 2 * 1024
TURN_S: Final = 0.002
BUSY_S: Final = 0.1
# Response bytes that may wait for a slow caller before `paused`: four DATA frames of the tunnel, so
# that a fast caller never runs dry, and 10,000 stalled ones cost no more than 640 MiB.
WRITE_HIGH_WATER_BYTES: Final = 64 * 1024
WRITE_LOW_WATER_BYTES: Final = 16 * 1024
# Unsent bytes that the kernel takes for one caller. Its default grows to 4 MiB, behind which a slow
# caller's back-pressure would hide; the bytes in flight on a fast path are not counted here.
UNSENT_BYTES: Final = 128 * 1024
# From the first byte of a head (or the connection's start) to its last: a phone on a bad network
# needs a second or two; the longest wait that a slow-loris gets per connection.
HEAD_DEADLINE_S: Final = 15.0
# An idle connection costs about 10 KiB with its TLS state. nginx keeps them for 75 s; the SDKs'
# pools drop theirs after 5 s to 60 s, so that the caller closes first and nothing races.
IDLE_TIMEOUT_S: Final = 75.0
# No body is longer, whatever the handler would take: the gateway's own limit. A chunk that
# announces more is refused before its first byte comes.
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
# No byte of a body that the handler waits for. Above mobile networks' worst hand-over.
BODY_STALL_S: Final = 60.0
# No byte taken by a caller whose response waits: it holds a slot at the node for that long.
WRITE_STALL_S: Final = 120.0
# How often it is looked whether a caller that takes no byte is alive: less than the 25 s after
# which the kernel ends a connection that answers nothing (`liveness`).
LOOK_S: Final = 10.0
# After a refusal the caller may still be sending: a close with unread bytes makes the kernel reset
# the connection, and the answer is lost on the way. So what comes is read and dropped, this long.
LINGER_S: Final = 3.0
# No byte taken of what waits after `close`; then the rest is dropped.
CLOSE_S: Final = 10.0
# Idle connections live this long after the drain began: a request that is already on its way
# (one round trip around the world is 0.3 s) is still answered, with `Connection: close`.
DRAIN_GRACE_S: Final = 1.0
# A cancelled handler has this long for its `finally`.
CANCEL_BOUND_S: Final = 5.0
# 10,000 open streams is what one relay is built for; above it, a file descriptor and 50 KiB each.
MAX_CONNECTIONS: Final = 20_000
# One address may be an office or a carrier's NAT, but not everybody. Loopback is not counted: a
# proxy on the same host, which ends TLS for all callers, has that address.
MAX_CONNECTIONS_PER_PEER: Final = 1_000

Handler = Callable[[Exchange], Awaitable[None]]
TunnelFactory = Callable[[], asyncio.Protocol]

_REQUEST_ID_CHARS: Final = 24  # 144 random bits
_REQUEST_IDS_AT_ONCE: Final = 128  # one system call for as many requests

_log = logging.getLogger("wai.edge")
_access_log = logging.getLogger("wai.access")


class ServedExchange(Exchange):
    """An exchange as the edge sees it: it also tells whether the response is over."""

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether the response ended, cleanly or not."""


class Connection(abc.ABC):
    """What the edge asks of a caller's connection."""

    @abc.abstractmethod
    def drain(self) -> None:
        """Take no new work for long: announce the end, finish what runs."""

    @abc.abstractmethod
    def close_if_idle(self) -> None:
        """The drain's grace is over: close unless a request is being served."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Reset the connection; what it serves is cancelled."""


@dataclass(slots=True)
class Counters:
    """Since the edge was made. `cut`: responses that ended visibly broken."""

    connections: int = 0
    connections_refused: int = 0
    requests: int = 0
    heads_refused: int = 0
    callers_gone: int = 0
    cut: int = 0
    floods: int = 0


class Edge:
    """The handler and everything that its connections share. Belongs to one loop.

    `tunnel_factory` makes the protocol that takes over a connection which turns out to be a node's
    (ALPN `wai/1`, or HTTP Upgrade); without it there are no nodes here.
    """

    def __init__(self, handler: Handler, *, tunnel_factory: TunnelFactory | None = None) -> None:
        self.handler = handler
        self.tunnel_factory = tunnel_factory
        self.connections: set[Connection] = set()
        self.counters = Counters()
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
        """A connection opened."""
        self.connections.add(connection)
        self.counters.connections += 1
        self._heap_trimmer.update(len(self.connections))
        if self.draining:
            connection.drain()

    def remove(self, connection: Connection) -> None:
        """A connection is gone, or is a node's from now on."""
        self.connections.discard(connection)
        self._heap_trimmer.update(len(self.connections))
        if self.draining and not self.connections:
            self._all_closed.set()

    # -- requests
    @property
    def serving(self) -> int:
        """How many handlers run now."""
        return len(self._tasks)

    def serve(self, exchange: ServedExchange) -> asyncio.Task[None]:
        """Run the handler with `exchange`, in a task that the edge owns."""
        self.counters.requests += 1
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def new_request_id(self) -> str:
        """ "req_" and 24 random URL-safe characters."""
        if not self._request_ids:
            raw = os.urandom(_REQUEST_ID_CHARS * 3 // 4 * _REQUEST_IDS_AT_ONCE)
            self._request_ids = base64.urlsafe_b64encode(raw).decode("ascii")
        ids = self._request_ids
        self._request_ids = ids[_REQUEST_ID_CHARS:]
        return "req_" + ids[:_REQUEST_ID_CHARS]

    def date(self) -> bytes:
        """The value of `Date` now; made once a second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = formatdate(second, usegmt=True).encode("ascii")
        return self._date

    def refused(self, request: str, error: WaiError) -> None:
        """A head was refused before any handler saw it: counted, and a line in the access log.
        `request` is its id."""
        self.counters.heads_refused += 1
        row = error.fault.row
        fields = {"request_id": request, "status": row.http_status, "fault": row.openai_code}
        line = " ".join(f"{name}={value}" for name, value in fields.items())
        _access_log.info("%s", line, extra={"fields": fields})

    async def drain(self, bound_s: float, *, idle_s: float = DRAIN_GRACE_S) -> int:
        """Finish within `bound_s` seconds: what runs ends by itself, the rest is cut.

        Connections that are idle after `idle_s` are closed. Stop accepting before this. Returns
        how many connections had to be cut.
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
                _log.warning("drain: %d connections cut after %g s", len(self.connections), bound_s)
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
        """Handlers may still tidy up after their response; those that hang are cancelled."""
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
            # The task ends here. Raised on, the error would stay with the task, and its traceback
            # holds every frame, the task among them: 40 KiB until a garbage collection.
            exchange.abort()
        except WaiError as error:
            _log.log(error.fault.row.log_level, "%s: %s", exchange.request.request_id, error)
            fail(exchange, error)
        except Exception:  # whatever it is, its caller must hear of it
            _log.exception("%s: the handler failed", exchange.request.request_id)
            fail(exchange, WaiError("the relay failed to serve this request", Fault.INTERNAL))
        else:
            if not exchange.finished:
                _log.error("%s: the handler left its response open", exchange.request.request_id)
                exchange.abort()


def fail(exchange: ServedExchange, error: WaiError) -> None:
    """Answer `exchange` with `error`; where the response began already, break it visibly. What the
    gateway has begun it breaks itself, in its caller's dialect (`gateway.reply`)."""
    if exchange.started:
        exchange.abort()
        return
    status, headers, body = refusal(error)
    exchange.start(status, headers)
    exchange.write(body)
    exchange.end()


def refusal(error: WaiError) -> tuple[int, Headers, bytes]:
    """Status, headers and JSON body of the answer that tells a caller about `error`."""
    body = openai_error(error.fault, str(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    return error.fault.row.http_status, headers, body


def body_stalled() -> RequestError:
    """What a handler reads whose caller stopped in the middle of its body."""
    return RequestError(f"no byte of the request body came for {BODY_STALL_S:g} s", Fault.TIMED_OUT)
