"""An upstream whose answers have known content: it counts, and can continue a count.

It streams chat completions as llama-server does (role chunk, deltas, finish, usage, `[DONE]`), and
continues a trailing assistant message as llama-server does with a prefill: it sends only what
follows. It uses a thread for each connection, and records all requests in `Seen`.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODEL: Final = "counter"
UNLIMITED: Final = 1 << 30  # more than any test waits for


@dataclass(slots=True)
class Seen:
    """The requests so far, and how many answers are under way. Its threads write it."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class CountingUpstream:
    """A running upstream, which counts to the request's `max_tokens`, or until its caller goes
    away, with one number every `every_s`.

    A request with `thinks_s` waits that long for its first byte, unless its caller leaves before.
    """

    port: int
    seen: Seen

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def counting_upstream(every_s: float = 0.02, port: int = 0) -> Iterator[CountingUpstream]:
    """Serve until the end of the block."""
    seen = Seen()
    handler = type("Handler", (_Handler,), {"seen": seen, "every_s": every_s})
    server = _Server(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield CountingUpstream(server.server_address[1], seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def words(first: int, count: int) -> str:
    """What an answer says that counts `count` numbers from `first` on."""
    return "".join(f"{number} " for number in range(first, first + count))


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was cut is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: Seen
    every_s: float

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base's name)
        """Keep quiet: the tests look at what callers see."""

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.send_error(404)
            return
        self._answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            body = json.loads(self._body())
            with self.seen.lock:
                self.seen.requests.append(body)
                self.seen.running += 1
            try:
                self._count(body)
            finally:
                with self.seen.lock:
                    self.seen.running -= 1

    def _count(self, body: dict[str, Any]) -> None:
        last = body["messages"][-1]
        said = last["content"].split() if last["role"] == "assistant" else []
        first, count = len(said), body.get("max_tokens", UNLIMITED)
        if thinks_s := body.get("thinks_s"):
            gone, _, _ = select.select([self.connection], [], [], thinks_s)
            if gone:  # a request was read whole: what there is to read now is its end
                return
        usage = {"prompt_tokens": 5 + len(said), "completion_tokens": count}
        if not body.get("stream"):
            message = {"role": "assistant", "content": words(first, count)}
            self._answer({"choices": [{"index": 0, "message": message}], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event({"role": "assistant", "content": None})
        for number in range(first, first + count):
            self._event({"content": f"{number} "})
            time.sleep(self.every_s)
        self._event({}, finish="length")
        if (body.get("stream_options") or {}).get("include_usage"):
            self._chunk({"object": "chat.completion.chunk", "choices": [], "usage": usage})
        self._send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._chunk({"object": "chat.completion.chunk", "id": "chatcmpl-x", "choices": [choice]})

    def _chunk(self, chunk: dict[str, Any]) -> None:
        self._send(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body
