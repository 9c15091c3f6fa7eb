"""An OpenAI-compatible server that demands a key, and can be broken: both change at any time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from .threaded_server import Quiet, QuietServer, serving

MODEL: Final = "keyed"


@dataclass(slots=True)
class KeyedServer:
    """A running one. `status`: what it answers to chats."""

    key: str
    url: str = ""
    status: int = 200


@contextmanager
def keyed_server(key: str) -> Iterator[KeyedServer]:
    """Serve until the end of the block."""
    state = KeyedServer(key)
    server = QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = server.url
    with serving(server):
        yield state


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: KeyedServer

    def do_GET(self) -> None:
        if self._lets_in():
            listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self._answer(*((200, listed) if self.path == "/v1/models" else (404, {})))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if not self._lets_in():
            return
        if self.path != "/v1/chat/completions":
            self._answer(404, {})
        elif self.state.status != 200:
            self._answer(self.state.status, {"error": {"message": "CUDA error: out of memory"}})
        else:
            message = {"role": "assistant", "content": "hi"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, {"object": "chat.completion", "choices": [choice]})

    def _lets_in(self) -> bool:
        if self.headers["authorization"] == f"Bearer {self.state.key}":
            return True
        self._answer(401, {"error": {"message": "Invalid API Key"}})
        return False

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
