"""Ollama's API over chat completions and embeddings, in the shapes that Ollama 0.14 has."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.chat_chunks import DONE, HOSTILE, TOOLS, chunk
from tests.harness.exchanges import FakeExchange
from tests.harness.fleets import JSON, SSE, FakeNode
from tests.relay.gateway.test_gateway import Rig, answers, rig
from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.gateway.translation.ollama import OllamaChatTranslation, OllamaGenerateTranslation
from wai_relay.gateway.translation.translation import Asked

pytestmark = pytest.mark.anyio

PLAIN = ModelStatus(id="m", upstream="generic", apis=("openai",), context_tokens=4096)
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ASKED = Asked("m", 17, lambda: 1.7e9, lambda: "abc")
FIGURES = {
    *("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"),
    *("eval_count", "eval_duration"),
}


async def ask(r: Rig, path: str = "/api/chat", **fields: Any) -> FakeExchange:
    return await r.ask(json.dumps(HELLO | fields).encode(), path=path)


def lines_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


async def test_a_chat_is_streamed_as_lines() -> None:
    r = rig(FakeNode("gpu1", PLAIN, script=answers(200, SSE, *TOOLS)))
    exchange = await ask(r)
    assert exchange.header(b"content-type") == b"application/x-ndjson"
    assert exchange.header(b"x-wai-translated") == b"/v1/chat/completions"
    lines = lines_of(exchange.body)
    assert lines[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert "".join(line["message"]["content"] for line in lines) == "Let me."
    calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "ls", "arguments": {"path": "/"}},
        {"index": 1, "name": "find", "arguments": {"q": 1}},
    ]
    last = lines[-1]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 30, 5)
    assert last.keys() >= FIGURES
    (record,) = r.records
    assert (record.tokens.prompt, record.tokens.completion, record.stream) == (30, 5, True)


async def test_a_whole_chat_has_the_servers_own_timings() -> None:
    reply = {
        "choices": [{"message": {"content": "Hi."}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        "timings": {"prompt_ms": 2.5, "predicted_ms": 4},
    }
    node = FakeNode("gpu1", PLAIN, script=answers(200, JSON, json.dumps(reply).encode()))
    found = json.loads((await ask(rig(node), stream=False)).body)
    assert found["message"] == {"role": "assistant", "content": "Hi."}
    assert (found["done"], found["done_reason"]) == (True, "length")
    assert (found["prompt_eval_duration"], found["eval_duration"]) == (2_500_000, 4_000_000)


async def test_generate_says_its_answer_in_response() -> None:
    pieces = [chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop"), DONE]
    node = FakeNode("gpu1", PLAIN, script=answers(200, SSE, *pieces))
    body = json.dumps({"model": "m", "prompt": "hi", "system": "Be brief."}).encode()
    exchange = await rig(node).ask(body, path="/api/generate")
    assert [line["response"] for line in lines_of(exchange.body)] == ["a", "b", ""]
    sent = json.loads(node.streams[0].body)
    assert [message["content"] for message in sent["messages"]] == ["Be brief.", "hi"]


async def test_embed_becomes_embeddings() -> None:
    reply = {
        "data": [{"index": 0, "embedding": [0.5, 1.0]}, {"index": 1, "embedding": [2.0, 3.0]}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    node = FakeNode("gpu1", PLAIN, script=answers(200, JSON, json.dumps(reply).encode()))
    r = rig(node)
    body = json.dumps({"model": "m", "input": ["a", "b"], "truncate": True}).encode()
    exchange = await r.ask(body, path="/api/embed")
    found = json.loads(exchange.body)
    assert (found["embeddings"], found["prompt_eval_count"]) == ([[0.5, 1.0], [2.0, 3.0]], 4)
    assert node.streams[0].target == "/v1/embeddings"
    assert json.loads(node.streams[0].body) == {"model": "m", "input": ["a", "b"]}
    assert r.records[0].tokens.prompt == 4


async def test_the_relay_tells_of_models_itself() -> None:
    r = rig(FakeNode("gpu1", PLAIN))
    shown = json.loads((await r.ask(b'{"model":"m"}', path="/api/show")).body)
    assert shown["model_info"]["wai.context_length"] == 4096
    for path in ("/api/tags", "/api/ps"):
        listed = json.loads((await r.ask(b"", method="GET", path=path)).body)
        assert [model["name"] for model in listed["models"]] == ["m"]
    version = json.loads((await r.ask(b"", method="GET", path="/api/version")).body)
    assert version["version"]


async def test_lists_have_no_other_models_where_translation_is_off() -> None:
    r = rig(FakeNode("gpu1", PLAIN), limits=GatewayLimits(translate=False))
    assert json.loads((await r.ask(b"", method="GET", path="/api/tags")).body) == {"models": []}


async def test_loading_a_model_asks_no_upstream() -> None:
    node = FakeNode("gpu1", PLAIN)
    for path in ("/api/chat", "/api/generate"):
        (line,) = lines_of((await rig(node).ask(b'{"model":"m"}', path=path)).body)
        assert (line["done"], line["done_reason"]) == (True, "load")
    assert not node.streams


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("/api/embed", {"input": []}, {"model": "m", "embeddings": []}),
        ("/api/embed", {"input": ""}, {"model": "m", "embeddings": []}),
        ("/api/embed", {}, {"model": "m", "embeddings": []}),
        ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ],
)
async def test_no_text_has_no_embedding_and_is_no_error(
    path: str, fields: dict[str, Any], answer: dict[str, Any]
) -> None:
    node = FakeNode("gpu1", PLAIN)
    exchange = await rig(node).ask(json.dumps({"model": "m", **fields}).encode(), path=path)
    assert (exchange.status, json.loads(exchange.body)) == (200, answer)
    assert not node.streams


async def test_an_error_is_a_line_of_its_own() -> None:
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    node = FakeNode("gpu1", PLAIN, script=answers(200, SSE, chunk({"content": "a"}), error))
    assert lines_of((await ask(rig(node))).body)[-1] == {"error": "out of memory"}


# -- requests


def translated(**fields: Any) -> dict[str, Any]:
    return OllamaChatTranslation(HELLO | fields, ASKED).request


def test_a_request_keeps_all_that_has_a_counterpart() -> None:
    assert translated(
        keep_alive="5m",
        think="low",
        format={"type": "object"},
        options={"temperature": 0.5, "num_ctx": 4096, "num_predict": 7, "stop": ["x"], "top_k": 4},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    ) == {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "stop": ["x"],
        "max_tokens": 7,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}},
        },
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }


@pytest.mark.parametrize("told", [7.0, 7.9])
def test_a_limit_with_decimals_is_a_limit(told: float) -> None:
    assert translated(options={"num_predict": told})["max_tokens"] == 7


@pytest.mark.parametrize("told", [0, -1, -2.0, 0.5, None, "7", True])
def test_what_is_no_limit_limits_nothing(told: object) -> None:
    assert "max_tokens" not in translated(options={"num_predict": told})


def test_results_belong_to_the_calls_in_their_order() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "hi", "images": ["/9j/AAAA"]},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "one", "tool_name": "f"},
        {"role": "tool", "content": "two", "tool_name": "f"},
    ]
    user, said, one, two = translated(messages=messages)["messages"]
    assert user["content"][1]["image_url"] == {"url": "data:image/jpeg;base64,/9j/AAAA"}
    ids = [call["id"] for call in said["tool_calls"]]
    assert len({*ids}) == 2
    assert [one["tool_call_id"], two["tool_call_id"]] == ids


def test_results_in_another_order_belong_to_the_calls_of_their_names() -> None:
    f: dict[str, Any] = {"function": {"name": "f", "arguments": {}}}
    g: dict[str, Any] = {"function": {"name": "g", "arguments": {}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [f, g, f]},
        *({"role": "tool", "content": name, "tool_name": name} for name in ("g", "f", "f")),
    ]
    said, *results = translated(messages=messages)["messages"]
    first, second, third = (call["id"] for call in said["tool_calls"])
    assert [result["tool_call_id"] for result in results] == [second, first, third]


def test_a_call_without_a_result_takes_none_of_a_later_turn() -> None:
    asked = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [asked, {"role": "user", "content": "stop"}, asked, {"role": "tool", "content": "x"}]
    _, _, said, result = translated(messages=messages)["messages"]
    assert result["tool_call_id"] == said["tool_calls"][0]["id"]


@pytest.mark.parametrize("field", ["raw", "template", "context", "suffix"])
def test_what_is_about_the_prompts_text_is_refused(field: str) -> None:
    value = {"raw": True, "context": [1]}.get(field, "x")
    with pytest.raises(RequestError, match=f"`{field}`"):
        OllamaGenerateTranslation({"model": "m", "prompt": "hi", field: value}, ASKED)


def test_thinking_can_be_turned_off() -> None:
    stream = OllamaChatTranslation(HELLO | {"think": False}, ASKED).stream()
    assert stream.feed(chunk({"reasoning": "hm"})) == b""


# -- streams


def said(pieces: list[bytes]) -> bytes:
    stream = OllamaChatTranslation(HELLO, ASKED).stream()
    return b"".join([stream.feed(piece) for piece in pieces] + [stream.finish()])


@given(st.lists(st.integers(0, len(b"".join(TOOLS))), max_size=8))
def test_any_chunking_gives_the_same_lines(cuts: list[int]) -> None:
    data = b"".join(TOOLS)
    pieces = [data[a:b] for a, b in pairwise([0, *sorted(cuts), len(data)])]
    assert said(pieces) == said(TOOLS)


@given(st.lists(HOSTILE, max_size=8))
def test_no_upstream_can_make_it_raise_or_end_twice(chunks: list[bytes]) -> None:
    lines = lines_of(said(chunks))
    assert [("error" in line or line["done"]) for line in lines].count(True) == 1
    assert "error" in lines[-1] or lines[-1]["done"]
