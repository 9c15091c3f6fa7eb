"""A translated request is failed over, continued, kept alive and counted as any other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.chat_chunks import DONE, chunk
from tests.harness.exchanges import CALLER_KEY, FakeExchange, make_request
from tests.harness.fleets import JSON, SSE, FakeNode, FakeStream
from tests.relay.gateway.test_gateway import answers, rig
from wai_protocol.errors import Fault
from wai_protocol.status import ModelStatus
from wai_relay.gateway.limits import GatewayLimits

pytestmark = pytest.mark.anyio

PLAIN = ModelStatus(id="m", upstream="generic", apis=("openai",))
HELLO: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "stream": True,
    "messages": [{"role": "user", "content": "hi"}],
}
BODY = json.dumps(HELLO).encode()
PATH = "/v1/messages"
FINISH = chunk({}, "stop")


def events_of(exchange: FakeExchange) -> list[dict[str, Any]]:
    lines = exchange.body.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]


def text_of(exchange: FakeExchange) -> str:
    deltas = [event["delta"] for event in events_of(exchange) if "delta" in event]
    return "".join(delta.get("text", "") for delta in deltas)


def lost_after(text: str) -> Any:
    def script(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(chunk({"role": "assistant"}))
        if text:
            stream.sink.on_data(chunk({"content": text}))
        stream.sink.on_reset(Fault.UPSTREAM_BROKE, "the server died")

    return script


async def test_another_node_answers_where_the_first_said_nothing() -> None:
    whole = answers(200, SSE, chunk({"content": "Hi."}), FINISH, DONE)
    r = rig(FakeNode("b", PLAIN, script=lost_after("")), FakeNode("a", PLAIN, script=whole))
    exchange = await r.ask(BODY, path=PATH)
    assert text_of(exchange) == "Hi."
    assert exchange.header(b"x-wai-attempts") == b"2"
    assert [event["type"] for event in events_of(exchange)].count("message_start") == 1


@pytest.mark.parametrize(
    "document",
    [b"{}", b'{"choices":[]}', b'{"detail":"x"}', b'{"choices":[{"finish_reason":"error"}]}'],
)
async def test_another_node_answers_where_the_first_has_nothing_to_translate(
    document: bytes,
) -> None:
    whole = answers(200, JSON, b'{"choices":[{"message":{"content":"Hi."}}]}')
    bad = FakeNode("b", PLAIN, script=answers(200, JSON, document))
    r = rig(bad, FakeNode("a", PLAIN, script=whole))
    exchange = await r.ask(json.dumps(HELLO | {"stream": False}).encode(), path=PATH)
    assert json.loads(exchange.body)["content"] == [{"type": "text", "text": "Hi."}]


async def test_another_node_continues_a_cut_answer() -> None:
    rest = answers(200, SSE, chunk({"content": "world."}), FINISH, DONE)
    second = FakeNode("a", PLAIN, script=rest)
    r = rig(FakeNode("b", PLAIN, script=lost_after("Hello ")), second)
    headers = [(b"authorization", b"Bearer " + CALLER_KEY), (b"x-wai-continue", b"1")]
    exchange = await r.ask(BODY, path=PATH, headers=headers)
    assert text_of(exchange) == "Hello world."
    kinds = [event["type"] for event in events_of(exchange)]
    assert (kinds.count("message_start"), kinds[-1]) == (1, "message_stop")
    assert json.loads(second.streams[0].body)["messages"][-1] == {
        "role": "assistant",
        "content": "Hello ",
    }
    assert r.records[0].continued == 1


async def test_a_waiting_caller_hears_heartbeats_and_then_the_answer() -> None:
    node = FakeNode("a", PLAIN)
    r = rig(node)
    exchange = FakeExchange(make_request(path=PATH), [BODY])

    def answer_late(stream: FakeStream) -> None:
        r.clock.advance(GatewayLimits().heartbeat_s)
        answers(200, SSE, chunk({"content": "Hi."}), FINISH, DONE)(stream)

    node.script = answer_late
    await r.gateway.handle(exchange)
    assert exchange.body.startswith(b": waiting\n\n")
    assert b"x-wai-node: a" in exchange.body
    assert text_of(exchange) == "Hi."


REPLY = b'{"choices":[{"message":{"content":"Hi."},"finish_reason":"stop"}]}'


def with_pictures(count: int, *, text: str = "What?") -> dict[str, Any]:
    pictures = [
        {"type": "base64", "media_type": "image/png", "data": f"{n:04}" + "A/" * 20_000}
        for n in range(count)
    ]
    content = [{"type": "image", "source": picture} for picture in pictures]
    content.append({"type": "text", "text": text})
    return HELLO | {"stream": False, "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("memory", [256 << 20, 20_000], ids=["memory", "disk"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
async def test_a_long_body_is_translated_as_a_short_one(memory: int, begin: bytes) -> None:
    body = json.dumps(with_pictures(3)).encode()
    short = FakeNode("a", PLAIN, script=answers(200, JSON, REPLY))
    await rig(short).ask(body, path=PATH)
    nodes = [
        FakeNode("z", PLAIN, script=answers(503, JSON, b"{}")),
        FakeNode("a", PLAIN, script=answers(200, JSON, REPLY)),
    ]
    limits = GatewayLimits(routing_body_bytes=4096, held_total_bytes=memory)
    r = rig(*nodes, limits=limits)
    escaped = begin + body.replace(b"/", b"\\/")
    exchange = await r.ask(escaped, path=PATH)
    assert exchange.status == 200
    for node in nodes:
        (stream,) = node.streams
        assert json.loads(stream.body) == json.loads(short.streams[0].body)
        assert dict(stream.headers)[b"content-length"] == b"%d" % len(stream.body)
    assert r.gateway._budget.held_bytes == r.gateway._spool.budget.held_bytes == 0


async def test_a_long_body_of_text_is_translated_too() -> None:
    node = FakeNode("a", PLAIN, script=answers(200, JSON, REPLY))
    r = rig(node, limits=GatewayLimits(routing_body_bytes=4096))
    body = with_pictures(1, text="word " * 5000)
    assert (await r.ask(json.dumps(body).encode(), path=PATH)).status == 200
    assert node.streams[0].body.count(b"word ") == 5000
    assert r.gateway._budget.held_bytes == 0


async def test_a_long_body_with_half_a_pair_is_refused_for_that() -> None:
    r = rig(FakeNode("a", PLAIN), limits=GatewayLimits(routing_body_bytes=4096))
    body = json.dumps(with_pictures(1, text="half \ud83d of it"))
    exchange = await r.ask(body.encode(), path=PATH)
    assert exchange.status == 400
    assert b"surrogate pair" in exchange.body


async def test_tokens_of_a_long_body_are_counted_here() -> None:
    r = rig(FakeNode("a", PLAIN), limits=GatewayLimits(routing_body_bytes=4096))
    body = json.dumps(with_pictures(2)).encode()
    exchange = await r.ask(body, path=PATH + "/count_tokens")
    assert json.loads(exchange.body)["input_tokens"] > 1000
    assert r.gateway._budget.held_bytes == 0


async def test_a_slow_caller_holds_the_upstream_back() -> None:
    node = FakeNode("a", PLAIN)
    r = rig(node)
    exchange = FakeExchange(make_request(path=PATH), [BODY])

    def script(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(chunk({"content": "Hi."}))
        exchange.pause()
        before = stream.consumed
        stream.sink.on_data(chunk({"content": "x" * 8192}))
        assert stream.consumed == before
        exchange.resume()
        assert stream.consumed > before
        stream.sink.on_data(FINISH + DONE)
        stream.sink.on_end()

    node.script = script
    await r.gateway.handle(exchange)
    assert exchange.ended
    assert text_of(exchange) == "Hi." + "x" * 8192
