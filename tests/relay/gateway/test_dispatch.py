"""Dispatcher: what the gateway's tasks see of admission and scheduling."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import structs
from msgspec.structs import replace

from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, NodeUnavailable, RequestError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import TokenCounts
from wai_relay.contracts.upstream import ServingNode
from wai_relay.gateway.dispatch import Lease, Outcome, RequestInfo, ScheduledDispatcher
from wai_relay.policy.model_names import ModelNames

pytestmark = pytest.mark.anyio
DONE = Outcome(None, False, 0.1, 1.0, TokenCounts(10, 0, 5, True))


class Box(ServingNode):
    kind = "node"

    def __init__(self, name: str, *models: str, slots: int = 1) -> None:
        self.name = name
        self.up = True
        self.kept_out = False
        self.status = NodeStatus(tuple(ModelStatus(m, "u", slots_total=slots) for m in models))

    @property
    def ready(self) -> bool:
        return self.up and not self.kept_out

    @property
    def drained(self) -> bool:
        return self.kept_out

    def open(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Boxes:
    """Since tests change them as they like, they always may have changed."""

    def __init__(self, *boxes: Box) -> None:
        self.boxes = list(boxes)
        self._asked = 0

    @property
    def changes(self) -> int:
        self._asked += 1
        return self._asked

    def nodes(self) -> Iterable[Box]:
        return self.boxes


def info(model: str = "m", **fields: Any) -> RequestInfo:
    limits = fields.pop("limits", {})
    key = ApiKey("key_1", "app", b"", "wai_sk_", KeyLimits(**limits), 1, 0.0)
    return RequestInfo("req_1", key, model, prompt_tokens=10, **fields)


async def test_one_that_waits_gets_the_slot_that_is_given_back() -> None:
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m")))
    first = await dispatcher.acquire(info())
    got: list[Lease] = []

    async def second() -> None:
        got.append(await dispatcher.acquire(info()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert not got
        first.answering()
        first.release(DONE)
    got[0].release(DONE)
    assert dispatcher.in_flight == 0


async def test_a_caller_who_leaves_the_queue_leaves_no_claim() -> None:
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m")))
    first = await dispatcher.acquire(info())
    with anyio.move_on_after(0.01):
        await dispatcher.acquire(info())
    first.release(DONE)
    assert dispatcher.in_flight == 0
    again = [await dispatcher.acquire(info())]
    again[0].release(DONE)


async def test_one_without_patience_left_is_refused_where_it_would_wait() -> None:
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m")))
    first = await dispatcher.acquire(info())
    with anyio.fail_after(10.0), pytest.raises(NodeUnavailable):
        await dispatcher.acquire(info(wait_until=time.monotonic()))
    first.release(DONE)
    assert dispatcher.in_flight == 0


async def test_pins_of_unknown_nodes_are_404_and_of_absent_ones_503() -> None:
    away = Box("away", "m")
    away.up = False
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m"), away))
    for pin, fault in (("nobody", Fault.NODE_NOT_FOUND), ("away", Fault.NO_NODE)):
        with pytest.raises(Exception, match="node") as caught:
            await dispatcher.acquire(info(pin=pin))
        assert caught.value.fault is fault  # type: ignore[attr-defined]


async def test_a_node_that_an_admin_drained_is_not_waited_for_as_if_it_were_lost() -> None:
    box = Box("a", "m")
    dispatcher = ScheduledDispatcher(Boxes(box))
    (await dispatcher.acquire(info())).release(DONE)
    box.kept_out = True
    with anyio.fail_after(1.0), pytest.raises(NodeUnavailable, match=r"now \(draining\)"):
        await dispatcher.acquire(info())
    with anyio.fail_after(1.0), pytest.raises(NodeUnavailable, match=r"'a' is .*draining"):
        await dispatcher.acquire(info(pin="a"))
    box.kept_out = False
    (await dispatcher.acquire(info())).release(DONE)


async def test_an_alias_is_the_model_and_a_fall_back_says_that_it_is_one() -> None:
    names = ModelNames({"gpt-4o": "m"}, {"m": ("small",)})
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m"), Box("b", "small")), names=names)
    lease = await dispatcher.acquire(info("gpt-4o"))
    assert (lease.model, lease.fallback) == ("m", False)
    lease.release(DONE)
    lease = await dispatcher.acquire(info("gpt-4o", excluded=frozenset({"a"})))
    assert (lease.model, lease.fallback, lease.upstream.name) == ("small", True, "b")
    lease.release(DONE)


async def test_a_lease_says_who_was_weighed() -> None:
    dispatcher = ScheduledDispatcher(Boxes(Box("a", "m"), Box("b", "m")))
    lease = await dispatcher.acquire(info())
    assert {score.node for score in lease.candidates} == {"a", "b"}  # type: ignore[attr-defined]
    lease.release(DONE)


async def test_a_node_that_is_removed_in_the_turn_that_gave_its_slot_is_replaced_by_another() -> (
    None
):
    boxes = Boxes(Box("a", "m"))
    dispatcher = ScheduledDispatcher(boxes)
    first = await dispatcher.acquire(info())
    got: list[Lease] = []

    async def second() -> None:
        got.append(await dispatcher.acquire(info()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        first.answering()
        first.release(DONE)  # the second one has the slot, and has not had its turn
        boxes.boxes = [Box("b", "m")]
        dispatcher.node_changed(boxes.boxes[0])
    assert got[0].upstream.name == "b"
    got[0].release(DONE)
    assert dispatcher.in_flight == 0


async def test_a_node_that_is_removed_in_the_turn_that_gave_its_slot_leaves_a_refusal() -> None:
    boxes = Boxes(Box("a", "m"))
    dispatcher = ScheduledDispatcher(boxes)
    first = await dispatcher.acquire(info())
    refused: list[Exception] = []

    async def second() -> None:
        try:
            await dispatcher.acquire(info())
        except (NodeUnavailable, RequestError) as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        first.answering()
        first.release(DONE)
        gone, boxes.boxes = boxes.boxes[0], []
        dispatcher.node_changed(gone)
        await dispatcher_looks(dispatcher)
    assert len(refused) == 1
    assert dispatcher.in_flight == 0


async def dispatcher_looks(dispatcher: ScheduledDispatcher) -> None:
    """Another request makes it see who is there."""
    with pytest.raises((NodeUnavailable, RequestError)):
        await dispatcher.acquire(info("other"))


async def test_one_that_stands_in_and_has_room_comes_before_the_hope_that_a_prompt_fits() -> None:
    def box(name: str, model: str, context: int) -> Box:
        made = Box(name, model)
        made.status = NodeStatus((ModelStatus(model, "u", context_tokens=context),))
        return made

    names = ModelNames({}, {"m": ("large",)})
    boxes = Boxes(box("a", "m", 4096), box("b", "large", 65_536))
    # What waits for the answer's room, ten seconds, is looked at ten times in a second.
    dispatcher = ScheduledDispatcher(boxes, names=names, clock=lambda: time.monotonic() * 50)
    asked = structs.replace(info(), prompt_tokens=9000, certain_tokens=1000)
    lease = await dispatcher.acquire(asked)
    assert (lease.model, lease.fallback) == ("large", True)
    lease.release(DONE)
    boxes.boxes[1].up = False
    lease = await dispatcher.acquire(asked)
    assert (lease.model, lease.fallback) == ("m", False)
    lease.release(DONE)
    boxes.boxes.pop()
    lease = await dispatcher.acquire(asked)
    assert (lease.model, lease.fallback) == ("m", False)
    lease.release(DONE)
    with pytest.raises(RequestError, match="maximum context length is 4096 tokens"):
        await dispatcher.acquire(structs.replace(asked, certain_tokens=5000))
    assert dispatcher.in_flight == 0


def failed_box(name: str, told: object) -> Box:
    box = Box(name, "other")
    box.status = replace(box.status, detail={"failed_models": told})
    return box


async def test_a_call_for_a_model_that_failed_is_told_that_and_why() -> None:
    names = ModelNames({"chat": "m"})
    dispatcher = ScheduledDispatcher(Boxes(failed_box("a", {"m": "out of memory"})), names=names)
    for asked in (info("m"), info("chat"), info("m", pin="a")):
        with pytest.raises(
            NodeUnavailable, match=r"'m' .* 'a', but it failed there: out of memory"
        ):
            await dispatcher.acquire(asked)


async def test_a_failure_on_a_node_that_a_key_may_not_use_is_not_told() -> None:
    boxes = Boxes(failed_box("a", {"m": "out of memory"}), Box("b", "other"))
    dispatcher = ScheduledDispatcher(boxes)
    with pytest.raises(RequestError) as caught:
        await dispatcher.acquire(info("m", limits={"nodes": ("b",)}))
    assert caught.value.fault is Fault.MODEL_NOT_FOUND


@pytest.mark.parametrize("told", [["m"], {"m": 1}, "m", {"x": "y"}])
async def test_a_node_that_tells_nonsense_of_failures_is_ignored(told: object) -> None:
    dispatcher = ScheduledDispatcher(Boxes(failed_box("a", told)))
    with pytest.raises(RequestError) as caught:
        await dispatcher.acquire(info("m"))
    assert caught.value.fault is Fault.MODEL_NOT_FOUND


async def test_another_node_that_has_the_model_serves_it_although_one_failed() -> None:
    dispatcher = ScheduledDispatcher(Boxes(failed_box("a", {"m": "crashed"}), Box("b", "m")))
    lease = await dispatcher.acquire(info("m"))
    assert lease.upstream.name == "b"
    lease.release(DONE)
