"""An upstream that misbehaves as the name of the requested model says, for end-to-end tests.

It uses a thread for each connection and plain sockets, so that no HTTP library prevents invalid
responses.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Final

from .threaded_server import Quiet, QuietServer, serving

SSE_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK: Final = b"0\r\n\r\n"
FLOOD_BYTES: Final = 64 << 20  # more than all buffers on the way may hold together
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"]+)"|name="model"\s*\r\n\r\n([^\r]+)\r\n')
_PIECE_BYTES: Final = 64 << 10
_UNTIL_PASSED_ON_S: Final = 0.2  # else what follows may spoil the answer before its first byte
COUNT: Final = 1000
_COUNTED_AT_ONCE: Final = 5
_BETWEEN_COUNTS_S: Final = 0.01


def event(content: str) -> bytes:
    """One SSE event of a chat completion."""
    chunk = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": content}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def framed(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class Seen:
    """What has reached the upstream so far. Counted by its threads, read by the test."""

    body_bytes: int = 0
    sent_bytes: int = 0
    callers_gone: int = 0
    heads: list[dict[str, str]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    """Set by a test to let the model `waits` go on."""


@dataclass(frozen=True, slots=True)
class OddUpstream:
    """A running upstream. Every model in `MODELS` is a fault; see `_Handler`."""

    url: str
    seen: Seen


@contextmanager
def odd_upstream() -> Iterator[OddUpstream]:
    """Serve until the end of the block."""
    seen = Seen()
    handler = type("Handler", (_Handler,), {"seen": seen})
    server = _Server(("127.0.0.1", 0), handler)
    with serving(server):
        try:
            yield OddUpstream(server.url, seen)
        finally:
            seen.release.set()


class _Server(QuietServer):
    request_queue_size = 128  # fifty callers at once; the default of 5 resets some of them


class _Handler(Quiet, BaseHTTPRequestHandler):
    """One connection. The methods named after a model say what it does."""

    protocol_version = "HTTP/1.1"
    seen: Seen

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.send_error(404)
            return
        models = [{"id": name, "object": "model"} for name in MODELS]
        self._answer(json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        self.close_connection = True
        with suppress(ConnectionError):
            self._take_body()
            MODELS.get(self.model, _Handler.answers)(self)

    def answers(self) -> None:
        """A proper answer: the SHA-256 and length of the body."""
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": "read"}}
        answer = {"text": self.digest, "bytes": self.seen.body_bytes, "choices": [choice]}
        self._answer(json.dumps(answer).encode())

    def dies_mid_stream(self) -> None:
        """Three events, then a reset."""
        self.wfile.write(SSE_HEAD + b"".join(framed(event(f"word{n} ")) for n in range(3)))
        self._reset()

    def ends_without_an_end(self) -> None:
        """Three events, then a clean FIN where the last chunk should be, as at SIGTERM."""
        self.wfile.write(SSE_HEAD + b"".join(framed(event(f"word{n} ")) for n in range(3)))

    def dies_before_its_head(self) -> None:
        """Reads the request and hangs up."""
        self._reset()

    def speaks_garbage(self) -> None:
        """Something that is not HTTP."""
        self.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n" * 3)

    def garbles_a_chunk(self) -> None:
        """A proper event, then a chunk size that is none."""
        self.wfile.write(SSE_HEAD + framed(event("word0 ")))
        time.sleep(_UNTIL_PASSED_ON_S)
        self.wfile.write(b"zzz\r\nboo\r\n")

    def sends_a_huge_head(self) -> None:
        """A response head of a megabyte."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * (1 << 20) + b"\r\n\r\n")

    def fails(self) -> None:
        """A 500 with a JSON error of its own."""
        body = b'{"error":{"message":"out of memory","type":"server_error"}}'
        self._answer(body, b"500 Internal Server Error")

    def hangs(self) -> None:
        """No answer at all; notices when it is hung up on."""
        with suppress(ConnectionError):
            self.connection.recv(1)
        self.seen.callers_gone += 1

    def waits(self) -> None:
        """One event, and the rest when the test says so."""
        self.wfile.write(SSE_HEAD + framed(event("first ")))
        self.seen.release.wait()
        self.wfile.write(framed(event("second ")) + framed(b"data: [DONE]\n\n") + LAST_CHUNK)

    def counts(self) -> None:
        """`COUNT` numbered events, a few at a time, so that they are under way for a while."""
        self.wfile.write(SSE_HEAD)
        for first in range(0, COUNT, _COUNTED_AT_ONCE):
            numbers = range(first, first + _COUNTED_AT_ONCE)
            self.wfile.write(b"".join(framed(event(f"{number} ")) for number in numbers))
            time.sleep(_BETWEEN_COUNTS_S)
        self.wfile.write(framed(b"data: [DONE]\n\n") + LAST_CHUNK)

    def floods(self) -> None:
        """An answer of `FLOOD_BYTES` as fast as it is taken."""
        self.wfile.write(SSE_HEAD)
        piece = framed(event("x" * (16 << 10)))
        try:
            while self.seen.sent_bytes < FLOOD_BYTES:
                self.wfile.write(piece)
                self.seen.sent_bytes += len(piece)
        except ConnectionError:
            self.seen.callers_gone += 1
            raise
        self.wfile.write(LAST_CHUNK)

    def _take_body(self) -> None:
        self.seen.heads.append({name.lower(): value for name, value in self.headers.items()})
        digest = hashlib.sha256()
        start = b""
        for piece in self._body():
            self.seen.body_bytes += len(piece)
            digest.update(piece)
            start += piece[: _PIECE_BYTES - len(start)]
        self.digest = digest.hexdigest()
        asked = _MODEL.search(start)
        self.model = (asked[1] or asked[2]).decode() if asked else ""

    def _answer(self, body: bytes, status: bytes = b"200 OK") -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.wfile.write(head % (status, len(body)) + body)

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline(), 16):
                yield from self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._exactly(int(self.headers.get("content-length", 0)))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read1(min(size, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the request's body was cut")
            size -= len(piece)
            yield piece

    def _reset(self) -> None:
        self.wfile.flush()
        # SO_LINGER of 0 s: close() sends RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


MODELS: Final = {
    method.__name__.replace("_", "-"): method
    for method in (
        _Handler.answers,
        _Handler.dies_mid_stream,
        _Handler.ends_without_an_end,
        _Handler.dies_before_its_head,
        _Handler.speaks_garbage,
        _Handler.garbles_a_chunk,
        _Handler.sends_a_huge_head,
        _Handler.fails,
        _Handler.hangs,
        _Handler.waits,
        _Handler.counts,
        _Handler.floods,
    )
}
