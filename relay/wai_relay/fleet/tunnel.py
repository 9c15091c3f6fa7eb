"""A connection that says it is a node's: the handshake, and who may come in.

A connection's protocol until its handshake is over; then the session takes the transport. It knows
nothing of what nodes are for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec

from wai_protocol.errors import Fault, ProtocolError, WaiError
from wai_protocol.handshake import NONCE_BYTES, ProvenHello, RelayHandshake, Welcome
from wai_protocol.identity import RelayKey
from wai_relay.http.connection import peer_key, peer_name
from wai_relay.http.edge import TunnelProtocol
from wai_transport.live_session import LiveSession

from .places import Places

HANDSHAKE_S: Final = 10.0
"""From the connection to the PROOF: two round trips, and a node that must ask a slow disk."""

MAX_HANDSHAKES: Final = 2048
"""Connections that have proven nothing yet: a fleet of 1,000 that comes back after a restart, and
as many strangers. Each costs a TLS connection and up to 8 KiB. One more takes the place of the
oldest: a node needs its own for two round trips, and only 2,048 new connections within those would
push it out."""

MAX_HANDSHAKES_PER_PEER: Final = 1024
"""Of one address, or one household (IPv6 /64), for as long as its handshakes last. 200 nodes behind
one NAT with four tunnels each fit in; behind a proxy that ends TLS all nodes come from one address,
so that here, too, one more takes the place of the oldest."""

REFUSED_CLOSE_S: Final = 2.0
"""How long a REFUSE may take to leave."""

_log = logging.getLogger("wai.tunnel")


class AdmittedNode(msgspec.Struct, frozen=True):
    """The relay's yes: the session that goes on over this connection, and what the node is told."""

    session: LiveSession
    welcome: Welcome


Admit = Callable[[ProvenHello], Awaitable[AdmittedNode]]


class Tunnels:
    """Makes the protocol of each new connection, and owns the tasks in which they are admitted.

    `endpoint_hashes` gives the SHA-256 of the certificates that the port shows now, or None where a
    proxy in front ends TLS.
    """

    def __init__(
        self,
        key: RelayKey,
        admit: Admit,
        endpoint_hashes: Callable[[], frozenset[bytes] | None],
    ) -> None:
        self._key = key
        self._admit = admit
        self._endpoint_hashes = endpoint_hashes
        self._unproven: Places[_TunnelConnection] = Places(MAX_HANDSHAKES, MAX_HANDSHAKES_PER_PEER)
        self._deciding: set[_TunnelConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection(self) -> asyncio.Protocol:
        """The protocol for a new connection (`Edge.tunnel_factory`)."""
        return _TunnelConnection(self)

    def begin(self, connection: _TunnelConnection, peer: str) -> RelayHandshake:
        """A handshake for `connection` of `peer`; the oldest is closed if there are too many."""
        oldest = self._unproven.take(connection, peer)
        if oldest is not None:
            _log.debug("too many handshakes are under way; the oldest is closed")
            oldest.abort()
        return RelayHandshake(
            self._key, nonce=os.urandom(NONCE_BYTES), endpoint_hashes=self._endpoint_hashes()
        )

    def finish(self, connection: _TunnelConnection) -> None:
        """The handshake of `connection` is over, one way or the other."""
        self._unproven.free(connection)
        self._deciding.discard(connection)

    def decide(self, connection: _TunnelConnection, claim: ProvenHello) -> None:
        """Ask who may come in, in a task that is owned here. A proof was given: nobody new takes
        the place of `connection` any more."""
        self._unproven.free(connection)
        self._deciding.add(connection)
        task = asyncio.get_running_loop().create_task(self._decide(connection, claim))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decide(self, connection: _TunnelConnection, claim: ProvenHello) -> None:
        try:
            admission = await self._admit(claim)
        except WaiError as error:
            connection.refuse(error)
        except Exception:  # the node must hear an answer, and the log says what happened
            _log.exception("a node could not be admitted")
            connection.refuse(WaiError("the relay failed to admit this node; see its log"))
        else:
            connection.accept(admission, claim)

    async def close(self) -> None:
        """Drop the handshakes that are under way."""
        for connection in [*self._unproven, *self._deciding]:
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _TunnelConnection(TunnelProtocol):
    """One connection until its handshake is over."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._handshake: RelayHandshake | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._handshake = self._tunnels.begin(self, peer_key(self.peer or peer_name(transport)))
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._handshake is None or self._transport is None:
            return
        try:
            claim = self._handshake.receive_data(data)
        except WaiError as error:
            level = logging.INFO if isinstance(error, ProtocolError) else logging.WARNING
            _log.log(level, "handshake refused: %s", error)
            self.refuse(error)
            return
        if out := self._handshake.bytes_to_send():
            self._transport.write(out)
        if claim is not None:
            self._transport.pause_reading()  # nothing may come before the WELCOME
            self._tunnels.decide(self, claim)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._over()

    def accept(self, admission: AdmittedNode, claim: ProvenHello) -> None:
        """Hand the transport over to the session."""
        transport, handshake = self._transport, self._handshake
        if transport is None or handshake is None:
            return  # lost while the relay thought about it; the session waits for the next
        self._over()
        handshake.accept(admission.welcome)
        transport.write(handshake.bytes_to_send())
        # What the node has of a session that is lost here says nothing about the new one.
        received = claim.hello.received if admission.welcome.resumed else 0
        try:
            admission.session.attach(
                transport, received, handshake.leftover(), peer=claim.hello.limits
            )
        except WaiError as error:
            _log.error("node %s can't resume: %s", admission.welcome.name, error)
            admission.session.close(Fault.SESSION_LOST, str(error))
            transport.abort()

    def refuse(self, error: WaiError) -> None:
        """Say why not, and close."""
        transport, handshake = self._transport, self._handshake
        self._over()
        if transport is None or handshake is None:
            return
        handshake.refuse(error)
        transport.write(handshake.bytes_to_send())
        transport.close()
        asyncio.get_running_loop().call_later(REFUSED_CLOSE_S, transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _over(self) -> None:
        self._tunnels.finish(self)
        self._handshake = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
