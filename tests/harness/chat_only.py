"""An inference server's chat completions and nothing else of it, as a gateway in front shows it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Final

from .threaded_server import Quiet, QuietServer, serving

_PATHS: Final = ("/v1/models", "/v1/chat/completions", "/v1/embeddings")
_PIECE_BYTES: Final = 65536
_TIMEOUT_S: Final = 30.0
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def chat_only(url: str, key: str = "") -> Iterator[str]:
    """Serve these paths of the server at `url`, which wants `key`, until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.upstream, server.key = url, key
    with serving(server):
        yield server.url


class _Server(QuietServer):
    upstream: str
    key: str


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._forward(None)

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["content-length"])))

    def _forward(self, body: bytes | None) -> None:
        if self.path not in _PATHS:
            self.send_error(404)
            return
        headers = {"Content-Type": "application/json"}
        if self.server.key:
            headers["Authorization"] = f"Bearer {self.server.key}"
        request = urllib.request.Request(self.server.upstream + self.path, body, headers)
        try:
            answer = _DIRECT.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as refusal:
            answer = refusal
        with answer:
            self.send_response(answer.status or 502)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            while piece := answer.read1(_PIECE_BYTES):
                self.wfile.write(piece)
