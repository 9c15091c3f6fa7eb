"""A WebSocket through the gateway: tried like any request, then carried, counted and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from websockets.frames import Close, Frame, Opcode

from tests.harness.exchanges import CALLER_KEY, FakeExchange, make_request
from tests.harness.fleets import JSON, FakeNode, FakeStream
from wai_protocol.errors import AuthError, Fault
from wai_protocol.status import ModelStatus
from wai_protocol.surface import Headers

from .test_gateway import Rig, rig, until

pytestmark = pytest.mark.anyio

MODEL = ModelStatus(id="voice", upstream="u", slots_total=4)
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
AUTHORIZED: Headers = [(b"authorization", b"Bearer " + CALLER_KEY)]
DONE = (
    b'{"type":"response.done","response":{"usage":{"input_tokens":20,"output_tokens":5,'
    b'"input_token_details":{"cached_tokens":8},"total_tokens":25}}}'
)


def text(data: bytes) -> bytes:
    return Frame(Opcode.TEXT, data).serialize(mask=False)


def close(code: int = 1000) -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big")).serialize(mask=False)


def closed_with(exchange: FakeExchange) -> Close:
    """What the last frame that the caller got says."""
    frame = exchange.written[-1]
    assert frame[0] == 0x88
    assert frame[1] == len(frame) - 2
    return Close.parse(frame[2:])


def exchange(
    *said: bytes, headers: Headers | None = None, query: str = "model=voice"
) -> FakeExchange:
    request = make_request("GET", "/v1/realtime", headers=headers or AUTHORIZED, query=query)
    return FakeExchange(request, said, stays_open=True, websocket_key=KEY)


@asynccontextmanager
async def talking(r: Rig, caller: FakeExchange, node: FakeNode) -> AsyncIterator[FakeStream]:
    """A WebSocket that the upstream of `node` has agreed to."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller)
        await until(lambda: bool(node.streams))
        stream = node.streams[-1]
        stream.sink.on_headers(200, [(b"sec-websocket-protocol", b"realtime")])
        yield stream
        await until(lambda: caller.over)


async def test_both_sides_are_heard_and_the_answers_are_counted() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange(b"caller's frame")
    async with talking(r, caller, node) as stream:
        await until(lambda: stream.body == b"caller's frame")
        assert caller.status == 101
        assert caller.header(b"sec-websocket-protocol") == b"realtime"
        assert caller.header(b"x-wai-node") == b"box"
        for frame in (text(b'{"type":"response.output_text.delta"}'), text(DONE), text(DONE)):
            stream.sink.on_data(frame)
        stream.sink.on_data(close())
        stream.sink.on_end()
    assert caller.body == text(b'{"type":"response.output_text.delta"}') + 2 * text(DONE) + close()
    assert caller.ended
    (record,) = r.records
    assert (record.status, record.fault, record.model) == (101, "", "voice")
    tokens = record.tokens
    assert (tokens.prompt, tokens.cached, tokens.completion, tokens.exact) == (40, 16, 10, True)
    assert stream.consumed or len(caller.body) < 4096


async def test_what_an_upstream_does_not_count_is_counted_by_pieces() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(text(b'{"type":"transcription.delta","delta":"a"}') * 3)
        stream.sink.on_data(close())
        stream.sink.on_end()
    assert (r.records[0].tokens.completion, r.records[0].tokens.exact) == (3, False)


async def test_one_that_has_no_websocket_is_passed_over() -> None:
    lacking, having = FakeNode("z-lacking", MODEL), FakeNode("having", MODEL)
    r, caller = rig(lacking, having), exchange(b"hello")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller)
        await until(lambda: bool(lacking.streams))
        lacking.streams[0].sink.on_reset(Fault.ROUTE_REFUSED, "the server has no WebSocket")
        await until(lambda: bool(having.streams))
        having.streams[0].sink.on_headers(200, [])
        await until(lambda: having.streams[0].body == b"hello")
        having.streams[0].sink.on_data(close())
        having.streams[0].sink.on_end()
        await until(lambda: caller.over)
    assert lacking.streams[0].body == b""
    assert (r.records[0].node, r.records[0].attempts) == ("having", 2)


@pytest.mark.parametrize("status", [403, 404, 405, 501])
async def test_a_server_without_a_websocket_is_told_in_our_words(status: int) -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller)
        await until(lambda: bool(node.streams))
        node.streams[0].answer(status, [(b"content-type", b"text/html")], b"<html>")
        await until(lambda: caller.over)
    assert caller.status == 404
    assert b"has no WebSocket /v1/realtime" in caller.body


async def test_an_upstreams_refusal_is_a_plain_answer() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller)
        await until(lambda: bool(node.streams))
        node.streams[0].answer(400, JSON, b'{"error":{"message":"no such voice"}}')
        await until(lambda: caller.over)
    assert (caller.status, caller.ended) == (400, True)
    assert b"no such voice" in caller.body


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.SESSION_LOST, 1013),
        (Fault.UPSTREAM_BROKE, 1011),
        (Fault.UPSTREAM_TIMEOUT, 1001),
    ],
)
async def test_a_lost_upstream_is_told_in_a_close_frame(fault: Fault, code: int) -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(text(b"{}"))
        stream.sink.on_reset(fault, "it is gone")
    said = closed_with(caller)
    assert (said.code, said.reason) == (code, "it is gone")
    assert r.records[0].fault == fault.row.openai_code


async def test_an_end_without_a_close_frame_is_no_clean_one() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        stream.sink.on_end()
    assert closed_with(caller).code == 1011
    assert r.records[0].fault == "upstream_broke"


async def test_in_the_middle_of_a_frame_the_connection_is_cut() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(text(b"a frame")[:4])
        stream.sink.on_reset(Fault.SESSION_LOST, "it is gone")
    assert caller.aborted


async def test_an_admin_ends_it_with_a_reason() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        live = r.gateway.live.find("req_test")
        assert live is not None
        live.end()
    assert "ended by the relay's admin" in closed_with(caller).reason
    assert stream.reset_with is Fault.CANCELLED


@pytest.mark.parametrize(("limits", "code"), [({"tpm": 30}, 1013), ({"monthly_tokens": 30}, 1008)])
async def test_a_budget_that_is_used_up_ends_it(limits: dict[str, Any], code: int) -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node, **limits), exchange()
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(text(DONE))
        await anyio.lowlevel.checkpoint()
        assert not caller.over
        stream.sink.on_data(text(DONE))
    said = closed_with(caller)
    assert said.code == code
    assert "30 tokens" in said.reason
    assert r.records[0].tokens.total == 50
    assert stream.reset_with is not None


async def test_a_key_that_was_revoked_meanwhile_ends_it_at_the_next_answer() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:

        def revoked(headers: Headers) -> None:
            raise AuthError("this API key is not known, or was revoked", Fault.KEY_INVALID)

        r.gateway._keys.authenticate = revoked  # type: ignore[method-assign, assignment]
        stream.sink.on_data(text(DONE))
    assert (closed_with(caller).code, "revoked" in closed_with(caller).reason) == (1008, True)


async def test_silence_ends_it_and_a_word_of_either_side_does_not() -> None:
    node = FakeNode("box", MODEL)
    r, caller = rig(node), exchange()
    async with talking(r, caller, node) as stream:
        for _ in range(3):
            r.clock.advance(200)
            stream.sink.on_data(text(b"{}"))
            assert not caller.over
        r.clock.advance(301)
    assert closed_with(caller).code == 1001


async def test_the_key_of_a_web_page_stays_here_and_its_other_protocols_go_on() -> None:
    offered = b"realtime, openai-insecure-api-key.SECRET, openai-beta.realtime-v1"
    node = FakeNode("box", MODEL)
    r = rig(node)
    caller = exchange(headers=[*AUTHORIZED, (b"sec-websocket-protocol", offered)])
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(close())
        stream.sink.on_end()
    sent = dict(stream.headers)
    assert sent[b"sec-websocket-protocol"] == b"realtime, openai-beta.realtime-v1"
    assert not any(b"SECRET" in value for _, value in stream.headers)
    assert b"authorization" not in sent
    assert b"sec-websocket-key" not in sent


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (b"realtime, openai-insecure-api-key.S", b"realtime"),
        (b"openai-insecure-api-key.S", b"openai-insecure-api-key.S"),
        (b"realtime", None),
    ],
)
async def test_a_page_gets_a_protocol_also_from_a_server_that_chooses_none(
    offered: bytes, chosen: bytes | None
) -> None:
    node = FakeNode("box", MODEL)
    r = rig(node)
    caller = exchange(headers=[*AUTHORIZED, (b"sec-websocket-protocol", offered)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller)
        await until(lambda: bool(node.streams))
        node.streams[0].sink.on_headers(200, [])
        assert caller.header(b"sec-websocket-protocol") == chosen
        node.streams[0].sink.on_data(close())
        node.streams[0].sink.on_end()
        await until(lambda: caller.over)


async def test_the_model_in_the_query_is_the_one_that_the_upstream_knows() -> None:
    node = FakeNode("box", ModelStatus(id="org/voice:Q8", upstream="u", slots_total=1))
    r = rig(node)
    caller = exchange(query="a=1&model=org%2Fvoice%3AQ8&b=2")
    async with talking(r, caller, node) as stream:
        stream.sink.on_data(close())
        stream.sink.on_end()
    assert stream.target == "/v1/realtime?a=1&model=org%2Fvoice%3AQ8&b=2"


async def test_a_plain_request_is_told_to_connect() -> None:
    r = rig(FakeNode("box", MODEL))
    answer = await r.ask(b"", method="GET", path="/v1/realtime")
    assert answer.status == 400
    assert b"wss://" in answer.body
