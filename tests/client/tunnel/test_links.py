"""Which relays a node keeps tunnels to, when relays come, go, and disagree."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from wai_node.supervision import Supervision
from wai_node.tunnel.dial import RelayAddress
from wai_node.tunnel.links import RelayLinks, reach_directly
from wai_node.tunnel.tunnel import Tunnel
from wai_protocol.known_relay import KnownRelay
from wai_protocol.relay_list import RelayList

pytestmark = pytest.mark.anyio

A, B, C = (KnownRelay(f"https://{name}.example", name.encode() * 32) for name in "abc")
HOME = RelayAddress("https://joined.example", A.public, None)


class FakeTunnel:
    """Runs until it was left and has no connection, as a `Tunnel` does."""

    def __init__(self, address: RelayAddress) -> None:
        self.address = address
        self.connected = False
        self.left = False
        self.runs = 0
        self.ended = asyncio.Event()

    @property
    def over(self) -> bool:
        return self.left and not self.connected

    async def run(self) -> None:
        self.runs += 1
        self.ended.clear()
        if not self.over:
            await self.ended.wait()

    def leave(self) -> None:
        self.left = True
        if not self.connected:
            self.ended.set()

    def stay(self) -> None:
        self.left = False

    def lose_connection(self) -> None:
        self.connected = False
        if self.left:
            self.ended.set()


class Rig:
    def __init__(self, known: RelayList | None = None, home: RelayAddress = HOME) -> None:
        self.made: list[FakeTunnel] = []
        self.kept: list[RelayList] = []
        self.parts = Supervision()
        self.links = RelayLinks(
            *(home, known or RelayList()),
            make=self._make,
            reach=reach_directly,
            keep=self.kept.append,
        )

    def _make(self, address: RelayAddress) -> list[Tunnel]:
        tunnel = FakeTunnel(address)
        self.made.append(tunnel)
        return [cast("Tunnel", tunnel)]

    @property
    def dialled(self) -> set[str]:
        return {t.address.url for t in cast("Any", list(self.links)) if not t.left}

    def of(self, relay: KnownRelay) -> FakeTunnel:
        return next(t for t in reversed(self.made) if t.address.public == relay.public)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_node_without_a_list_dials_the_relay_that_it_joined() -> None:
    assert Rig().dialled == {HOME.url}


async def test_a_node_that_starts_while_the_joined_relay_is_gone_dials_those_it_was_told() -> None:
    assert Rig(RelayList(3, (B, C))).dialled == {B.url, C.url}


async def test_the_joined_relay_is_reached_as_the_invite_says_whatever_the_list_says() -> None:
    assert Rig(RelayList(3, (A, B))).dialled == {HOME.url, B.url}


async def test_relays_that_come_are_dialled_and_those_that_go_are_not() -> None:
    rig = Rig()
    rig.links.start(rig.parts)
    rig.links.follow(RelayList(1, (A, B, C)))
    await settled()
    assert rig.dialled == {HOME.url, B.url, C.url}
    assert [t.runs for t in rig.made] == [1, 1, 1]
    rig.links.follow(RelayList(2, (B, C)))
    await settled()
    assert rig.dialled == {B.url, C.url}
    assert [listed.version for listed in rig.kept] == [1, 2]
    await rig.parts.aclose()


async def test_an_older_list_from_a_relay_that_is_behind_changes_nothing() -> None:
    rig = Rig(RelayList(5, (A, B)))
    rig.links.follow(RelayList(4, (A,)))
    rig.links.follow(RelayList(5, (A,)))
    assert rig.dialled == {HOME.url, B.url}
    assert not rig.kept


async def test_a_relay_that_is_only_cut_off_from_the_others_keeps_its_connection() -> None:
    rig = Rig(RelayList(1, (A, B)))
    rig.links.start(rig.parts)
    await settled()
    tunnel = rig.of(B)
    tunnel.connected = True
    rig.links.follow(RelayList(2, (A,)))
    await settled()
    assert tunnel.runs == 1
    assert not tunnel.ended.is_set()
    rig.links.follow(RelayList(3, (A, B)))  # it is back before the connection was lost
    await settled()
    assert rig.of(B) is tunnel
    assert not tunnel.left
    await rig.parts.aclose()


async def test_a_relay_that_comes_back_after_its_connection_was_lost_is_dialled_again() -> None:
    rig = Rig(RelayList(1, (A, B)))
    rig.links.start(rig.parts)
    await settled()
    first = rig.of(B)
    first.connected = True
    rig.links.follow(RelayList(2, (A,)))
    first.lose_connection()
    await settled()
    rig.links.follow(RelayList(3, (A, B)))
    await settled()
    assert rig.of(B).runs == 1
    assert rig.dialled == {HOME.url, B.url}
    await rig.parts.aclose()


async def test_a_relay_that_moved_is_dialled_at_its_new_address() -> None:
    rig = Rig(RelayList(1, (A, B)))
    moved = KnownRelay("https://moved.example", B.public)
    rig.links.start(rig.parts)
    rig.links.follow(RelayList(2, (A, moved)))
    await settled()
    assert rig.dialled == {HOME.url, moved.url}
    await rig.parts.aclose()
