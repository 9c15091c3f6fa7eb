"""A request that is over is freed at once: what waits for the garbage collector stops everybody."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from tests.harness.exchanges import FakeExchange, make_request
from tests.harness.fleets import JSON, SSE, FakeNode, FakeStream
from wai_protocol.errors import Fault
from wai_relay.gateway.answer import Answer
from wai_relay.gateway.intake import Intake
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.gateway.reply import CallerReply
from wai_relay.gateway.routed_request import RoutedRequest
from wai_relay.gateway.sending import UPLOAD_BYTES
from wai_relay.observe.live import LiveRequest

from . import test_conversation as conversation
from .test_gateway import CHAT, DONE, MODEL, REPLY, STREAM, TOKEN, USAGE, Rig, answers, rig, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_collection")]

OF_A_REQUEST = (Answer, CallerReply, Intake, LiveRequest, RoutedRequest)
MESSAGE = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
NOT_FOUND = b'{"error":{"message":"no such tool"}}'


def begins(stream: FakeStream) -> None:
    """The script of an upstream that hangs in the middle of its answer."""
    stream.sink.on_headers(200, SSE)
    stream.sink.on_data(TOKEN)


def breaks_off(stream: FakeStream) -> None:
    begins(stream)
    stream.sink.on_reset(Fault.SESSION_LOST, "the node is gone")


async def handled(r: Rig, exchange: FakeExchange) -> None:
    """Answer as the edge has it done: the task keeps no CancelledError."""
    with suppress(asyncio.CancelledError):
        await r.gateway.handle(exchange)


async def _whole(r: Rig, node: FakeNode) -> None:
    node.script = answers(200, JSON, REPLY)
    assert (await r.ask()).body == REPLY


async def _streamed(r: Rig, node: FakeNode) -> None:
    node.script = answers(200, SSE, TOKEN, USAGE, DONE)
    assert (await r.ask(STREAM)).body == TOKEN + DONE


async def _streamed_after_a_heartbeat(r: Rig, node: FakeNode) -> None:
    async with r.asking(node) as exchange:
        r.clock.advance(20.0)
        assert exchange.started
        node.streams[0].answer(200, SSE, TOKEN, DONE)


async def _translated(r: Rig, node: FakeNode) -> None:
    node.status = FakeNode("gpu1", replace(MODEL, apis=("openai",))).status
    node.script = answers(200, JSON, REPLY)
    answer = await r.ask(MESSAGE, path="/v1/messages")
    assert (answer.status, json.loads(answer.body)["type"]) == (200, "message")


async def _refused_by_the_upstream(r: Rig, node: FakeNode) -> None:
    node.script = answers(404, JSON, NOT_FOUND)
    assert (await r.ask()).status == 404


async def _failed_everywhere(r: Rig, node: FakeNode) -> None:
    node.script = answers(500, JSON, NOT_FOUND)
    assert (await r.ask()).status == 500


async def _broken_off(r: Rig, node: FakeNode) -> None:
    node.script = breaks_off
    assert (await r.ask(STREAM)).over


async def _left_by_its_caller(r: Rig, node: FakeNode) -> None:
    node.script = begins
    caller = asyncio.ensure_future(handled(r, FakeExchange(make_request(), [STREAM])))
    await until(lambda: bool(node.streams))
    caller.cancel()
    await asyncio.wait([caller])


async def _refused_by_the_relay(r: Rig, node: FakeNode) -> None:
    node.is_ready = False
    assert (await r.ask(b"{")).status == 400


async def _long(r: Rig, node: FakeNode) -> None:
    node.script = answers(200, JSON, REPLY)
    text = b"x" * 2 * UPLOAD_BYTES
    assert (await r.ask(CHAT.replace(b"hi", text))).body == REPLY


async def _long_and_answered_early(r: Rig, node: FakeNode) -> None:
    node.congested = True
    exchange = FakeExchange(make_request(), [CHAT.replace(b"hi", b"x" * 2 * UPLOAD_BYTES)])
    caller = asyncio.ensure_future(handled(r, exchange))
    await until(lambda: bool(node.streams) and bool(node.streams[0].written))
    node.streams[0].answer(404, JSON, NOT_FOUND)
    await asyncio.wait([caller])
    assert exchange.status == 404


async def _spoken_to(r: Rig, node: FakeNode) -> None:
    node.status = FakeNode("box", conversation.MODEL).status
    caller = conversation.exchange(b"caller's frame")
    async with conversation.talking(r, caller, node) as stream:
        stream.sink.on_data(conversation.close())
        stream.sink.on_end()


@pytest.mark.parametrize(
    "go",
    [
        _whole,
        _streamed,
        _streamed_after_a_heartbeat,
        _translated,
        _refused_by_the_upstream,
        _failed_everywhere,
        _broken_off,
        _left_by_its_caller,
        _refused_by_the_relay,
        _long,
        _long_and_answered_early,
        _spoken_to,
    ],
)
async def test_nothing_of_a_request_waits_for_the_garbage_collector(
    go: Callable[[Rig, FakeNode], Awaitable[Any]],
) -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node, limits=GatewayLimits(heartbeat_s=10.0))
    await go(r, node)
    node.streams.clear()  # the doubles' own memory of them
    r.clock.timers.clear()
    await anyio.lowlevel.checkpoint()
    assert [type(one).__name__ for one in gc.get_objects() if isinstance(one, OF_A_REQUEST)] == []
