"""The relay's public port: accept and count connections, and recognize their protocol.

With TLS, ALPN names the protocol: `wai/1` is a node's tunnel, `h2` and `http/1.1` are callers;
without ALPN it is HTTP/1.1. Without TLS (a proxy in front terminates it) the first bytes
distinguish HTTP/2 with prior knowledge from HTTP/1.1; nodes then use HTTP Upgrade.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

from .connection import CallerConnection, limit_unsent, peer_name
from .edge import HEAD_DEADLINE_S, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER, Edge, TunnelFactory
from .h1 import H1Connection
from .h2 import H2Connection

ALPN_TUNNEL: Final = "wai/1"
ALPN_PROTOCOLS: Final = (ALPN_TUNNEL, "h2", "http/1.1")
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Time for a TLS handshake: two round trips around the world and the key exchange of a slow phone.
# It bounds how long a silent peer holds a connection.
HANDSHAKE_TIMEOUT_S: Final = 10.0
# How long a caller may take to answer a TLS close-notify.
TLS_SHUTDOWN_TIMEOUT_S: Final = 5.0
# Connections that may wait to be accepted while the event loop is busy: 1,000 nodes that reconnect.
BACKLOG: Final = 1024


class Listener:
    """One listening port. `open` it once, or `bind` it and `start` it later, when everything is
    there that answers; `close` stops accepting and leaves connections alone."""

    def __init__(
        self,
        edge: Edge,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_per_peer: int = MAX_CONNECTIONS_PER_PEER,
    ) -> None:
        self.edge = edge
        self._max_connections = max_connections
        self._max_per_peer = max_per_peer
        self._open = 0
        self._per_peer: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []

    async def open(
        self,
        *,
        host: str = "",
        port: int = 0,
        tls: ssl.SSLContext | None,
        socks: Sequence[socket.socket] = (),
    ) -> None:
        """Accept on `host:port`, or on `socks`: `bind` and `start` in one. Raises `OSError`."""
        await self.bind(host=host, port=port, tls=tls, socks=socks)
        await self.start()

    async def bind(
        self,
        *,
        host: str = "",
        port: int = 0,
        tls: ssl.SSLContext | None,
        socks: Sequence[socket.socket] = (),
    ) -> None:
        """Take `host:port`, or `socks`, which listen or are bound already; accept nothing yet.

        `tls`: the TLS context, whose ALPN protocols are set here; None: no TLS. (To change the
        certificate while the port is open, see `served_certificate`.) Raises `OSError` if the
        address cannot be bound.
        """
        if tls is not None:
            tls.set_alpn_protocols(list(ALPN_PROTOCOLS))
        create_server = partial(
            asyncio.get_running_loop().create_server,
            self._arrival,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls is not None else None,
            ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S if tls is not None else None,
            start_serving=False,
        )
        if socks:
            self._servers += [await create_server(sock=sock) for sock in socks]
        else:
            self._servers.append(await create_server(host=host, port=port))
        for listening in self._sockets():
            limit_unsent(listening)

    async def start(self) -> None:
        """Accept connections. Raises `OSError` if another process has the address."""
        for server in self._servers:
            await server.start_serving()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The host and port of each listening socket."""
        return [sock.getsockname()[:2] for sock in self._sockets()]

    @property
    def descriptors(self) -> list[int]:
        """The file descriptors of the listening sockets, for a successor (`socks` of `open`)."""
        return [sock.fileno() for sock in self._sockets()]

    async def close(self) -> None:
        """Stop accepting and free the port."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _sockets(self) -> list[Any]:
        return [sock for server in self._servers for sock in server.sockets]

    def _arrival(self) -> asyncio.Protocol:
        return _Arrival(self)

    # -- counting
    def admit(self, peer: str) -> bool:
        """Count a new connection of `peer` (see `peer_key`); return False if there are too many."""
        count = self._per_peer.get(peer, 0) if peer else 0
        if self._open >= self._max_connections or count >= self._max_per_peer:
            self.edge.counters.connections_refused += 1
            return False
        self._open += 1
        if peer:
            self._per_peer[peer] = count + 1
        return True

    def release(self, peer: str) -> None:
        """Stop counting a connection of `peer`, which is closed."""
        self._open -= 1
        if not peer:
            return
        left = self._per_peer[peer] - 1
        if left:
            self._per_peer[peer] = left
        else:
            del self._per_peer[peer]


class _Arrival(asyncio.Protocol):
    """A new connection whose protocol is not known yet."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._peer = ""
        self._admitted = False
        self._transport: asyncio.Transport
        self._first = b""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        tls = transport.get_extra_info("ssl_object")
        edge = self._listener.edge
        if tls is not None and tls.selected_alpn_protocol() == ALPN_TUNNEL:
            # Nodes are counted by the tunnel, which bounds those that are not authenticated yet. So
            # a node can connect however many callers there are.
            self._hand_over(edge.tunnel_factory)
            return
        self._peer = peer_key(peer_name(transport))
        if not self._listener.admit(self._peer):
            self._transport.abort()
            return
        self._admitted = True
        if tls is None:
            self._deadline = asyncio.get_running_loop().call_later(
                HEAD_DEADLINE_S, self._transport.abort
            )
            return
        match tls.selected_alpn_protocol():
            case "acme-tls/1":  # the authority only needs the certificate (RFC 8737 section 3)
                self._transport.close()
            case "h2":
                self._become(H2Connection(edge))
            case _:
                self._become(H1Connection(edge))

    def data_received(self, data: bytes) -> None:
        """Without TLS, recognize the HTTP version by the first bytes."""
        if not self._admitted:
            return
        self._first += data
        first = self._first
        if first.startswith(H2_PREFACE):
            connection: CallerConnection = H2Connection(self._listener.edge)
        elif H2_PREFACE.startswith(first):
            return
        else:
            connection = H1Connection(self._listener.edge)
        self._stop_deadline()
        self._become(connection)
        connection.data_received(first)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        if self._admitted:
            self._listener.release(self._peer)

    def _hand_over(self, tunnel_factory: TunnelFactory | None) -> None:
        if tunnel_factory is None:
            self._transport.abort()
            return
        tunnel = tunnel_factory()
        self._transport.set_protocol(tunnel)
        tunnel.connection_made(self._transport)

    def _become(self, connection: CallerConnection) -> None:
        peer, listener = self._peer, self._listener
        connection.on_lost = lambda: listener.release(peer)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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
