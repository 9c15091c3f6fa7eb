"""The relay's public port: accept and count connections, and recognize their protocol.

`door` accepts. With TLS, ALPN names the protocol: `wai/1` is a node's tunnel, `h2` and `http/1.1`
are callers; without ALPN it is HTTP/1.1. Without TLS (a proxy in front terminates it) the first
bytes distinguish HTTP/2 with prior knowledge from HTTP/1.1; nodes then use HTTP Upgrade.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from .connection import CallerConnection, limit_unsent, peer_key, peer_name
from .door import Door
from .edge import (
    HEAD_DEADLINE_S,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_PEER,
    Edge,
    TunnelFactory,
    TunnelProtocol,
)
from .h1 import H1Connection
from .misdirected import MisdirectedConnection

ALPN_TUNNEL: Final = "wai/1"
ALPN_PROTOCOLS: Final = (ALPN_TUNNEL, "h2", "http/1.1")
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
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
        self._sockets: list[socket.socket] = []
        self._door: Door | None = None

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
        shared: tuple[str, int] | None = None,
    ) -> None:
        """Take `host:port`, or `socks`, which listen or are bound already; accept nothing yet.

        `shared`: a host and port that other processes may listen on too, in addition. `tls`: the
        TLS context, whose ALPN protocols are set here; None: no TLS. (To change the certificate
        while the port is open, see `served_certificate`.) Raises `OSError` if an address cannot be
        bound.
        """
        if tls is not None:
            tls.set_alpn_protocols(list(ALPN_PROTOCOLS))
        self._door = Door(self.edge, tls, partial(_Arrival, self))
        self._sockets += socks or await _bound(host, port)
        if shared is not None and not socks:
            self._sockets += await _bound(*shared, reuse_port=True)
        for listening in self._sockets:
            listening.settimeout(0)
            limit_unsent(listening)

    async def start(self) -> None:
        """Accept connections. Raises `OSError` if another process has the address."""
        assert self._door is not None, "bind comes first"
        for listening in self._sockets:
            listening.listen(BACKLOG)
            self._door.watch(listening)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The host and port of each listening socket."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    @property
    def descriptors(self) -> list[int]:
        """The file descriptors of the listening sockets, for a successor (`socks` of `open`)."""
        return [sock.fileno() for sock in self._sockets]

    @property
    def has_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self._door is not None and self._door.tls is not None

    async def close(self) -> None:
        """Stop accepting and free the port."""
        if self._door is not None:
            self._door.close()
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    async def abandon(self) -> None:
        """Close the port, and the connections on which nothing has arrived yet."""
        await self.close()
        if self._door is not None:
            await self._door.abandon()

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
    """A new connection whose protocol is not known yet.

    `address`: the caller's if a proxy has named it, else "". `first`: bytes that came already.
    """

    def __init__(self, listener: Listener, address: str, first: bytes) -> None:
        self._listener = listener
        self._address = address
        self._peer = ""
        self._admitted = False
        self._transport: asyncio.Transport
        self._first = first
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
        address = self._address or peer_name(transport)
        if not edge.proxies.trusts(address):  # a proxy has the connections of all its callers
            self._peer = peer_key(address)
        if not self._listener.admit(self._peer):
            self._transport.abort()
            return
        self._admitted = True
        if tls is not None:
            match tls.selected_alpn_protocol():
                case "acme-tls/1":  # the authority only needs the certificate (RFC 8737 section 3)
                    self._transport.close()
                case "h2":
                    self._become(_h2_connection(edge))
                case _:
                    self._become(H1Connection(edge))
            return
        if self._listener.has_tls:
            self._become(MisdirectedConnection(edge))
            return
        self._deadline = asyncio.get_running_loop().call_later(
            HEAD_DEADLINE_S, self._transport.abort
        )
        if self._first:
            self._recognize()

    def data_received(self, data: bytes) -> None:
        """Without TLS, recognize the HTTP version by the first bytes."""
        if self._admitted:
            self._first += data
            self._recognize()

    def _recognize(self) -> None:
        if self._first.startswith(H2_PREFACE):
            connection: CallerConnection = _h2_connection(self._listener.edge)
        elif H2_PREFACE.startswith(self._first):
            return
        else:
            connection = H1Connection(self._listener.edge)
        self._stop_deadline()
        self._become(connection)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        if self._admitted:
            self._listener.release(self._peer)

    def _hand_over(self, tunnel_factory: TunnelFactory | None) -> None:
        if tunnel_factory is None:
            self._transport.abort()
            return
        tunnel = tunnel_factory()
        if isinstance(tunnel, TunnelProtocol):
            tunnel.peer = self._address
        self._transport.set_protocol(tunnel)
        tunnel.connection_made(self._transport)

    def _become(self, connection: CallerConnection) -> None:
        peer, listener = self._peer, self._listener
        connection.on_lost = lambda: listener.release(peer)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        if self._address:
            connection.peer = self._address
        if self._first:
            connection.data_received(self._first)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _h2_connection(edge: Edge) -> CallerConnection:
    """A caller's connection by HTTP/2. The first one loads h2, which many relays never need."""
    from .h2 import H2Connection

    return H2Connection(edge)


async def _bound(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Return sockets that are bound to `host:port`, "" for every address. Raises `OSError`.

    `reuse_port`: other processes of this user may bind it too, and the kernel spreads callers.
    """
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol,
        host=host,
        port=port,
        start_serving=False,
        reuse_port=reuse_port or None,
    )
    try:
        return [sock.dup() for sock in cast("Sequence[socket.socket]", server.sockets)]
    finally:
        server.close()
