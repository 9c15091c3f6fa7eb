"""The registry of dialects: whose a path is, and which dialects are taken in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wai_protocol.errors import RequestError
from wai_protocol.surface import Route, Task
from wai_relay.gateway.bodies import Change, read_json
from wai_relay.gateway.dialects.anthropic import ANTHROPIC
from wai_relay.gateway.dialects.ollama import OLLAMA
from wai_relay.gateway.dialects.openai import OPENAI, OpenAiDialect
from wai_relay.gateway.dialects.registry import DIALECTS

ROUTE = Route("POST", "/v1/messages/tiny", "tiny", Task.GENERATE)


class Tiny(OpenAiDialect):
    name = "tiny"
    routes = (ROUTE,)
    error_prefixes = ("/v1/messages/t",)
    model_fields = ("engine",)
    prompt_fields = ("contents",)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/batches", ANTHROPIC),
        ("/v1/models", OPENAI),
        ("/api/chat", OLLAMA),
        ("/api/pull", OLLAMA),
        ("/", OPENAI),
        ("/nothing/v1/messages", OPENAI),
    ],
)
def test_errors_are_said_in_the_dialect_of_the_path(path: str, dialect: object) -> None:
    assert DIALECTS.of(path) is dialect


def test_the_longest_prefix_decides() -> None:
    tiny = Tiny()
    dialects = DIALECTS.extended(tiny)
    assert dialects.of("/v1/messages/tiny") is tiny
    assert dialects.of("/v1/messages/t") is tiny
    assert dialects.of("/v1/messages/count_tokens") is ANTHROPIC
    assert dialects.find_route("POST", "/v1/messages/tiny") is ROUTE
    assert DIALECTS.find_route("POST", "/v1/messages/tiny") is None


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/responses", "chat"),
        ("/v1/messages", "chat"),
        ("/v1/embeddings", "embeddings"),
        ("/api/chat", "chat"),
        ("/api/generate", "text_completion"),
        ("/api/embed", "embeddings"),
        ("/v1/messages/count_tokens", ""),
        ("/v1/models", ""),
        ("/nothing", ""),
    ],
)
def test_spans_call_a_request_as_the_conventions_do(path: str, operation: str) -> None:
    assert DIALECTS.operation_of(path) == operation


def test_an_added_dialect_does_not_take_over_the_paths_of_ours() -> None:
    greedy = type("Greedy", (Tiny,), {"error_prefixes": ("/", "/v1/", "/api/", "/v1/m")})()
    dialects = DIALECTS.extended(greedy)
    for path in ("/v1/models", "/v1/models/m", "/v1/chat/completions", "/v1/nothing"):
        assert dialects.of(path) is OPENAI
    assert dialects.of("/api/tags") is OLLAMA
    assert dialects.methods("/v1/models") == ["GET", "HEAD"]
    assert dialects.of("/v2/x") is greedy


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/v1/chat/completions", "/v1/chat/completions"),  # OpenRouter
        ("/openai/v1/responses", "/v1/responses"),  # Azure
        ("/openai/deployments/m/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),  # a base URL without /v1
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/responses/resp_1", "/v1/responses/resp_1"),
        ("/api/chat", "/api/chat"),  # routes and lists of their own
        ("/api/v1/chat", "/api/v1/chat"),
        ("/api/v1/models", "/api/v1/models"),
        ("/api/v0/models/m", "/api/v0/models/m"),
        ("/rerank", "/rerank"),
        ("/infill", "/infill"),
    ],
)
def test_other_names_of_paths_are_known_and_none_hides_a_route(path: str, known: str) -> None:
    assert DIALECTS.upstream_path(path) == known


def test_an_alias_of_another_package_can_not_hide_a_route_of_ours() -> None:
    odd = type("Odd", (Tiny,), {"aliases": {"/v1/": "/v2/"}})()
    dialects = DIALECTS.extended(odd)
    assert dialects.upstream_path("/v1/chat/completions") == "/v1/chat/completions"
    assert dialects.upstream_path("/v1/models/m") == "/v1/models/m"
    assert dialects.upstream_path("/v1/nothing") == "/v2/nothing"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "openai", "routes": ()},
        {"routes": (Route("POST", "/v1/chat/completions", "tiny", Task.GENERATE),)},
        {"routes": (Route("GET", "/v1/chat/completions", "tiny", Task.GENERATE),)},
        {"routes": (Route("POST", "/v2/x", "openai", Task.GENERATE),)},
        {"routes": (ROUTE, ROUTE)},
        {"routes": (Route("POST", "/../x", "tiny", Task.GENERATE),)},
        {"stream_type": b"text/plain"},
        {"stream_type": b"application/x-ndjson"},  # with the heartbeat of an event stream
        {"model_fields": ()},
    ],
)
def test_a_dialect_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    odd = type("Odd", (Tiny,), changes)()
    with pytest.raises(RequestError):
        DIALECTS.extended(odd)


def test_a_prompt_is_measured_where_its_dialect_has_it() -> None:
    words = b'{"engine":"m","contents":"%s","messages":"not a list"}' % (b"word " * 100)
    read = read_json(words, Tiny(), ROUTE)
    assert 450 < read.facts.prompt.text_bytes < 550
    many = b'{"engine":"m","contents":[%s0]}' % (b'{"a":1},' * 30_000)
    assert read_json(many, Tiny(), ROUTE).facts.prompt.text_bytes > 100_000
    with pytest.raises(RequestError, match="too many fields"):
        read_json(many.replace(b"contents", b"messages"), Tiny(), ROUTE)


def test_a_dialects_own_field_names_the_model() -> None:
    tiny = Tiny()
    read = read_json(b'{"model":"a","engine":"b"}', tiny, ROUTE)
    assert read.facts.model == "b"
    assert json.loads(read.changed(Change("c"))) == {"model": "a", "engine": "c"}
    with pytest.raises(RequestError, match="set `engine`"):
        read_json(b'{"model":"a"}', tiny, ROUTE)
    with pytest.raises(RequestError, match="Unknown field `Engine`"):
        read_json(b'{"engine":"a","Engine":"secret"}', tiny, ROUTE)
