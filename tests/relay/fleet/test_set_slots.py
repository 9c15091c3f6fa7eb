"""Slots that an admin sets count for servers that do not tell theirs, also after a restart."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_protocol.errors import RequestError
from wai_protocol.identity import NodeKey
from wai_protocol.invite import decode
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.registry import MAX_SET_SLOTS, NodeRegistry
from wai_relay.storage import Store

pytestmark = pytest.mark.anyio

SERVED = NodeStatus(
    (
        ModelStatus("a", "vllm@x"),
        ModelStatus("b", "vllm@x"),
        ModelStatus("c", "llama-server@y", slots_total=2),
        ModelStatus("d", "ollama@z"),
    )
)


async def _fleet(store: Store, clock: Clock) -> ConnectedFleet:
    registry = await NodeRegistry.load(store, clock)
    invites = Invites(store, registry, clock)
    if not registry.nodes():
        _, text = await invites.create(InviteAddress("https://r", b"r" * 32, None))
        await invites.redeem(decode(text).secret, NodeKey.generate().public, "box")
    return ConnectedFleet(registry, invites)


def _slots(fleet: ConnectedFleet) -> list[int | None]:
    node = fleet.find("box")
    assert node is not None
    return [model.slots_total for model in node.status.models]


def _tell(fleet: ConnectedFleet) -> None:
    node = fleet.find("box")
    assert node is not None
    node.update(SERVED, "run")


async def test_set_slots_count_where_the_server_does_not_tell(store: Store, clock: Clock) -> None:
    fleet = await _fleet(store, clock)
    _tell(fleet)
    await fleet.set_slots("box", "vllm@x", 8)
    await fleet.set_slots("box", "llama-server@y", 9)
    assert _slots(fleet) == [8, 8, 2, None]
    again = await _fleet(store, clock)
    _tell(again)
    assert _slots(again) == [8, 8, 2, None]
    await again.set_slots("box", "vllm@x", None)
    assert _slots(again) == [None, None, 2, None]


async def test_a_drain_and_a_new_name_leave_set_slots_alone(store: Store, clock: Clock) -> None:
    fleet = await _fleet(store, clock)
    _tell(fleet)
    await fleet.set_slots("box", "ollama@z", 3)
    await fleet.drain("box")
    await fleet.rename("box", "desk")
    await fleet.rename("desk", "box")
    assert _slots(fleet) == [None, None, 2, 3]


async def test_set_slots_take_bounded_room(store: Store, clock: Clock) -> None:
    fleet = await _fleet(store, clock)
    for number in range(MAX_SET_SLOTS):
        await fleet.set_slots("box", f"server-{number}", 1)
    with pytest.raises(RequestError, match="can be set for"):
        await fleet.set_slots("box", "one-more", 1)
