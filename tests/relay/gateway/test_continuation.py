"""An answer whose node dies is continued by another one, in the same stream, if that was asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.exchanges import CALLER_KEY, FakeExchange
from tests.harness.fleets import SSE, FakeNode, FakeStream
from tests.relay.gateway.test_gateway import DONE, rig
from wai_protocol.errors import Fault
from wai_protocol.status import CONTINUE_FINAL_MESSAGE, ModelStatus, NodeStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.records import TokenCounts
from wai_relay.gateway.bodies import read_json
from wai_relay.gateway.continuation import MAX_CONTINUATIONS, MAX_TEXT_CHARS, Continuation
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.limits import GatewayLimits

pytestmark = pytest.mark.anyio

MODEL = ModelStatus(id="m", upstream="openai@box")
ASKED: Headers = [(b"authorization", b"Bearer " + CALLER_KEY), (b"x-wai-continue", b"1")]


def body(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "Count."}]
    return json.dumps({"model": "m", "stream": True, "messages": messages, **fields}).encode()


def chunk(text: str | None = None, *, finish: str | None = None, **delta: Any) -> bytes:
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "first", "choices": [choice]}).encode() + b"\n\n"


def dies_after(*events: bytes, fault: Fault = Fault.UPSTREAM_BROKE) -> Any:
    def script(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        for event in events:
            stream.sink.on_data(event)
        stream.sink.on_reset(fault, "it is gone")

    return script


def answers(*events: bytes) -> Any:
    return lambda stream: stream.answer(200, SSE, *events)


def said(exchange: FakeExchange) -> str:
    text = ""
    for line in exchange.body.splitlines():
        if line.startswith(b"data: {"):
            payload = json.loads(line[6:])
            for choice in payload.get("choices", []):
                text += choice["delta"].get("content") or ""
    return text


ROLE = chunk(role="assistant")


@pytest.mark.parametrize("limits", [GatewayLimits(), GatewayLimits(routing_body_bytes=20)])
async def test_the_next_node_goes_on_from_the_text_so_far(limits: GatewayLimits) -> None:
    first = FakeNode("z", MODEL, script=dies_after(ROLE, chunk("one "), chunk("two ")))
    second = FakeNode("a", MODEL, script=answers(ROLE, chunk("three"), chunk(finish="stop"), DONE))
    r = rig(first, second, limits=limits)
    exchange = await r.ask(body(max_tokens=10), headers=ASKED)
    assert exchange.ended
    assert said(exchange) == "one two three"
    assert exchange.body.count(b'"role"') == 1
    assert b": continued on a\n\n" in exchange.body
    assert exchange.body.endswith(DONE)
    asked = json.loads(second.streams[0].body)
    assert asked["messages"][1:] == [{"role": "assistant", "content": "one two "}]
    assert asked["max_tokens"] == 8
    assert "continue_final_message" not in asked
    record = r.records[0]
    assert (record.continued, record.attempts, record.fault, record.status) == (1, 2, "", 200)


async def test_half_an_event_is_not_said_twice() -> None:
    cut = chunk("two ")
    first = FakeNode("z", MODEL, script=dies_after(chunk("one "), cut[:20]))
    second = FakeNode("a", MODEL, script=answers(chunk("two "), DONE))
    exchange = await rig(first, second).ask(body(), headers=ASKED)
    assert said(exchange) == "one two "


@pytest.mark.parametrize(
    "told",
    [
        {"upstream": "vllm@box:8000"},  # by a node that does not tell capabilities
        {"upstream": "llama-server@box:8000"},
        {"upstream": "new@box:8000", "capabilities": [CONTINUE_FINAL_MESSAGE]},
    ],
)
async def test_who_knows_the_fields_is_told_not_to_open_a_new_turn(told: dict[str, Any]) -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    [vllm] = NodeStatus.from_wire({"models": [{"id": "m", **told}]}).models
    second = FakeNode("a", vllm, script=answers(chunk("two"), DONE))
    await rig(first, second).ask(body(), headers=ASKED)
    asked = json.loads(second.streams[0].body)
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False


async def test_a_kind_without_the_capability_is_not_sent_the_fields() -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    [vllm] = NodeStatus.from_wire(
        {"models": [{"id": "m", "upstream": "vllm@box:8000", "capabilities": []}]}
    ).models
    second = FakeNode("a", vllm, script=answers(chunk("two"), DONE))
    await rig(first, second).ask(body(), headers=ASKED)
    assert "continue_final_message" not in json.loads(second.streams[0].body)


async def test_usage_is_that_of_the_whole_answer() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3}
    last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    first = FakeNode("z", MODEL, script=dies_after(chunk("one "), chunk("two ")))
    second = FakeNode("a", MODEL, script=answers(chunk("three"), last, DONE))
    r = rig(first, second)
    options = {"stream_options": {"include_usage": True}}
    exchange = await r.ask(body(**options), headers=ASKED)
    assert b'"prompt_tokens":10,"completion_tokens":5' in exchange.body
    assert r.records[0].tokens == TokenCounts(10, 0, 5, exact=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_what_text_alone_can_not_continue_is_not_continued(fields: dict[str, Any]) -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    second = FakeNode("a", MODEL, script=answers(DONE))
    exchange = await rig(first, second).ask(body(**fields), headers=ASKED)
    assert b"upstream_broke" in exchange.body
    assert not second.streams


async def test_nothing_is_continued_unasked() -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    second = FakeNode("a", MODEL, script=answers(DONE))
    exchange = await rig(first, second).ask(body())
    assert b"upstream_broke" in exchange.body
    assert not second.streams


async def test_a_key_may_ask_for_it_and_a_request_decline() -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    second = FakeNode("a", MODEL, script=answers(chunk("two"), DONE))
    r = rig(first, second, continue_=True)
    assert said(await r.ask(body())) == "one two"
    declined = [ASKED[0], (b"x-wai-continue", b"0")]
    assert said(await r.ask(body(), headers=declined)) == "one "


@pytest.mark.parametrize("part", ["tool_calls", "reasoning_content"])
async def test_an_answer_that_is_more_than_text_is_not_continued(part: str) -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one "), chunk(**{part: "x"})))
    second = FakeNode("a", MODEL, script=answers(DONE))
    exchange = await rig(first, second).ask(body(), headers=ASKED)
    assert b"upstream_broke" in exchange.body
    assert not second.streams


async def test_an_answer_that_lacks_only_its_end_gets_it_here() -> None:
    for last in (chunk(finish="stop"), chunk("two")):
        first = FakeNode("z", MODEL, script=dies_after(chunk("one "), last))
        exchange = await rig(first).ask(body(max_tokens=2), headers=ASKED)
        assert exchange.body.endswith(DONE)
        assert b"finish_reason" in exchange.body.splitlines()[-4]


async def test_nobody_to_go_on_is_an_error_event() -> None:
    first = FakeNode("z", MODEL, script=dies_after(chunk("one "), fault=Fault.UPSTREAM_BROKE))
    r = rig(first)
    exchange = await r.ask(body(), headers=ASKED)
    assert exchange.ended
    assert exchange.body.count(b"upstream_broke") == 1
    assert DONE not in exchange.body
    assert r.records[0].fault == "upstream_broke"
    assert not r.dispatcher._claims


async def test_a_refused_continuation_is_an_error_event() -> None:
    def refuse(stream: FakeStream) -> None:
        stream.answer(400, [], b'{"error":{"message":"no prefill here"}}')

    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    second = FakeNode("a", MODEL, script=refuse)
    exchange = await rig(first, second).ask(body(), headers=ASKED)
    assert b"no prefill here" in exchange.body
    assert DONE not in exchange.body


def continuation(**fields: Any) -> Continuation:
    data = body(**fields)
    route = DIALECTS.find_route("POST", "/v1/chat/completions")
    assert route is not None
    read = read_json(data, DIALECTS.of(route.path), route)
    return Continuation(read)


async def test_a_text_without_end_is_not_kept() -> None:
    kept = continuation()
    kept.take(chunk("x" * MAX_TEXT_CHARS))
    assert kept.possible
    kept.take(chunk("x"))
    assert not kept.possible
    assert not kept._text


async def test_a_fleet_that_falls_apart_is_not_followed_for_ever() -> None:
    kept = continuation()
    kept.take(chunk("x"))
    for _ in range(MAX_CONTINUATIONS):
        assert kept.possible
        kept.go_on()
    assert not kept.possible


async def test_an_answer_to_a_beginning_of_the_callers_own_is_not_continued() -> None:
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "Well, "}]
    first = FakeNode("z", MODEL, script=dies_after(chunk("one ")))
    second = FakeNode("a", MODEL, script=answers(DONE))
    await rig(first, second).ask(body(messages=messages), headers=ASKED)
    assert not second.streams


async def test_a_server_that_says_the_text_so_far_again_is_not_heard_twice() -> None:
    first = FakeNode("z", MODEL, script=dies_after(ROLE, chunk("one "), chunk("two ")))
    second = FakeNode("a", MODEL, script=answers(ROLE, chunk("one two three "), chunk("4"), DONE))
    exchange = await rig(first, second).ask(body(), headers=ASKED)
    assert said(exchange) == "one two three 4"
