"""A program on a port where a node looks for inference servers, which answers as badly as it can.

It begins as a well-behaved Ollama, so that a node takes it in, and turns to what `mode` names when
a test says so. A thread per connection and plain sockets; every answer is what no sane server says.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Final

from .threaded_server import Quiet, QuietServer, serving

WELL_BEHAVED: Final = "well-behaved"
DEEP: Final = 100_000
TRICKLE_S: Final = 0.02


def _json(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def _models(*extra: object, **fields: object) -> bytes:
    return json.dumps({"models": [{"name": "decoy", "key": "decoy", **fields}, *extra]}).encode()


OLLAMA: Final = {
    "/api/tags": _json(_models()),
    "/api/ps": _json(_models(context_length=4096)),
    "/api/version": _json(b'{"version":"0.14.0"}'),
}

BODIES: Final = {
    "not-utf-8": b'{"models":[{"name":"\xff\xfe"}],"data":[{"id":"\xff"}]}',
    "not-utf-8-in-an-unknown-field": b'{"models":[],"data":[],"x":"\xff"}',
    "deep-list": b"[" * DEEP + b"]" * DEEP,
    "deep-object": b'{"models":' * DEEP + b"1" + b"}" * DEEP,
    "deep-in-an-unknown-field": b'{"models":[],"data":[],"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "lone-surrogate": b'{"models":[{"name":"\\ud800"}],"data":[{"id":"\\ud800"}]}',
    "wrong-types": b'{"models":{"name":1},"data":[1],"version":[]}',
    "null": b"null",
    "empty": b"",
    "no-json": b"<html>hello</html>",
    "huge-int": _models(context_length=int("9" * 4000)),
    "int-beyond-the-status": _models(context_length=(1 << 63) - 1, parallel=(1 << 63) - 1),
    "negative-int": _models(context_length=-5),
    "huge-float": b'{"models":[{"name":"m","context_length":1e99999}]}',
    "endless-name": _models(name="n" * 100_000),
    "many-models": _models(*({"name": f"m{n}"} for n in range(20_000))),
}


@dataclass(slots=True)
class HostileServer:
    """A running one. `requests` counts what it was asked in its current mode."""

    port: int = 0
    mode: str = WELL_BEHAVED
    requests: dict[str, int] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> int:
        """How many requests have come since `mode` was set to what it is."""
        return self.requests.get(self.mode, 0)


@contextmanager
def hostile_server(mode: str = WELL_BEHAVED, port: int = 0) -> Iterator[HostileServer]:
    """Serve on 127.0.0.1 until the end of the block."""
    state = HostileServer(mode=mode)
    server = QuietServer(("127.0.0.1", port), type("Handler", (_Handler,), {"state": state}))
    state.port = server.server_address[1]
    with serving(server):
        try:
            yield state
        finally:
            state.stopping.set()


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HostileServer

    def do_GET(self) -> None:
        mode = self.state.mode
        self.state.requests[mode] = self.state.requests.get(mode, 0) + 1
        with suppress(ConnectionError):
            if mode in _MANNERS:
                self.close_connection = True
                _MANNERS[mode](self)
            elif mode in BODIES and self.path != "/health":
                self.wfile.write(_json(BODIES[mode]))
            else:
                self.wfile.write(OLLAMA.get(self.path, NOT_FOUND))

    def endless(self) -> None:
        """A body without an end, as fast as it is read."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")
        while not self.state.stopping.is_set():
            self.wfile.write(b"1," * 32768)

    def trickle(self) -> None:
        """A proper answer, of which a byte comes now and then."""
        for at in range(len(answer := OLLAMA["/api/tags"])):
            self.wfile.write(answer[at : at + 1])
            if self.state.stopping.wait(TRICKLE_S):
                return

    def silent(self) -> None:
        """Nothing at all."""
        self.state.stopping.wait()

    def no_http(self) -> None:
        """Something else than HTTP."""
        self.wfile.write(b"\x16\x03\x01\xff no HTTP\r\n\r\n" * 3)

    def huge_head(self) -> None:
        """A head of a megabyte."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n")

    def hangs_up(self) -> None:
        """No answer, but an end."""

    def cut(self) -> None:
        """Less than was announced."""
        self.wfile.write(OLLAMA["/api/tags"][:-3])
        time.sleep(TRICKLE_S)


NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_MANNERS: Final[dict[str, Callable[[_Handler], None]]] = {
    "endless-body": _Handler.endless,
    "slow-trickle": _Handler.trickle,
    "silent": _Handler.silent,
    "no-http": _Handler.no_http,
    "huge-head": _Handler.huge_head,
    "hangs-up": _Handler.hangs_up,
    "cut-body": _Handler.cut,
}
MODES: Final = (*BODIES, *_MANNERS)
