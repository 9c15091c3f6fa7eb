"""Every CALL is answered once and at once, also where its answer can't be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.session_pair import SessionPair
from wai_node.calls import Calls
from wai_protocol.errors import Fault, RequestError
from wai_protocol.events import CallReceived, ReplyReceived
from wai_protocol.session import Session

pytestmark = pytest.mark.anyio


class Port:
    """A session whose bytes the test moves; it counts how often it is flushed."""

    def __init__(self, core: Session) -> None:
        self.core = core
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


async def answered(handler: Callable[[], Any] | None) -> ReplyReceived:
    """What the relay hears when the node's handler does that."""
    pair = SessionPair()
    pair.connect()
    calls = Calls()
    if handler is not None:

        async def handle(
            method: str, params: dict[str, Any], tell: Callable[[str, Any], None]
        ) -> Any:
            return handler()

        calls.handler = handle
    pair.relay.session.call("model.logs", {})
    pair.settle()
    [asked] = [event for event in pair.node.events if isinstance(event, CallReceived)]
    port = Port(pair.node.session)
    calls.received(port, asked.call, asked.method, asked.params)
    for _ in range(3):
        await asyncio.sleep(0)
    assert port.flushes == 1
    pair.settle()
    [reply] = [event for event in pair.relay.events if isinstance(event, ReplyReceived)]
    return reply


async def test_an_answer_too_large_for_a_frame_is_said_so_at_once() -> None:
    reply = await answered(lambda: ["x" * 1000] * 300)
    assert not reply.ok
    assert reply.value["code"] == Fault.BODY_TOO_LARGE.row.wire_code
    assert "ask for less" in reply.value["message"]


async def test_an_answer_that_is_no_plain_value_is_an_error_at_once() -> None:
    reply = await answered(object)
    assert (reply.ok, reply.value["code"]) == (False, Fault.INTERNAL.row.wire_code)


@pytest.mark.parametrize(
    "fault", [Fault.BAD_REQUEST, Fault.FORBIDDEN, Fault.NOT_FOUND, Fault.STORAGE]
)
async def test_a_refusal_keeps_its_fault_over_the_wire(fault: Fault) -> None:
    def refuse() -> None:
        raise RequestError("because", fault)

    reply = await answered(refuse)
    assert reply.value == {"code": fault.row.wire_code, "message": "because"}


async def test_without_a_handler_every_call_is_refused() -> None:
    reply = await answered(None)
    assert reply.value["code"] == Fault.ROUTE_REFUSED.row.wire_code


async def test_a_bug_in_the_handler_is_an_answer_too() -> None:
    reply = await answered(lambda: 1 // 0)
    assert reply.value["message"] == "the node failed to do this; its log says why"


async def test_a_handler_that_never_ends_is_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wai_node.calls.ANSWER_S", 0.0)
    pair = SessionPair()
    pair.connect()
    calls = Calls()
    stopped = asyncio.Event()

    async def handle(method: str, params: object, tell: Callable[[str, Any], None]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    calls.handler = handle
    pair.relay.session.call("model.logs", {})
    pair.settle()
    port = Port(pair.node.session)
    calls.received(port, 1, "model.logs", {})
    await stopped.wait()
    await asyncio.sleep(0)
    assert port.flushes == 1
    pair.settle()
    [reply] = [event for event in pair.relay.events if isinstance(event, ReplyReceived)]
    assert reply.value["code"] == Fault.UPSTREAM_TIMEOUT.row.wire_code
