"""An HTTP/1.1 client for one origin, used for a node's upstreams and a relay's cloud providers.

Each request uses a connection from a small keep-alive pool, or a new one. A request is sent again
on a new connection if the kept-alive one turns out to be closed, but not if it closes later, while
the server works. The client follows no redirects, keeps no cookies, decodes no content and buffers
no bodies, except that of `fetch`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import Callable
from typing import Final, TypeVar

from wai_protocol.errors import Fault, TransportError, WaiError
from wai_protocol.http1 import request_head
from wai_protocol.surface import Headers
from wai_protocol.websocket import accept_token, new_key

from .connecting import create_connection
from .http_connection import HttpConnection
from .http_proxy import DIRECT, ProxySettings
from .http_request import RESEND_BYTES, ClientRequest, ResponseSink, Timeouts
from .origin import Origin
from .proxied import create_connection_through
from .tls import check_pin, client_context

T = TypeVar("T")

MAX_IDLE_CONNECTIONS: Final = 32
"""Idle connections kept per origin: more than an inference server has slots. Each takes a file
descriptor at both ends."""

_log = logging.getLogger("wai.transport")


class HttpClient:
    """Sends requests to `origin`. Belongs to one running event loop; `aclose` ends it.

    `pin`: the SHA-256 of the server's public key (see `tls`), checked before a byte is sent.
    Without it, `tls` or the system's certificate authorities verify the server. `proxies`: the way
    to it; raises `RequestError` for a proxy that can't be used. `check_peer`:
    called for each new connection before a byte is sent, with the connection's local port (None for
    a Unix socket); it raises `WaiError` if the connection must not be used.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        tls: ssl.SSLContext | None = None,
        pin: bytes | None = None,
        timeouts: Timeouts | None = None,
        proxies: ProxySettings = DIRECT,
        check_peer: Callable[[int | None], None] | None = None,
    ) -> None:
        self.origin = origin
        self.check_peer = check_peer
        self.timeouts = timeouts or Timeouts()
        self._authority = origin.authority.encode("ascii")
        self._pin = pin
        self._proxy = proxies.to(origin)
        self._tls = tls
        if origin.scheme == "https" and tls is None:
            self._tls = client_context(pin, ["http/1.1"])
        self._idle: list[HttpConnection] = []  # the last is the youngest, and is used first
        self._connections: set[HttpConnection] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()
        self._keeping = True

    def request(
        self,
        method: str,
        target: str,
        headers: Headers,
        sink: ResponseSink,
        *,
        body_length: int | None = 0,
        timeouts: Timeouts | None = None,
    ) -> ClientRequest:
        """Begin a request. Its answer is passed to `sink`, never before this method returns.

        `body_length`: the exact length of the body in bytes, None for a chunked body. Call `end` on
        the result, even without a body. Raises `LocalProtocolError` if method, target or headers
        are not valid in HTTP.
        """
        head = request_head(
            method, target, headers, authority=self._authority, body_length=body_length
        )
        request = ClientRequest(
            method, head, sink, body_length, timeouts or self.timeouts, self._connect_again
        )
        # The server may be closing a kept-alive connection at this moment. A request whose body is
        # too long to be sent again gets a new connection.
        repeatable = body_length is not None and body_length <= RESEND_BYTES
        while repeatable and self._idle:
            connection = self._idle.pop()
            if connection.usable:
                request.attach(connection, reused=True)
                return request
        self._connect_again(request)
        return request

    def open_websocket(
        self, target: str, headers: Headers, sink: ResponseSink, *, timeouts: Timeouts | None = None
    ) -> ClientRequest:
        """Begin the handshake of a WebSocket (RFC 6455), on a connection of its own.

        If the server agrees, `sink` gets a 101, and then the bytes of its frames; what is written
        to the result goes out as it is: frames, once the 101 has come. Any other answer is that of
        a plain GET. Raises as `request` does.
        """
        key = new_key()
        head = request_head(
            "GET", target, headers, authority=self._authority, body_length=0, websocket_key=key
        )
        limits = timeouts or self.timeouts
        request = ClientRequest(
            "GET", head, sink, None, limits, self._connect_again, accept_token(key)
        )
        self._connect_again(request)
        return request

    async def fetch(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes = b"",
        *,
        limit_bytes: int,
        timeout_s: float,
    ) -> tuple[int, Headers, bytes]:
        """Send a request and return the whole answer: (status, headers, body).

        Raises `WaiError`: the connection's error, UPSTREAM_TIMEOUT after `timeout_s`, or
        UPSTREAM_BROKE if the answer's body is longer than `limit_bytes`.
        """
        answer = _Answer(limit_bytes)
        request = self.request(method, target, headers or [], answer, body_length=len(body))
        request.write(body)
        return await self.answered(request, answer.done, timeout_s)

    async def accepts_websocket(
        self, target: str, headers: Headers, *, limit_bytes: int, timeout_s: float
    ) -> bool:
        """Return whether the server agrees to a WebSocket, which is closed at once. Raises as
        `fetch` does."""
        answer = _Answer(limit_bytes)
        request = self.open_websocket(target, headers, answer)
        status, _, _ = await self.answered(request, answer.done, timeout_s)
        return status == 101

    async def answered(
        self, request: ClientRequest, done: asyncio.Future[T], timeout_s: float
    ) -> T:
        """End `request`, and return what its sink puts into `done`; then it is closed. Raises
        UPSTREAM_TIMEOUT after `timeout_s`, and what is put there."""
        try:
            request.end()
            async with asyncio.timeout(timeout_s):
                return await done
        except TimeoutError as error:
            raise TransportError(
                f"{self.origin} did not answer within {timeout_s:g} s", Fault.UPSTREAM_TIMEOUT
            ) from error
        finally:
            request.close()

    @property
    def open_connections(self) -> int:
        """The number of open connections, idle ones included: for metrics and leak checks."""
        return len(self._connections)

    @property
    def idle_connections(self) -> int:
        """The number of connections that wait for a next request."""
        return len(self._idle)

    def retire(self) -> None:
        """Keep no connection for a next request; requests in progress go on to their end."""
        self._keeping = False
        for connection in list(self._idle):
            connection.abort()

    async def aclose(self) -> None:
        """Close every connection at once; requests in progress end with an error."""
        dialling = list(self._dialling)
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()

    def _connect_again(self, request: ClientRequest) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(request))
        request.connecting = task
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        task.add_done_callback(functools.partial(self._dialling_ended, request))

    async def _connect(self, request: ClientRequest) -> None:
        """Open a connection and pass it, or the error, to `request`."""
        try:
            connection = await self._dial()
        except WaiError as error:
            request.connecting = None
            request.fail(error)
        else:
            request.attach(connection, reused=False)

    def _dialling_ended(self, request: ClientRequest, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            request.fail(TransportError(f"the client for {self.origin} was closed"))
        elif (error := task.exception()) is not None:
            _log.error("a connection to %s failed by a fault of ours", self.origin, exc_info=error)
            message = f"{self.origin} can't be reached: this end failed, and its log says why"
            request.fail(TransportError(message, Fault.INTERNAL))

    async def _dial(self) -> HttpConnection:
        limit_s = self.timeouts.connect_s
        place = f"{self.origin}"
        if self._proxy is not None:
            place += f", through the proxy {self._proxy},"
        try:
            connection = await self._open(limit_s)
        except TimeoutError as error:
            met = f" ({error.strerror})" if error.strerror else ""
            message = f"{place} accepted no connection within {limit_s:g} s{met}"
            raise TransportError(message) from error
        except ssl.SSLCertVerificationError as error:
            message = f"{self.origin}'s certificate is not valid: {error.verify_message}"
            raise TransportError(message) from error
        except OSError as error:
            raise TransportError(f"{place} can't be reached: {error}") from error
        if not connection.usable:
            raise TransportError(f"{self.origin} closed the connection at once")
        self._connections.add(connection)
        try:
            if self._pin is not None:
                check_pin(connection.transport.get_extra_info("ssl_object"), self._pin)
            if self.check_peer is not None:
                address = connection.transport.get_extra_info("sockname")
                self.check_peer(address[1] if isinstance(address, tuple) else None)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _open(self, limit_s: float) -> HttpConnection:
        origin = self.origin

        def made() -> HttpConnection:
            return HttpConnection(self._keep, self._forget)

        if origin.scheme == "unix":
            async with asyncio.timeout(limit_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_unix_connection(made, origin.host)
        elif self._proxy is not None and self._tls is not None:
            _, connection = await create_connection_through(
                self._proxy, origin, made, self._tls, limit_s=limit_s, tls_limit_s=limit_s
            )
        else:
            _, connection = await create_connection(
                made, origin.host, origin.port, limit_s=limit_s, tls=self._tls
            )
        return connection

    def _keep(self, connection: HttpConnection) -> None:
        if not self._keeping or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        self._idle.append(connection)
        connection.keep_until(asyncio.get_running_loop().time() + self.timeouts.idle_s)

    def _forget(self, connection: HttpConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()
        if connection in self._idle:
            self._idle.remove(connection)


class _Answer:
    """A sink that collects one answer for `fetch`; of a WebSocket, only that it was accepted."""

    def __init__(self, limit_bytes: int) -> None:
        self.done: asyncio.Future[tuple[int, Headers, bytes]] = (
            asyncio.get_running_loop().create_future()
        )
        self._limit_bytes = limit_bytes
        self._status = 0
        self._headers: Headers = []
        self._body = bytearray()

    def on_headers(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers
        if status == 101:
            self.on_end()

    def on_data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit_bytes:
            message = f"the answer is longer than {self._limit_bytes} bytes"
            self.on_error(TransportError(message, Fault.UPSTREAM_BROKE))

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result((self._status, self._headers, bytes(self._body)))

    def on_error(self, error: WaiError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
