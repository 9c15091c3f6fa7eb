"""A relay's first moments: what nobody serves yet is not what does not exist."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.harness.fleets import FakeNode
from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.gateway.dispatch import Lease, Outcome, RequestInfo
from wai_relay.gateway.settling import SettlingDispatcher

pytestmark = pytest.mark.anyio

INFO = RequestInfo("req_1", ApiKey("key", "app", b"", "", KeyLimits(), 1, 0.0), "m")


class FakeLease(Lease):
    def __init__(self) -> None:
        self.upstream = FakeNode("gpu1")
        self.model = "m"
        self.reason = "only"

    def release(self, outcome: Outcome) -> None:
        pass


@dataclass
class Inner:
    """Refuses with `refusals` in turn, then gives a lease; keeps what it was asked."""

    refusals: list[WaiError]
    asked: list[RequestInfo] = field(default_factory=list)

    async def acquire(self, info: RequestInfo) -> Lease:
        self.asked.append(info)
        if self.refusals:
            raise self.refusals.pop(0)
        return FakeLease()


@dataclass
class Fleet:
    arrival: asyncio.Event | None = None
    missing: int = 0


def rig(fleet: Fleet, *refusals: WaiError) -> tuple[SettlingDispatcher, Inner]:
    inner = Inner(list(refusals))
    return SettlingDispatcher(inner, fleet), inner


def no_such_model() -> RequestError:
    return RequestError("No node serves the model 'm'.", Fault.MODEL_NOT_FOUND)


async def test_a_request_waits_for_the_next_node_while_they_are_on_their_way() -> None:
    fleet = Fleet(asyncio.Event(), missing=2)
    settling, inner = rig(fleet, no_such_model())
    task = asyncio.create_task(settling.acquire(INFO))
    await asyncio.sleep(0)
    assert not task.done()
    assert fleet.arrival is not None
    fleet.arrival.set()
    assert (await task).upstream.name == "gpu1"
    assert len(inner.asked) == 2


async def test_what_no_arrival_can_change_is_said_at_once() -> None:
    settling, _ = rig(Fleet(asyncio.Event(), missing=1), RequestError("Too long."))
    with pytest.raises(RequestError, match="Too long"):
        await settling.acquire(INFO)


@pytest.mark.parametrize(("missing", "words"), [(1, "a node has not"), (2, "2 nodes have not")])
async def test_a_model_that_a_missing_node_may_have_is_not_now_instead_of_unknown(
    missing: int, words: str
) -> None:
    settling, _ = rig(Fleet(missing=missing), no_such_model())
    with pytest.raises(NodeUnavailable, match=words) as caught:
        await settling.acquire(INFO)
    assert caught.value.retry_after_s


async def test_with_every_node_there_an_unknown_model_is_unknown() -> None:
    settling, _ = rig(Fleet(), no_such_model())
    with pytest.raises(RequestError) as caught:
        await settling.acquire(INFO)
    assert caught.value.fault is Fault.MODEL_NOT_FOUND
