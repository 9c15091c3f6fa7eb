"""A cloud provider on loopback: speaks HTTPS and OpenAI's chat API, errors and all.

It has one model and one key. Its answers follow the real service's documentation: headers about its
customer, usage in a last chunk if asked for, 401 and 429 with their
bodies. It uses a thread for each connection, and records all requests.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

import trustme

from .threaded_server import Quiet, QuietServer, serving

MODEL: Final = "gpt-5-mini"
KEY: Final = "sk-proj-of-the-tests"
USAGE: Final = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
}
_WORDS: Final = ("From", " the", " cloud")
_ABOUT_THE_CUSTOMER: Final = (
    ("openai-organization", "org-secret"),
    ("openai-processing-ms", "12"),
    ("x-ratelimit-limit-requests", "500"),
    ("x-ratelimit-remaining-requests", "499"),
    ("x-request-id", "req_theirs"),
    ("set-cookie", "__cf_bm=1; path=/"),
    ("server", "cloudflare"),
)


@dataclass(slots=True)
class OpenAiService:
    """A running one. `limited_s`: while it is not None, every request gets a 429 that says so.
    `seen`: head and body of every request, names in lower case."""

    port: int
    ca_file: Path
    limited_s: int | None = None
    key: str = KEY
    """The key that it accepts now."""
    ahead_s: float = 0.0
    """How far its clock is ahead."""
    listed: int = 0
    """How often it was asked for its models."""
    list_status: int = 200
    """What it answers then to who has the key."""
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        """What its documentation calls the base URL."""
        return f"https://localhost:{self.port}/v1"


@contextmanager
def openai_service(folder: Path) -> Iterator[OpenAiService]:
    """Serve until the end of the block; `folder` gets the authority's certificate."""
    authority = trustme.CA()
    ca_file = folder / "provider-ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "cloud.test").configure_cert(context)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.service = OpenAiService(server.server_address[1], ca_file)
    with serving(server):
        yield server.service


class _Server(QuietServer):
    service: OpenAiService


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        service = self.server.service
        service.listed += 1
        if self.headers["authorization"] != f"Bearer {service.key}":
            self._error(401, "Incorrect API key provided.", "invalid_api_key")
        elif service.list_status != 200:
            self._error(service.list_status, "Missing scopes: api.model.read", None)
        else:
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        service = self.server.service
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        service.seen.append((self.path, headers, body))
        if headers.get("authorization") != f"Bearer {service.key}":
            self._error(401, "Incorrect API key provided.", "invalid_api_key")
        elif service.limited_s is not None:
            text = "Rate limit reached for gpt-5-mini in organization org-secret"
            retry = ("retry-after", str(service.limited_s))
            self._error(429, text, "rate_limit_exceeded", retry)
        elif self.path != "/v1/chat/completions":
            self._error(404, f"Invalid URL (POST {self.path})", None)
        elif body.get("model") != MODEL:
            text = f"The model `{body.get('model')}` does not exist or you do not have access"
            self._error(404, text, "model_not_found")
        elif body.get("stream"):
            self._stream(usage=(body.get("stream_options") or {}).get("include_usage", False))
        else:
            message = {"role": "assistant", "content": "".join(_WORDS), "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            self._answer(200, {**_base("chat.completion"), "choices": [choice], "usage": USAGE})

    def _stream(self, *, usage: bool) -> None:
        self._head(200, "text/event-stream; charset=utf-8", ("transfer-encoding", "chunked"))
        extra: dict[str, Any] = {"usage": None} if usage else {}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in _WORDS]
        for delta in deltas:
            self._event({"choices": [_choice(delta, None)], **extra})
        self._event({"choices": [_choice({}, "stop")], **extra})
        if usage:
            self._event({"choices": [], "usage": USAGE})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, fields: dict[str, Any]) -> None:
        event = _base("chat.completion.chunk") | fields
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _error(self, status: int, message: str, code: str | None, *more: tuple[str, str]) -> None:
        kind = "requests" if status == 429 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        self._answer(status, {"error": error}, *more)

    def _answer(self, status: int, value: dict[str, Any], *more: tuple[str, str]) -> None:
        data = json.dumps(value).encode()
        self._head(status, "application/json", ("content-length", str(len(data))), *more)
        self.wfile.write(data)

    def _head(self, status: int, content_type: str, *more: tuple[str, str]) -> None:
        self.send_response_only(status)
        self.send_header("date", formatdate(time.time() + self.server.service.ahead_s, usegmt=True))
        for name, value in (("content-type", content_type), *_ABOUT_THE_CUSTOMER, *more):
            self.send_header(name, value)
        self.end_headers()


def _base(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": f"{MODEL}-2025-08-07"}


def _choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
