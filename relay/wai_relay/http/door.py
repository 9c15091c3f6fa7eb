"""Accept connections, and look at their first bytes before TLS begins.

A trusted proxy may put a PROXY protocol header there (`proxy_header`), which names the caller. On a
port with TLS, somebody may speak plain HTTP, and gets an answer that says so (`misdirected`). At
other connections no more than one byte is looked at, which stays in the kernel. Each connection
then becomes a transport, with TLS if the port has it, whose protocol the `Listener` makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from wai_protocol.errors import RemoteProtocolError

from .connection import peer_key, peer_name_in
from .edge import Edge
from .proxy_header import SIGNATURE, TEXT, ProxyHeaderReader

# Time for a TLS handshake: two round trips around the world and the key exchange of a slow phone.
# It bounds how long a silent peer holds a connection. The first byte has as long.
HANDSHAKE_TIMEOUT_S: Final = 10.0
# How long a caller may take to answer a TLS close-notify.
TLS_SHUTDOWN_TIMEOUT_S: Final = 5.0
# Connections accepted in one turn of the event loop, which takes 5 ms.
ACCEPTED_AT_ONCE: Final = 100
# Time until connections are accepted again after the system had no file descriptor left.
RETRY_S: Final = 1.0
# Connections whose first byte is awaited. Then the oldest makes room: silent ones lock nobody out.
MAX_SILENT: Final = 4096

# TLS handshakes in progress: 1,000 nodes and as many callers that come back at once. Beyond it the
# oldest makes room. Nothing else counts a connection before its handshake is complete.
MAX_HANDSHAKES: Final = 2048
# The same from one address, which may be an office; see `peer_key` for which are not counted.
MAX_HANDSHAKES_PER_PEER: Final = 256

_TLS_RECORD: Final = b"\x16"  # the content type of a handshake (RFC 8446 section 5.1)

MakeProtocol = Callable[[str, bytes], asyncio.Protocol]
"""Makes a connection's protocol. Takes the caller's address if a PROXY header named one, else "",
and the bytes that were taken from the socket already."""

_log = logging.getLogger("wai.edge")


class Door:
    """Accepts from listening sockets. Belongs to one event loop."""

    def __init__(self, edge: Edge, tls: ssl.SSLContext | None, make: MakeProtocol) -> None:
        self.tls = tls
        self._edge = edge
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._listening: set[socket.socket] = set()
        self._silent: dict[_Visitor, None] = {}  # in the order of their arrival
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[socket.socket, str] = {}  # `peer_key`, in the order of arrival
        self._handshakes_of: dict[str, dict[socket.socket, None]] = {}

    def watch(self, listening: socket.socket) -> None:
        """Accept connections from a socket that listens and does not block."""
        self._listening.add(listening)
        self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept no more. Connections that were accepted go on."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
        self._listening.clear()

    async def abandon(self) -> None:
        """Close the connections that no protocol has yet."""
        for visitor in list(self._silent):
            visitor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: the socket stays readable
                _log.error("no connection can be accepted for %g s: %s", RETRY_S, error)
                self._loop.remove_reader(listening)
                self._loop.call_later(RETRY_S, self._accept_again, listening)
                return
            sock.settimeout(0)
            peer = peer_name_in(address)
            trusted = self._edge.proxies.trusts(peer)
            if self.tls is None and not trusted:
                self.let_in(sock)
                continue
            if len(self._silent) >= MAX_SILENT:
                next(iter(self._silent)).close()
            self._silent[_Visitor(self, sock, peer if trusted else "")] = None

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    # -- called by visitors
    def forget(self, visitor: _Visitor) -> None:
        """`visitor` is let in or closed."""
        self._silent.pop(visitor, None)

    def let_in(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext | None = None,
        address: str = "",
        taken: bytes = b"",
    ) -> None:
        """Make a transport of `sock`; `address` and `taken` as for `MakeProtocol`."""
        protocol = self._make(address, taken)
        if tls is None:
            connecting = self._connect(sock, None, protocol)
        else:
            connecting = self._shake_hands(sock, tls, protocol, address)
        task = self._loop.create_task(connecting)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(
        self, sock: socket.socket, tls: ssl.SSLContext, protocol: asyncio.Protocol, address: str
    ) -> None:
        """Make a transport with TLS; meanwhile the connection may have to make room for others."""
        peer = peer_key(address or _address_of(sock))
        of_peer = self._handshakes_of.get(peer, {})
        if peer and len(of_peer) >= MAX_HANDSHAKES_PER_PEER:
            self._interrupt(next(iter(of_peer)))
        if len(self._handshakes) >= MAX_HANDSHAKES:
            self._interrupt(next(iter(self._handshakes)))
        self._handshakes[sock] = peer
        self._handshakes_of.setdefault(peer, {})[sock] = None
        try:
            await self._connect(sock, tls, protocol)
        finally:
            self._forget_handshake(sock)

    def _interrupt(self, sock: socket.socket) -> None:
        """End the oldest handshake: its transport reads an end and closes."""
        self._edge.counters.connections_refused += 1
        self._forget_handshake(sock)
        with contextlib.suppress(OSError):  # closed by its peer
            sock.shutdown(socket.SHUT_RDWR)

    def _forget_handshake(self, sock: socket.socket) -> None:
        peer = self._handshakes.pop(sock, None)
        if peer is not None:
            of_peer = self._handshakes_of[peer]
            del of_peer[sock]
            if not of_peer:
                del self._handshakes_of[peer]

    async def _connect(
        self, sock: socket.socket, tls: ssl.SSLContext | None, protocol: asyncio.Protocol
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls is not None else None,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S if tls is not None else None,
            )
        except (OSError, RuntimeError) as error:  # uvloop's RuntimeError: closed already
            _log.debug("a connection ended before its first request: %s", error)


def _address_of(sock: socket.socket) -> str:
    try:
        return peer_name_in(sock.getpeername())
    except OSError:
        return ""  # closed by its peer


class _Visitor:
    """A connection whose first bytes are awaited. `proxy`: its address if it may be a proxy's."""

    __slots__ = ("_address", "_deadline", "_door", "_loop", "_proxy", "_reader", "_sock")

    def __init__(self, door: Door, sock: socket.socket, proxy: str) -> None:
        self._door = door
        self._sock = sock
        self._proxy = proxy
        self._address = ""
        self._reader: ProxyHeaderReader | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._deadline = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self.close)

    def close(self) -> None:
        """Close the connection without an answer."""
        self._leave()
        self._sock.close()

    def _leave(self) -> None:
        self._loop.remove_reader(self._sock)
        self._deadline.cancel()
        self._door.forget(self)

    def _readable(self) -> None:
        try:
            while not self._advance():
                pass
        except (BlockingIOError, InterruptedError):
            return  # called again when more has come
        except RemoteProtocolError as error:
            _log.warning("the proxy %s is not understood: %s", self._proxy, error)
            self.close()
        except OSError:
            self.close()  # reset by the peer

    def _advance(self) -> bool:
        """Read some bytes; return whether the connection was let in, or closed."""
        reader = self._reader
        if reader is None:
            first = self._sock.recv(1, socket.MSG_PEEK)
            if self._proxy and first in (SIGNATURE[:1], TEXT[:1]):
                self._reader = ProxyHeaderReader()
                return False
            self._decide(first, b"")
            return True
        data = self._sock.recv(reader.wanted)
        if not data:
            self.close()
            return True
        reader.receive(data)
        if not reader.over:
            return False
        if not reader.present:
            self._decide(reader.data[:1], reader.data)
            return True
        self._address = reader.address or ""
        self._proxy, self._reader = "", None  # one header, and then the caller's own bytes
        if self._door.tls is not None:
            return False
        self._let_in(None, b"")
        return True

    def _decide(self, first: bytes, taken: bytes) -> None:
        """Go on with a connection that begins with the byte `first`; `taken`: bytes read of it."""
        tls = self._door.tls
        if not first:
            self.close()
        elif tls is None or b"A" <= first <= b"Z":  # plain HTTP begins with a method
            self._let_in(None, taken)
        elif first == _TLS_RECORD:
            self._let_in(tls, b"")
        else:
            self.close()

    def _let_in(self, tls: ssl.SSLContext | None, taken: bytes) -> None:
        self._leave()
        self._door.let_in(self._sock, tls, self._address, taken)
