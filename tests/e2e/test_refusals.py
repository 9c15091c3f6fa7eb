"""What callers are told when their request can't be served: status and OpenAI's error format."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from typing import Any

import pytest

from tests.e2e.conftest import Served
from tests.harness.caller import chat, request

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("served")]


def refusal(
    served: Served,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    sent = served.authorization if headers is None else headers
    with request(served.cluster, path, body, sent) as response:
        assert response.headers["X-Request-Id"]
        return response.status, json.loads(response.read())["error"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer wai_sk_wrong"}, "invalid_api_key"),
        ({"x-api-key": "wai_sk_wrong"}, "invalid_api_key"),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, "missing_api_key"),
    ],
)
def test_without_a_valid_key(served: Served, headers: dict[str, str], code: str) -> None:
    status, error = refusal(served, "/v1/chat/completions", chat("tiny"), headers)
    assert (status, error["code"]) == (401, code)
    status, error = refusal(served, "/v1/models", None, headers)
    assert status == 401


def test_the_key_of_anthropics_sdk(served: Served) -> None:
    headers = {"x-api-key": served.key.secret}
    with request(served.cluster, "/v1/chat/completions", chat("tiny"), headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("base", ["/v1", "/api/v1"])
def test_an_unknown_model(served: Served, base: str) -> None:
    status, error = refusal(served, f"{base}/chat/completions", chat("no-such-model"))
    assert (status, error["code"]) == (404, "model_not_found")
    assert "no-such-model" in error["message"]


def test_an_unknown_model_in_anthropics_format(served: Served) -> None:
    with request(
        served.cluster, "/v1/messages", chat("no-such-model"), served.authorization
    ) as response:
        answer = json.loads(response.read())
    assert response.status == 404
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "path", ["/v1/slots", "/props", "/slots", "/v1/files", "/models/load", "/v1/../slots"]
)
def test_a_path_that_is_not_forwarded(served: Served, path: str) -> None:
    seen = len(served.odd.seen.heads)
    status, _ = refusal(served, path, chat("answers"))
    assert status in (404, 405)  # of some paths there is a GET
    assert len(served.odd.seen.heads) == seen


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 7}', b'{"messages": []}', b"\xff"])
def test_a_body_that_can_not_be_routed(served: Served, body: bytes) -> None:
    status, error = refusal(served, "/v1/chat/completions", body)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_a_node_that_is_not_there(served: Served) -> None:
    headers = {**served.authorization, "X-WAI-Node": "no-such-node"}
    status, error = refusal(served, "/v1/chat/completions", chat("tiny"), headers)
    assert (status, error["code"]) == (404, "node_not_found")


def test_a_pinned_node_without_the_model(served: Served) -> None:
    headers = {**served.authorization, "X-WAI-Node": "odd"}
    status, _ = refusal(served, "/v1/chat/completions", chat("tiny"), headers)
    assert status in (404, 503)


def test_an_answer_names_its_node(served: Served) -> None:
    headers = {**served.authorization, "X-WAI-Node": "box"}
    with request(served.cluster, "/v1/chat/completions", chat("tiny"), headers) as response:
        assert response.status == 200
        assert response.headers["X-WAI-Node"] == "box"


def test_a_prompt_longer_than_the_context(served: Served) -> None:
    long = [{"role": "user", "content": "a b c d " * 4000}]
    status, error = refusal(served, "/v1/chat/completions", chat("tiny", messages=long))
    assert status == 400
    assert "context" in error["message"].lower()


def test_only_the_allowed_headers_reach_the_upstream(served: Served) -> None:
    headers = {
        **served.authorization,
        "Origin": "https://evil.example",
        "Cookie": "a=b",
        "X-Forwarded-For": "203.0.113.9",
        "X-Conversation-Id": "c",
        "Connection": "keep-alive, x-hop",
        "X-Hop": "1",
        "X-Custom": "kept",
    }
    with request(served.cluster, "/v1/chat/completions", chat("answers"), headers) as response:
        assert response.status == 200
    seen = served.odd.seen.heads[-1]
    assert seen["x-custom"] == "kept"
    assert seen["host"] == served.odd.url.removeprefix("http://")
    assert not {"origin", "cookie", "x-forwarded-for", "x-conversation-id", "x-hop"} & set(seen)
    assert served.key.secret not in str(seen)


MALFORMED = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n",
    "length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    "folded header": b"X-A: b\r\n c\r\n",
    "two hosts": b"Host: other\r\n",
    "a NUL": b"X-A: b\0c\r\n",
    "space before the colon": b"Content-Length : 2\r\n",
    "unknown coding": b"Transfer-Encoding: gzip, chunked\r\n",
    "a huge head": b"X-A: " + b"x" * (1 << 20) + b"\r\n",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_ambiguous_http_is_refused_and_ends_the_connection(served: Served, fault: str) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\n" + MALFORMED[fault]
    answer = raw_answer(served, head + b"\r\n{}")
    status = int(answer.split(b" ", 2)[1])
    assert status == (431 if fault == "a huge head" else 400), answer[:200]
    assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\nHost: relay\n\n", b"GARBAGE\r\n\r\n"])
def test_what_is_no_http_at_all(served: Served, head: bytes) -> None:
    assert raw_answer(served, head).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_chunks_in_http_1_0(served: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b" 400 " in raw_answer(served, head).split(b"\r\n", 1)[0]


def raw_answer(served: Served, data: bytes) -> bytes:
    """The answer to `data` with its head, which is one with a Content-Length."""
    with (
        socket.create_connection(("127.0.0.1", served.cluster.port), timeout=20) as plain,
        served.cluster.tls().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        with suppress(ConnectionError):  # it may answer and close while we still send
            connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        with response:
            response.begin()
            fields = "".join(f"{name}: {value}\r\n" for name, value in response.getheaders())
            head = f"HTTP/1.1 {response.status} {response.reason}\r\n{fields}\r\n"
            return head.encode() + response.read()
