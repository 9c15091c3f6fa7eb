"""Connections that say they are nodes: strangers who prove nothing keep no node out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.relay.http.fakes import FakeTransport, echo, turns
from wai_protocol.errors import AuthError
from wai_protocol.handshake import Hello, NodeHandshake, ProvenHello
from wai_protocol.identity import NodeKey, RelayKey
from wai_relay.fleet.tunnel import (
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_PER_PEER,
    AdmittedNode,
    Tunnels,
)
from wai_relay.http.edge import Edge
from wai_relay.http.h1 import H1Connection

pytestmark = pytest.mark.anyio

UPGRADE = b"GET /wai HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: wai/1\r\n\r\n"


class Wire(FakeTransport):
    """A transport from `address`, which tells its protocol when it is gone."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 5) if name == "peername" else default

    def abort(self) -> None:
        if not self.aborted:
            super().abort()
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Rig:
    """Tunnels that note who proved itself, and let nobody in."""

    def __init__(self) -> None:
        self.claims: list[ProvenHello] = []
        self.key = RelayKey.generate()
        self.tunnels = Tunnels(self.key, self._admit, lambda: None)

    async def _admit(self, claim: ProvenHello) -> AdmittedNode:
        self.claims.append(claim)
        raise AuthError("nobody comes in here")

    def connect(self, address: str) -> Wire:
        wire, connection = Wire(address), self.tunnels.connection()
        wire.set_protocol(connection)
        connection.connection_made(wire.as_transport())
        return wire

    def upgrade(self, address: str) -> Wire:
        wire = Wire(address)
        connection = H1Connection(Edge(echo, tunnel_factory=self.tunnels.connection))
        wire.set_protocol(connection)
        connection.connection_made(wire.as_transport())
        connection.data_received(UPGRADE)
        assert wire.written.startswith(b"HTTP/1.1 101 ")
        wire.written.clear()
        return wire

    async def prove(self, wire: Wire, *, upto: str = "PROOF") -> None:
        """Shake hands as a node does."""
        key = NodeKey.generate()
        node = NodeHandshake(key, Hello(key.public, "box", b""), relay_public=self.key.public)
        protocol = wire.protocol
        assert isinstance(protocol, asyncio.Protocol)
        protocol.data_received(node.bytes_to_send())
        if upto == "PROOF":
            node.receive_data(bytes(wire.written))
            protocol.data_received(node.bytes_to_send())
        await turns()


@pytest.mark.parametrize("how", ["connect", "upgrade"])
@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.{}", "2001:db8:0:{}::1"])
async def test_silent_strangers_keep_no_node_out(how: str, address: str) -> None:
    rig = Rig()
    come = getattr(rig, how)
    strangers = [come(address.format(n % 250)) for n in range(MAX_HANDSHAKES + 60)]
    await turns()
    assert [w.aborted for w in strangers] == [True] * 60 + [False] * MAX_HANDSHAKES
    node = come("198.51.100.7")
    await rig.prove(node)
    assert len(rig.claims) == 1
    await rig.tunnels.close()


@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8::{:x}"])
async def test_one_address_takes_no_more_than_its_share_until_its_handshakes_are_over(
    address: str,
) -> None:
    rig = Rig()
    node = rig.connect("198.51.100.7")
    strangers = [rig.connect(address.format(n)) for n in range(MAX_HANDSHAKES + 60)]
    for stranger in strangers[-5:]:
        await rig.prove(stranger, upto="HELLO")
    await turns()
    assert not node.aborted
    assert sum(not w.aborted for w in strangers) == MAX_HANDSHAKES_PER_PEER
    await rig.prove(node)
    assert len(rig.claims) == 1
    await rig.tunnels.close()


async def test_a_fleet_behind_one_address_comes_in_beside_a_stranger_there() -> None:
    rig = Rig()
    for _ in range(MAX_HANDSHAKES_PER_PEER):
        rig.connect("192.0.2.9")
    fleet = [rig.connect("192.0.2.9") for _ in range(800)]
    for node in fleet:
        await rig.prove(node)
    assert len(rig.claims) == len(fleet)
    await rig.tunnels.close()


async def test_who_has_proven_itself_loses_no_place_while_the_relay_decides() -> None:
    gate = asyncio.Event()

    class Slow(Rig):
        async def _admit(self, claim: ProvenHello) -> AdmittedNode:
            await gate.wait()
            return await super()._admit(claim)

    rig = Slow()
    node = rig.connect("198.51.100.7")
    await rig.prove(node)
    for n in range(MAX_HANDSHAKES + 5):
        rig.connect(f"192.0.2.{n % 250}")
    await turns()
    assert not node.aborted
    gate.set()
    await turns()
    assert len(rig.claims) == 1
    await rig.tunnels.close()
