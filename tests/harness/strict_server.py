"""A model's server that is built on Python's http.server, as many small ones are: it needs a
Content-Length, refuses fields that it does not know, and reads a body before it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from .threaded_server import Quiet, QuietServer, serving

MODEL: Final = "strict"
KNOWN_FIELDS: Final = frozenset({"model", "messages", "stream", "max_tokens"})
_PIECE_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class StrictServer:
    """A running server. `busy`: it answers 503 to so many more requests. `also_known`: fields that
    it takes besides."""

    url: str = ""
    busy: int = 0
    also_known: frozenset[str] = frozenset()
    requests: int = 0
    body_bytes: int = 0
    fields: list[frozenset[str]] = field(default_factory=list)
    """Of each request that it read."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def strict_server(**settings: Any) -> Iterator[StrictServer]:
    """Serve until the end of the block."""
    state = StrictServer(**settings)
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = server.url
    with serving(server):
        yield state


class _Server(QuietServer):
    request_queue_size = 256


class _Handler(Quiet, BaseHTTPRequestHandler):
    state: StrictServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self.headers["content-length"] is None:
            self.send_error(411)
            return
        left = int(self.headers["content-length"])
        pieces = []
        while left and (piece := self.rfile.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            pieces.append(piece)
        body = b"".join(pieces)
        state = self.state
        with state.lock:
            state.requests += 1
            state.body_bytes += len(body)
            busy = state.busy > 0
            state.busy -= busy
        if busy:
            self._answer(503, {"error": {"message": "busy", "type": "overloaded"}})
            return
        fields = json.loads(body)
        with state.lock:
            state.fields.append(frozenset(fields))
        unknown = sorted(fields.keys() - KNOWN_FIELDS - state.also_known)
        if unknown:
            detail = [{"type": "extra_forbidden", "loc": ["body", name]} for name in unknown]
            self._answer(422, {"detail": detail})
        elif fields.get("stream"):
            self._stream(asked=bool(fields.get("stream_options")))
        else:
            self._answer(200, {"choices": [{"message": {"content": "hi"}}], "usage": USAGE})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, *, asked: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
            {"choices": [{"index": 0, "delta": {"content": "hi"}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        if asked:
            chunks.append({"choices": [], "usage": USAGE})
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


USAGE: Final = {"prompt_tokens": 900, "completion_tokens": 2, "total_tokens": 902}
