"""What another relay did to a node holds here, and nodes are told which relays there are."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError, Fault, StoreError
from wai_protocol.handshake import Hello, ProvenHello
from wai_protocol.identity import NodeKey
from wai_protocol.invite import decode
from wai_protocol.known_relay import KnownRelay
from wai_protocol.relay_list import RelayList
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.storage import Store
from wai_transport.live_session import Ended

pytestmark = pytest.mark.anyio

KEY = NodeKey.generate()
HELLO = Hello(KEY.public, "box", b"", instance="first start", tunnel=0)
ADDRESS = InviteAddress("https://relay.example", b"r" * 32, b"p" * 32)
OTHER = KnownRelay("https://other.example", b"o" * 32)


class Relay:
    """What one relay knows of nodes."""

    def __init__(self, registry: NodeRegistry, invites: Invites) -> None:
        self.registry = registry
        self.invites = invites
        self.fleet = ConnectedFleet(registry, invites)

    @classmethod
    async def over(cls, store: Store, clock: Clock) -> Relay:
        registry = await NodeRegistry.load(store, clock)
        return cls(registry, Invites(store, registry, clock))

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.fleet.nodes()]


@pytest.fixture
async def relays(store: Store, clock: Clock) -> tuple[Relay, Relay]:
    """Two that share a store, and a node that joined by an invite of the first at the second."""
    here, there = await Relay.over(store, clock), await Relay.over(store, clock)
    _, text = await here.invites.create(ADDRESS, also=(OTHER,))
    assert decode(text).also == (OTHER,)
    await there.fleet.admit(ProvenHello(HELLO, decode(text).secret))
    return here, there


async def test_a_node_that_joined_at_another_relay_is_listed_and_let_in(
    relays: tuple[Relay, Relay],
) -> None:
    here, _ = relays
    assert here.names == []
    await here.fleet.follow()
    assert here.names == ["box"]
    await here.fleet.admit(ProvenHello(HELLO, None))


async def test_a_node_that_comes_sooner_than_the_news_of_it_is_let_in(
    relays: tuple[Relay, Relay], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = relays
    monkeypatch.setattr(store, "shared", False)
    with pytest.raises(AuthError) as refused:
        await here.fleet.admit(ProvenHello(HELLO, None))
    assert refused.value.fault is Fault.NODE_UNKNOWN
    monkeypatch.setattr(store, "shared", True)
    await here.fleet.admit(ProvenHello(HELLO, None))


async def test_a_node_removed_at_one_relay_is_cut_off_at_all(relays: tuple[Relay, Relay]) -> None:
    here, there = relays
    await here.fleet.follow()
    admitted = await here.fleet.admit(ProvenHello(HELLO, None))
    await there.fleet.remove("box")
    await here.fleet.follow()
    assert admitted.session.ended is Ended.CLOSED
    assert here.names == []
    with pytest.raises(AuthError) as refused:
        await here.fleet.admit(ProvenHello(HELLO, None))
    assert refused.value.fault is Fault.NODE_REMOVED


async def test_a_name_a_drain_and_slots_set_at_two_relays_do_not_undo_each_other(
    relays: tuple[Relay, Relay],
) -> None:
    here, there = relays
    await here.fleet.follow()
    await there.fleet.rename("box", "tower")
    await here.fleet.drain("box")
    await there.fleet.set_slots("tower", "vllm@127.0.0.1:8000", 4)
    for relay in relays:
        await relay.fleet.follow()
        (node,) = relay.fleet.nodes()
        assert node.name == "tower"
        assert node.record.drained
        assert node.record.slots == {"vllm@127.0.0.1:8000": 4}


async def test_nodes_are_told_of_the_relays_when_they_come_and_when_that_changes(
    relays: tuple[Relay, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = relays
    (node,) = there.fleet.nodes()
    (session,) = node.sessions
    calls: list[RelayList] = []
    monkeypatch.setattr(session, "tell_relays", calls.append)
    there.fleet.tell_relays(RelayList(7, (OTHER,)))
    assert calls == [RelayList(7, (OTHER,))]
    assert there.fleet.relays.version == 7


async def test_a_removal_during_an_outage_is_stored_once_the_database_is_back(
    relays: tuple[Relay, Relay], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = relays
    await here.fleet.follow()

    async def away(*_: object) -> None:
        raise StoreError("the database is away")

    with monkeypatch.context() as outage:
        outage.setattr(store, "write", away)
        with pytest.raises(StoreError, match="cut off now"):
            await here.fleet.remove("box")
        [node] = there.fleet.nodes()
        await here.fleet.follow(node.record.id)
        assert here.names == ["box"]  # so that it can be removed once more
    await here.fleet.follow()
    await there.fleet.follow()
    assert here.names == there.names == []
