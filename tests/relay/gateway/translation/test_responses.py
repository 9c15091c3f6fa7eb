"""OpenAI's Responses over chat completions, read by OpenAI's own SDK."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.chat_chunks import DONE, HOSTILE, TOOLS, chunk
from tests.harness.exchanges import FakeExchange
from tests.harness.fleets import JSON, SSE, FakeNode, FakeStream, Script
from tests.relay.gateway.test_gateway import Rig, answers, rig
from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.gateway.translation.misses import FORGOTTEN_AFTER_S
from wai_relay.gateway.translation.responses import ResponsesTranslation
from wai_relay.gateway.translation.translation import Asked

if TYPE_CHECKING:  # each takes seconds to import: not for every worker of the tests
    import openai

pytestmark = pytest.mark.anyio

PLAIN = ModelStatus(id="m", upstream="generic", apis=("openai",))
HELLO: dict[str, Any] = {"model": "m", "input": "hi"}
ASKED = Asked("m", 17, lambda: 1.7e9, lambda: "abc")
NOT_FOUND = b'{"detail":"Not Found"}'
REPLY = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {
                "reasoning_content": "hm",
                "content": "Hi.",
                "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}],
            },
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def only_chat(headers: Any, *chunks: bytes) -> Script:
    """A server that has chat completions and nothing else."""
    chat = answers(200, headers, *chunks)
    missing = answers(404, JSON, NOT_FOUND)

    def script(stream: FakeStream) -> None:
        (chat if stream.target == "/v1/chat/completions" else missing)(stream)

    return script


async def ask(r: Rig, **fields: Any) -> FakeExchange:
    return await r.ask(json.dumps(HELLO | fields).encode(), path="/v1/responses")


def client_of(exchange: FakeExchange) -> openai.OpenAI:
    """A client of OpenAI's SDK for which every answer is the one that `exchange` got."""
    import openai

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=exchange.body, headers=exchange.headers)

    http = httpx.Client(transport=httpx.MockTransport(respond))
    return openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http)


async def test_a_stream_is_what_their_sdk_reads() -> None:
    r = rig(FakeNode("gpu1", PLAIN, script=only_chat(SSE, *TOOLS)))
    exchange = await ask(r, stream=True)
    assert exchange.header(b"x-wai-translated") == b"/v1/chat/completions"
    with client_of(exchange) as client, client.responses.stream(model="m", input="hi") as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    output: list[Any] = list(response.output)
    reasoning, message, first, second = output
    assert reasoning.summary[0].text == "hm"
    assert (response.output_text, message.status) == ("Let me.", "completed")
    assert (first.call_id, first.name, first.arguments) == ("call_a", "ls", '{"path":"/"}')
    assert (second.call_id, second.name, second.arguments) == ("call_b", "find", '{"q":1}')
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 10
    assert (response.usage.input_tokens, response.usage.output_tokens) == (30, 5)
    (record,) = r.records
    assert (record.status, record.fault) == (200, "")
    assert (record.tokens.prompt, record.tokens.completion) == (30, 5)


async def test_a_whole_answer_is_what_their_sdk_reads() -> None:
    r = rig(FakeNode("gpu1", PLAIN, script=only_chat(JSON, json.dumps(REPLY).encode())))
    with client_of(await ask(r)) as client:
        response = client.responses.create(model="m", input="hi")
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert (response.output_text, response.status) == ("Hi.", "completed")


async def test_a_server_with_responses_is_not_translated() -> None:
    exchange = await ask(rig(FakeNode("gpu1", PLAIN, script=answers(200, JSON, b'{"id":"r"}'))))
    assert exchange.body == b'{"id":"r"}'
    assert exchange.header(b"x-wai-translated") is None


async def test_a_missing_route_is_remembered_for_a_while() -> None:
    node = FakeNode("gpu1", PLAIN, script=only_chat(JSON, json.dumps(REPLY).encode()))
    r = rig(node)
    for _ in range(2):
        assert (await ask(r)).status == 200
    chat, responses = "/v1/chat/completions", "/v1/responses"
    assert [stream.target for stream in node.streams] == [responses, chat, chat]
    r.clock.advance(FORGOTTEN_AFTER_S)
    await ask(r)
    assert [stream.target for stream in node.streams[3:]] == [responses, chat]


async def test_a_missing_route_is_told_where_translation_is_off() -> None:
    node = FakeNode("gpu1", PLAIN, script=only_chat(JSON, b"{}"))
    exchange = await ask(rig(node, limits=GatewayLimits(translate=False)))
    assert (exchange.status, exchange.body) == (404, NOT_FOUND)


async def test_an_answer_that_is_cut_short_is_incomplete() -> None:
    pieces = [chunk({"content": "a"}), chunk({}, "length"), DONE]
    exchange = await ask(rig(FakeNode("gpu1", PLAIN, script=only_chat(SSE, *pieces))), stream=True)
    last = json.loads(exchange.body.strip().split(b"data: ")[-1])
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def translated(**fields: Any) -> dict[str, Any]:
    return ResponsesTranslation(HELLO | fields, ASKED).request


def test_a_request_keeps_all_that_has_a_counterpart() -> None:
    schema = {"type": "object"}
    request = translated(
        instructions="Be brief.",
        store=True,
        metadata={"a": "b"},
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        tools=[{"type": "function", "name": "ls", "parameters": schema, "strict": False}],
        tool_choice={"type": "function", "name": "ls"},
        max_output_tokens=7,
        input=[
            {"role": "developer", "content": "Rule."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA"},
                ],
            },
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "function_call", "call_id": "a", "name": "ls", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "ls", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "x"},
            {
                "type": "function_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "y"}],
            },
        ],
    )
    messages = request.pop("messages")
    assert [m["role"] for m in messages] == [
        *("system", "system", "user", "assistant", "tool", "tool")
    ]
    assert [call["id"] for call in messages[3]["tool_calls"]] == ["a", "b"]
    assert (messages[4]["content"], messages[5]["content"]) == ("x", "y")
    assert request == {
        "max_tokens": 7,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {"name": "ls", "parameters": schema, "strict": False},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "ls"}},
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "file_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0.type",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tools": [{"type": "function", "name": "x"}], "tool_choice": "odd"}, "tool_choice"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=f"`{named}`"):
        translated(**fields)


def test_text_after_a_call_does_not_stand_between_the_call_and_its_result() -> None:
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]}
    request = translated(
        input=[
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "a", "name": "ls", "arguments": "{}"},
            said,
            {"type": "function_call", "call_id": "b", "name": "ls", "arguments": "{}"},
            said,
            {"type": "function_call_output", "call_id": "a", "output": "x"},
            {"type": "function_call_output", "call_id": "b", "output": "y"},
            said,
        ],
    )
    _, calls, first, second, last = request["messages"]
    assert calls["content"] == "Looking.\nLooking."
    assert [call["id"] for call in calls["tool_calls"]] == ["a", "b"]
    assert (first["tool_call_id"], second["tool_call_id"]) == ("a", "b")
    assert last == {"role": "assistant", "content": "Looking."}


def test_functions_in_a_namespace_are_called_by_both_names() -> None:
    function = {"type": "function", "name": "open", "parameters": {"type": "object"}}
    tools = [
        {"type": "namespace", "name": "files", "tools": [function]},
        {"type": "namespace", "name": "n" * 63, "tools": [function]},
        {"type": "web_search"},
        function,
    ]
    called = {"type": "function_call", "call_id": "c1", "name": "open", "namespace": "files"}
    given = [{"role": "user", "content": "hi"}, called | {"arguments": "{}"}]
    translation = ResponsesTranslation({"model": "m", "input": given, "tools": tools}, ASKED)
    names = [tool["function"]["name"] for tool in translation.request["tools"]]
    assert names == ["files__open", "n" * 58 + "__open", "open"]
    assert translation.request["messages"][1]["tool_calls"][0]["function"]["name"] == "files__open"
    calls = [
        {"id": f"c{n}", "function": {"name": x, "arguments": "{}"}} for n, x in enumerate(names)
    ]
    choices = [{"finish_reason": "tool_calls", "message": {"tool_calls": calls}}]
    output = json.loads(translation.answer({"choices": choices}))["output"]
    assert [(item.get("namespace"), item["name"]) for item in output] == [
        ("files", "open"),
        ("n" * 63, "open"),
        (None, "open"),
    ]


def test_a_search_that_only_the_vendor_has_is_not_offered() -> None:
    assert "tools" not in translated(tools=[{"type": "web_search"}], tool_choice="auto")


def said(pieces: list[bytes]) -> bytes:
    stream = ResponsesTranslation(HELLO, ASKED).stream()
    return b"".join([stream.feed(piece) for piece in pieces] + [stream.finish()])


@given(st.lists(st.integers(0, len(b"".join(TOOLS))), max_size=8))
def test_any_chunking_gives_the_same_events(cuts: list[int]) -> None:
    data = b"".join(TOOLS)
    pieces = [data[a:b] for a, b in pairwise([0, *sorted(cuts), len(data)])]
    assert said(pieces) == said(TOOLS)


@given(st.lists(HOSTILE, max_size=8))
def test_no_upstream_can_make_it_raise_or_leave_an_item_open(chunks: list[bytes]) -> None:
    lines = [line for line in said(chunks).splitlines() if line.startswith(b"data: ")]
    events = [json.loads(line[6:]) for line in lines]
    kinds = [event.get("type") for event in events]
    if None not in kinds:  # no error event
        added, done = "response.output_item.added", "response.output_item.done"
        assert kinds.count(added) == kinds.count(done)
        assert kinds[0] == "response.created"
        assert kinds[-1] in ("response.completed", "response.incomplete")
