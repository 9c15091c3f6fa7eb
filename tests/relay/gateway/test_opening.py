"""What a 200 must carry before it counts as an answer: content, or its proper end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault
from wai_protocol.surface import Route
from wai_relay.gateway.dialects.dialect import Dialect
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.opening import (
    BEGIN,
    COMMENT_BYTES,
    DOCUMENT_BYTES,
    HELD_BYTES,
    HOLD,
    Opening,
    OpeningVerdict,
    opening_for,
)

SSE = b"text/event-stream; charset=utf-8"
NDJSON = b"application/x-ndjson"
JSON = b"application/json"


def route(path: str) -> tuple[Dialect, Route]:
    found = DIALECTS.find_route("POST", path)
    assert found is not None
    return DIALECTS.of(path), found


def fed(opening: Opening, data: bytes, step: int) -> OpeningVerdict:
    """The verdict on a whole answer that comes in pieces."""
    for start in range(0, len(data), step):
        verdict = opening.feed(data[start : start + step])
        if verdict is not HOLD:
            return verdict
    return opening.finish()


def chat(*payloads: str) -> bytes:
    return b"".join(b"data: " + p.encode() + b"\n\n" for p in payloads)


ROLE = '{"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}'
EMPTY = '{"choices":[{"index":0,"delta":{"content":""}}]}'
STOP = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
TEXT = '{"choices":[{"index":0,"delta":{"content":"a"}}]}'


def block(kind: str, fields: str) -> bytes:
    return f'event: {kind}\ndata: {{"type":"{kind}",{fields}}}\n\n'.encode()


STARTED = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
CREATED = (
    b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n'
)

HELD = [
    ("/v1/chat/completions", SSE, b": keepalive\n\n"),
    ("/v1/chat/completions", SSE, chat(ROLE, EMPTY)),
    ("/v1/completions", SSE, chat('{"choices":[{"text":""}]}')),
    ("/v1/messages", SSE, STARTED + b'event: ping\ndata: {"type":"ping"}\n\n'),
    ("/v1/responses", SSE, CREATED),
    ("/api/chat", NDJSON, b'{"message":{"role":"assistant","content":""},"done":false}\n'),
    (
        "/v1/messages",
        SSE,
        block("content_block_start", '"content_block":{"type":"text","text":""}'),
    ),
    ("/v1/messages", SSE, block("content_block_delta", '"delta":{"type":"text_delta","text":""}')),
    ("/api/v1/chat", SSE, chat('{"type":"message.delta","content":""}')),
    ("/v1/chat/completions", b"text/plain", b"\n"),
    ("/v1/chat/completions", b"", chat(ROLE)),
]
BEGINNINGS = [
    ("/v1/chat/completions", chat(ROLE, TEXT)),
    ("/v1/chat/completions", chat('{"choices":[{"delta":{"reasoning_content":"h"}}]}')),
    ("/v1/chat/completions", chat('{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}')),
    ("/v1/chat/completions", chat(ROLE, STOP)),  # the model had nothing to say
    ("/v1/chat/completions", chat(ROLE, TEXT).replace(b"\n", b"\r\n")),
    ("/v1/chat/completions", chat(ROLE, TEXT).replace(b"\n", b"\r")),
    ("/v1/completions", chat('{"choices":[{"text":"a"}]}')),
    ("/v1/messages", b'data: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'),
    ("/v1/responses", CREATED + b'data: {"type":"response.output_text.delta","delta":"a"}\n\n'),
    (
        "/v1/responses",
        chat('{"type":"response.output_item.added","item":{"type":"function_call","name":"f"}}'),
    ),
    ("/v1/chat/completions", chat('{"choices":[{"delta":{"reasoning_details":[{"text":"h"}]}}]}')),
    (
        "/v1/messages",
        block("content_block_start", '"content_block":{"type":"redacted","data":"x"}'),
    ),
    ("/v1/audio/speech", chat('{"type":"speech.audio.delta","audio":"aaaa"}')),
    ("/v1/audio/transcriptions", chat('{"type":"transcript.text.done","text":"a"}')),
    ("/v1/audio/transcriptions", chat('{"type":"transcript.text.done","text":""}')),  # silence
    ("/v1/audio/transcriptions", chat('{"choices":[{"delta":{"content":"a"}}]}')),  # vLLM's
    ("/v1/images/generations", chat('{"type":"image_generation.partial_image","b64_json":"a"}')),
]
FAILURES = [
    ("/v1/chat/completions", SSE, chat('{"error":{"message":"out of memory"}}'), "out of memory"),
    ("/v1/chat/completions", SSE, chat(ROLE, '{"error":{"message":"oom"}}'), "oom"),
    ("/v1/chat/completions", SSE, chat('{"object":"error","message":"vllm"}'), "vllm"),
    ("/v1/chat/completions", SSE, b"event: error\n" + chat("{}"), "reported an error"),
    ("/v1/messages", SSE, b'data: {"type":"error","error":{"message":"busy"}}\n\n', "busy"),
    (
        *("/v1/responses", SSE),
        b'data: {"type":"response.failed","response":{"error":{"message":"r"}}}\n\n',
        "r",
    ),
    ("/v1/chat/completions", SSE, b"", "before it said anything"),
    ("/v1/chat/completions", SSE, chat(ROLE), "before it said anything"),
    ("/v1/chat/completions", SSE, b"data: [DONE]\n\n", "before it said anything"),
    ("/v1/chat/completions", SSE, chat(ROLE, "[DONE]"), "before it said anything"),
    ("/v1/chat/completions", SSE, chat(ROLE, STOP.replace("stop", "error")), "reported an error"),
    ("/v1/completions", SSE, chat('{"choices":[{"text":"","finish_reason":"error"}]}'), "an error"),
    ("/v1/chat/completions", JSON, b'{"choices":[]}', "before it said anything"),
    ("/v1/chat/completions", b"", b"", "empty"),
    ("/v1/chat/completions", b"text/plain", b"", "empty"),
    ("/v1/chat/completions", SSE, b'{"choices":[]}', "content type"),
    ("/v1/chat/completions", SSE, b"<html>", "content type"),
    ("/v1/chat/completions", SSE, chat("no json"), "content type"),
    ("/v1/chat/completions", JSON, b'{"error":{"message":"in a 200"}}', "in a 200"),
    ("/v1/chat/completions", JSON, b'{"id":1,"error":"late"}', "late"),
    ("/v1/chat/completions", JSON, b"", "empty"),
    ("/v1/chat/completions", JSON, b'{"choices":[', "middle"),
    ("/v1/chat/completions", JSON, b"data: {}\n\n", "content type"),
    ("/v1/chat/completions", b"text/html", b"<html>", "web page"),
    ("/v1/embeddings", JSON, b'{"error":"no"}', "no"),
    ("/api/chat", NDJSON, b'{"error":"model runner stopped"}\n', "model runner stopped"),
    ("/api/chat", NDJSON, b"oops\n", "content type"),
    ("/v1/chat/completions", JSON, b"[]", "before it said anything"),
    ("/v1/chat/completions", JSON, b'{"detail":"no model"}', "no model"),
    ("/v1/chat/completions", JSON, b'{"detail":[{"loc":["body"],"msg":"x"}]}', "body: x"),
    ("/v1/chat/completions", JSON, b'{"message":"no route","choices":null}', "no route"),
    ("/v1/chat/completions", JSON, b'{"choices":[{"error":{"message":"of one"}}]}', "of one"),
    ("/v1/chat/completions", JSON, b'{"choices":[{"finish_reason":"error"}]}', "an error"),
    ("/v1/chat/completions", SSE, chat(ROLE, STOP.replace("stop", "abort")), "an error"),
    ("/v1/chat/completions", SSE, b": one\n\n: two\n\n", "before it said anything"),
    ("/v1/chat/completions", b"application/problem+json", b'{"title":"x"}', "an error"),
    ("/v1/chat/completions", NDJSON, b'{"error":"in a line"}\n', "in a line"),
    *(
        ("/v1/chat/completions", kind, b"upstream connect error", "content type")
        for kind in (b"", b"text/plain", b"application/octet-stream")
    ),
    ("/v1/chat/completions", b"text/plain", b'{"error":{"message":"plainly"}}', "plainly"),
    ("/v1/chat/completions", b"text/plain", chat(ROLE), "before it said anything"),
    ("/v1/chat/completions", b"application/xhtml+xml", b"<html/>", "content type"),
    ("/v1/completions", JSON, b'{"errors":[{"message":"x"}]}', "an error"),
    ("/v1/responses", JSON, b'{"detail":"x"}', "x"),
    ("/v1/responses", JSON, b'{"object":"response","status":"failed","output":[]}', "an error"),
    ("/v1/messages", JSON, b'{"detail":"x"}', "x"),
    ("/api/generate", JSON, b'{"msg":"x"}', "an error"),
    ("/completion", JSON, b'{"detail":"x"}', "x"),
    ("/api/v1/chat", JSON, b'{"detail":"x"}', "x"),
    ("/v1/embeddings", JSON, b'{"object":"list","data":[]}', "before it said anything"),
    ("/v1/embeddings", JSON, b'{"detail":"x"}', "x"),
    ("/v1/embeddings", b"text/plain", b"Internal Server Error", "content type"),
    ("/v1/embeddings", b"", b"", "empty"),
    ("/v1/rerank", JSON, b'{"detail":"x"}', "x"),
    ("/v1/audio/speech", b"audio/mpeg", b"", "empty"),
]


@pytest.mark.parametrize(("path", "kind", "data"), HELD)
def test_what_is_no_content_is_held(path: str, kind: bytes, data: bytes) -> None:
    opening = opening_for(*route(path), 200, kind)
    assert opening.feed(data) is HOLD
    assert opening.held == data


@pytest.mark.parametrize(("path", "data"), BEGINNINGS)
@given(step=st.integers(1, 40))
def test_the_first_content_begins_the_answer_however_it_is_cut(
    path: str, data: bytes, step: int
) -> None:
    opening = opening_for(*route(path), 200, SSE)
    assert fed(opening, data, step) is BEGIN
    assert data.startswith(opening.held)


@pytest.mark.parametrize(("path", "kind", "data", "says"), FAILURES)
@given(step=st.integers(1, 40))
def test_an_error_inside_a_200_is_a_failure_however_it_is_cut(
    path: str, kind: bytes, data: bytes, says: str, step: int
) -> None:
    verdict = fed(opening_for(*route(path), 200, kind), data, step)
    assert verdict.fault is Fault.UPSTREAM_BROKE
    assert says in verdict.message


@pytest.mark.parametrize("kind", [SSE, NDJSON, JSON])
def test_an_endless_opening_is_not_held(kind: bytes) -> None:
    opening = opening_for(*route("/api/chat" if kind is NDJSON else "/v1/responses"), 200, kind)
    first = b"{" if kind is not SSE else b":"
    opening.feed(first)
    assert opening.feed(b" " * max(HELD_BYTES, DOCUMENT_BYTES)) is BEGIN


def test_comments_that_never_end_are_held_for_a_while_only() -> None:
    opening = opening_for(*route("/v1/chat/completions"), 200, SSE)
    for _ in range(HELD_BYTES):
        assert opening.feed(b": keepalive\n\n") is HOLD
    assert opening.feed(chat(ROLE)) is HOLD
    assert opening.feed(chat(TEXT)) is BEGIN
    assert opening.held.endswith(b": keepalive\n\n" + chat(ROLE, TEXT))
    assert len(opening.held) < 2 * COMMENT_BYTES


@pytest.mark.parametrize(
    ("path", "kind", "data"),
    [
        ("/rerank", JSON, b'[{"index":0,"score":0.1}]'),  # TEI's
        ("/v1/rerank", JSON, b'{"results":[]}'),
        ("/v1/embeddings", JSON, b'[{"index":0,"embedding":[[0.1]]}]'),  # llama.cpp's
        ("/api/embed", JSON, b'{"model":"m","embeddings":[]}'),  # it has loaded the model
        ("/api/generate", JSON, b'{"model":"m","response":"","done":true,"done_reason":"load"}'),
        ("/v1/messages", JSON, b'{"type":"message","content":[],"stop_reason":"end_turn"}'),
        ("/v1/chat/completions", b"text/plain", b'{"choices":[{"message":{"content":"a"}}]}'),
        ("/v1/chat/completions", b"", chat(ROLE, TEXT)),
        ("/v1/audio/transcriptions", b"text/plain", b""),  # nobody spoke
    ],
)
def test_answers_of_unusual_forms_are_answers(path: str, kind: bytes, data: bytes) -> None:
    assert fed(opening_for(*route(path), 200, kind), data, 7) is BEGIN


@pytest.mark.parametrize("kind", [b"audio/mpeg", b"", b"text/plain"])
def test_what_we_do_not_read_passes_at_once(kind: bytes) -> None:
    assert opening_for(*route("/v1/audio/speech"), 200, kind).feed(b"\xff") is BEGIN


HALF = b'{"choices":[{"delta":{"content":"a\\ud83d"},"message":{"content":"a\\ud83d"}}]}'


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (SSE, b"data: " + HALF + b"\n\n"),
        (JSON, HALF),
        (JSON, b"\xef\xbb\xbf" + HALF),
        (JSON, b'{"choices":[{"message":{"content":"a"},"logprobs":[-Infinity]}]}'),
    ],
)
def test_half_a_character_and_other_json_that_clients_read_is_an_answer(
    kind: bytes, data: bytes
) -> None:
    opening = opening_for(*route("/v1/chat/completions"), 200, kind)
    assert fed(opening, data, 7) is BEGIN or opening.finish() is BEGIN
