"""Anthropic's Messages over chat completions: what the upstream is sent, and what the caller gets.

The answers are read by Anthropic's own SDK.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.chat_chunks import DONE, HOSTILE, TOOLS, call, chunk
from tests.harness.exchanges import FakeExchange
from tests.harness.fleets import JSON, SSE, FakeNode
from tests.relay.gateway.test_gateway import Rig, answers, rig
from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.gateway.translation.messages import MessagesTranslation
from wai_relay.gateway.translation.translation import Asked
from wai_relay.observe.explain import explain

if TYPE_CHECKING:  # each takes seconds to import: not for every worker of the tests
    import anthropic

pytestmark = pytest.mark.anyio

PLAIN = ModelStatus(id="m", upstream="generic", apis=("openai",))
NATIVE = ModelStatus(id="m", upstream="llama", apis=("openai", "anthropic"))
HELLO: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
ASKED = Asked("m", 17, lambda: 1.7e9, lambda: "abc")


async def ask(r: Rig, **fields: Any) -> FakeExchange:
    return await r.ask(json.dumps(HELLO | fields).encode(), path="/v1/messages")


def events_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]


def parsed(body: bytes, content_type: str) -> anthropic.Anthropic:
    """A client of Anthropic's SDK for which every answer is `body`."""
    import anthropic

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body, headers={"content-type": content_type})

    http = httpx.Client(transport=httpx.MockTransport(respond))
    return anthropic.Anthropic(api_key="k", base_url="http://test", http_client=http)


async def test_a_stream_is_what_their_sdk_reads() -> None:
    node = FakeNode("gpu1", PLAIN, script=answers(200, SSE, *TOOLS))
    r = rig(node)
    exchange = await ask(r, stream=True)
    assert exchange.header(b"x-wai-translated") == b"/v1/chat/completions"
    assert node.streams[0].target == "/v1/chat/completions"
    client = parsed(exchange.body, "text/event-stream")
    with client, client.messages.stream(**HELLO) as stream:
        message = stream.get_final_message()
    blocks: list[Any] = list(message.content)
    thinking, text, first, second = blocks
    assert (thinking.thinking, text.text) == ("hm", "Let me.")
    assert (first.id, first.name, first.input) == ("call_a", "ls", {"path": "/"})
    assert (second.id, second.name, second.input) == ("call_b", "find", {"q": 1})
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (20, 10)
    assert usage.output_tokens == 5
    (record,) = r.records
    assert (record.tokens.prompt, record.tokens.cached, record.tokens.completion) == (30, 10, 5)
    assert record.tokens.exact
    assert (record.path, record.translated) == ("/v1/messages", "/v1/chat/completions")
    assert explain(record).translated == "/v1/chat/completions"
    indices = [e["index"] for e in events_of(exchange.body) if e["type"] == "content_block_start"]
    assert indices == [0, 1, 2, 3]


async def test_a_whole_answer_is_what_their_sdk_reads() -> None:
    reply = {
        "choices": [
            {
                "finish_reason": "length",
                "message": {
                    "role": "assistant",
                    "reasoning": "hm",
                    "content": "Hi.",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ],
                },
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    r = rig(FakeNode("gpu1", PLAIN, script=answers(200, JSON, json.dumps(reply).encode())))
    exchange = await ask(r)
    assert exchange.header(b"content-length") == b"%d" % len(exchange.body)
    with parsed(exchange.body, "application/json") as client:
        message = client.messages.create(**HELLO)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert (message.stop_reason, message.usage.input_tokens) == ("max_tokens", 9)
    assert (r.records[0].tokens.prompt, r.records[0].tokens.completion) == (9, 2)


async def test_whoever_has_the_dialect_is_never_translated() -> None:
    plain, native = FakeNode("a", PLAIN), FakeNode("b", NATIVE, script=answers(200, JSON, b"{}"))
    exchange = await ask(rig(plain, native))
    assert exchange.header(b"x-wai-translated") is None
    assert [stream.target for stream in native.streams] == ["/v1/messages"]
    assert not plain.streams


async def test_whoever_is_away_is_replaced_by_a_translation_and_else_waited_for() -> None:
    away = FakeNode("b", NATIVE, ready=False)
    plain = FakeNode("a", PLAIN, script=answers(200, SSE, *TOOLS))
    assert (await ask(rig(plain, away), stream=True)).status == 200
    assert (await ask(rig(away), stream=True)).status == 503
    assert (await ask(rig(away), stream=True)).header(b"x-wai-translated") is None


async def test_translation_can_be_turned_off() -> None:
    exchange = await ask(rig(FakeNode("a", PLAIN), limits=GatewayLimits(translate=False)))
    assert exchange.status == 404
    assert json.loads(exchange.body)["type"] == "error"


async def test_tokens_are_counted_by_estimate() -> None:
    r = rig(FakeNode("a", PLAIN))
    exchange = await r.ask(json.dumps(HELLO).encode(), path="/v1/messages/count_tokens")
    assert exchange.status == 200
    assert json.loads(exchange.body)["input_tokens"] > 0
    assert exchange.header(b"x-wai-translated") == b"relay"


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_refusal_is_told_in_the_callers_dialect(status: int) -> None:
    refusal = b'{"error":{"message":"no such thing"}}'
    exchange = await ask(rig(FakeNode("a", PLAIN, script=answers(status, JSON, refusal))))
    assert exchange.status == status
    found = json.loads(exchange.body)
    assert (found["type"], found["error"]["message"]) == ("error", "no such thing")


async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for() -> None:
    refusal = b'{"error":{"message":"over 512 tokens","code":"context_length_exceeded"}}'
    exchange = await ask(rig(FakeNode("a", PLAIN, script=answers(400, JSON, refusal))))
    error = json.loads(exchange.body)["error"]
    assert (exchange.status, error["type"]) == (400, "invalid_request_error")
    assert error["message"] == "prompt is too long: over 512 tokens"


async def test_what_is_no_chat_completion_is_the_upstreams_fault() -> None:
    for answer in (b"[]", b"{", b'{"error":"x"}'):
        exchange = await ask(rig(FakeNode("a", PLAIN, script=answers(200, JSON, answer))))
        assert exchange.status == 502
        assert json.loads(exchange.body)["type"] == "error"


async def test_a_cut_stream_ends_with_an_error_event() -> None:
    exchange = await ask(rig(FakeNode("a", PLAIN, script=answers(200, SSE, TOOLS[2]))), stream=True)
    events = events_of(exchange.body)
    assert events[-1]["type"] == "error"
    assert "message_stop" not in [event["type"] for event in events]


async def test_an_error_in_the_middle_of_a_stream_is_an_error_event() -> None:
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    exchange = await ask(
        rig(FakeNode("a", PLAIN, script=answers(200, SSE, TOOLS[2], error))), stream=True
    )
    events = events_of(exchange.body)
    assert events[-1]["error"]["message"] == "out of memory"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"detail":"out of memory"}', "out of memory"),
        (b"Killed", "The upstream reported an error."),
    ],
)
async def test_an_event_that_is_named_an_error_ends_no_answer_well(
    data: bytes, message: str
) -> None:
    error = b"event: error\ndata: " + data + b"\n\n"
    node = FakeNode("a", PLAIN, script=answers(200, SSE, TOOLS[2], error, DONE))
    r = rig(node)
    events = events_of((await ask(r, stream=True)).body)
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": message}}
    assert r.records[0].fault == "upstream_broke"


async def test_a_byte_order_mark_hides_no_piece() -> None:
    pieces = (b"\xef\xbb\xbf" + TOOLS[2], chunk({}, "stop"), DONE)
    node = FakeNode("a", PLAIN, script=answers(200, SSE, *pieces))
    events = events_of((await ask(rig(node), stream=True)).body)
    assert [event["delta"]["text"] for event in events if "block_delta" in event["type"]] == [
        "Let "
    ]


async def test_a_server_that_does_not_stream_is_translated_to_a_stream() -> None:
    reply = b'{"choices":[{"message":{"content":"Hi."},"finish_reason":"stop"}]}'
    exchange = await ask(rig(FakeNode("a", PLAIN, script=answers(200, JSON, reply))), stream=True)
    client = parsed(exchange.body, "text/event-stream")
    with client, client.messages.stream(**HELLO) as stream:
        assert stream.get_final_text() == "Hi."


THOUGHT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": "Yes"},
]


async def test_a_content_of_parts_is_not_lost() -> None:
    whole = {"choices": [{"message": {"content": THOUGHT}, "finish_reason": "stop"}]}
    node = FakeNode("a", PLAIN, script=answers(200, JSON, json.dumps(whole).encode()))
    thinking, text = json.loads((await ask(rig(node))).body)["content"]
    assert (thinking["thinking"], text["text"]) == ("hm", "Yes")
    pieces = [chunk({"content": [part]}) for part in THOUGHT]
    stream = (*pieces, chunk({"content": " sir"}), chunk({}, "stop"), DONE)
    node = FakeNode("a", PLAIN, script=answers(200, SSE, *stream))
    events = events_of((await ask(rig(node), stream=True)).body)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert [delta.get("thinking") or delta["text"] for delta in deltas] == ["hm", "Yes", " sir"]


@pytest.mark.parametrize(
    ("pieces", "inputs"),
    [
        # Gemini and older Ollamas call every one the first.
        (
            [
                call(0, '{"n":1}', id="call_a", name="ls"),
                call(0, '{"n":', id="call_b", name="ls"),
                call(0, "2}"),
            ],
            [{"n": 1}, {"n": 2}],
        ),
        # Older vLLMs make a new id for every piece, others say id and name again.
        ([call(0, '{"n":', id="call_a", name="ls"), call(0, "1}", id="call_x")], [{"n": 1}]),
        (
            [
                call(0, '{"n":', id="call_a", name="ls"),
                call(0, "1}", id="call_a", name="ls"),
            ],
            [{"n": 1}],
        ),
        ([call(0, '{"n":', id="call_a"), call(0, "1}", name="ls")], [{"n": 1}]),
    ],
)
async def test_pieces_of_calls_are_joined_as_they_belong(
    pieces: list[dict[str, Any]], inputs: list[Any]
) -> None:
    stream = (*map(chunk, pieces), chunk({}, "tool_calls"), DONE)
    node = FakeNode("a", PLAIN, script=answers(200, SSE, *stream))
    client = parsed((await ask(rig(node), stream=True)).body, "text/event-stream")
    with client, client.messages.stream(**HELLO) as read:
        content: list[Any] = list(read.get_final_message().content)
    assert [block.input for block in content] == inputs
    assert [block.id for block in content] == ["call_a", "call_b"][: len(inputs)]


def in_both_forms(arguments: str) -> dict[str, Any]:
    """As llama-cpp-python says a call."""
    told = call(0, arguments, id="call_a", name="ls")
    return told | {"function_call": told["tool_calls"][0]["function"]}


@pytest.mark.parametrize("also", [True, False], ids=["both", "older"])
async def test_a_call_in_the_older_form_is_one_call(*, also: bool) -> None:
    pieces = [in_both_forms('{"n":'), in_both_forms("1}")]
    message = in_both_forms('{"n":1}')
    if not also:
        for one in (*pieces, message):
            del one["tool_calls"]
    stream = (*map(chunk, pieces), chunk({}, "function_call"), DONE)
    node = FakeNode("a", PLAIN, script=answers(200, SSE, *stream))
    events = events_of((await ask(rig(node), stream=True)).body)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert [delta["partial_json"] for delta in deltas] == ['{"n":', "1}"]
    whole = {"choices": [{"message": message, "finish_reason": "function_call"}]}
    node = FakeNode("a", PLAIN, script=answers(200, JSON, json.dumps(whole).encode()))
    (block,) = json.loads((await ask(rig(node))).body)["content"]
    assert (block["name"], block["input"]) == ("ls", {"n": 1})


@pytest.mark.parametrize(("told", "output"), [(0, 1), (3, 3)])
async def test_usage_of_zeros_is_none_and_half_of_one_is_kept(told: int, output: int) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": told}
    stream = (TOOLS[2], chunk({}, "stop"), chunk(usage=usage), DONE)
    node = FakeNode("a", PLAIN, script=answers(200, SSE, *stream))
    events = events_of((await ask(rig(node), stream=True)).body)
    assert events[-2]["usage"] == {"output_tokens": output}
    whole = {"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}], "usage": usage}
    node = FakeNode("a", PLAIN, script=answers(200, JSON, json.dumps(whole).encode()))
    answer = json.loads((await ask(rig(node))).body)
    assert answer["usage"]["output_tokens"] == told
    assert answer["usage"]["input_tokens"] > 0


async def test_usage_that_is_not_told_replaces_no_estimate() -> None:
    r = rig(FakeNode("a", PLAIN, script=answers(200, SSE, TOOLS[2], chunk({}, "stop"), DONE)))
    events = events_of((await ask(r, stream=True)).body)
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert "input_tokens" not in events[-2]["usage"]
    assert events[-2]["usage"]["output_tokens"] == 1


# -- requests


def translated(**fields: Any) -> dict[str, Any]:
    return MessagesTranslation(HELLO | fields, ASKED).request


def test_a_request_keeps_all_that_has_a_counterpart() -> None:
    assert translated(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "u"},
        service_tier="auto",
        temperature=0.5,
        stop_sequences=["x"],
        tools=[{"name": "ls", "description": "List.", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["x"],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "ls",
                    "description": "List.",
                    "parameters": {"type": "object"},
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def test_tool_results_follow_their_calls_and_pictures_follow_them() -> None:
    picture = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    messages = [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "see", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "see", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and?"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [
                        {"type": "text", "text": "seen"},
                        {"type": "image", "source": picture},
                    ],
                },
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
            ],
        },
    ]
    _, said, first, second, user = translated(messages=messages)["messages"]
    assert said["content"] == "I look."
    assert [c["function"]["arguments"] for c in said["tool_calls"]] == ['{"a":1}', "{}"]
    assert first == {"role": "tool", "tool_call_id": "t1", "content": "seen"}
    assert second == {"role": "tool", "tool_call_id": "t2", "content": "Error: no"}
    url = {"url": "data:image/png;base64,AAAA"}
    assert user["content"] == [
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "and?"},
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}
                ]
            },
            "messages.0.content.0.source",
        ),
        ({"tool_choice": {"type": "odd"}, "tools": [{"name": "x"}]}, "tool_choice.type"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=f"`{named}`"):
        translated(**fields)


# -- streams


def said(pieces: list[bytes]) -> bytes:
    stream = MessagesTranslation(HELLO, ASKED).stream()
    return b"".join([stream.feed(piece) for piece in pieces] + [stream.finish()])


@given(st.lists(st.integers(0, len(b"".join(TOOLS))), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_any_chunking_gives_the_same_events(cuts: list[int], line_end: str) -> None:
    data = b"".join(TOOLS).replace(b"\n", line_end.encode())
    borders = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(borders)]
    assert said(pieces) == said(TOOLS)


@given(st.lists(HOSTILE, max_size=8))
def test_no_upstream_can_make_it_raise_or_leave_a_block_open(chunks: list[bytes]) -> None:
    events = events_of(said(chunks))
    kinds = [event["type"] for event in events]
    if "error" not in kinds:
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")
        assert kinds[0] == "message_start"
        assert kinds[-2:] == ["message_delta", "message_stop"]
