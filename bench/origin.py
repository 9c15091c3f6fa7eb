"""The upstream of every measurement: an HTTP/1.1 server that answers as fast as Python can.

It looks like an OpenAI-style server (`GET /v1/models`, chat completions, speech, transcriptions),
so that a node serves it as any other. It is no model of an HTTP server: it trusts its peer and
checks nothing. Run it as its own process: `python -m bench.origin`; it prints `ready PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from typing import Final, cast

import uvloop

from bench.pacer import Pacer
from bench.procstat import allow_many_files
from bench.wire import DONE, LAST_CHUNK, MODEL, ChunkDecoder, Wish, event_chunk, wish_from_body

_NS: Final = 1_000_000_000
_BACKLOG: Final = 4096  # ten thousand callers may come at once
_ENDLESS: Final = 1 << 62
_BULK: Final = os.urandom(256 * 1024)

_SSE_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_DONE_CHUNKS: Final = b"%x\r\n%b\r\n" % (len(DONE), DONE) + LAST_CHUNK


def _answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


_MODELS: Final = _answer(
    json.dumps(
        {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench"}],
        }
    ).encode()
)
_HEALTH: Final = _answer(b'{"status":"ok"}')
_MISSING: Final = _answer(b'{"error":{"message":"no such path"}}', b"404 Not Found")
_COMPLETION: Final = _answer(
    json.dumps(
        {
            "id": "chatcmpl-5f2a81c0d9",
            "object": "chat.completion",
            "created": 1790000000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "Forty-two."},
                }
            ],
            "usage": {"prompt_tokens": 21, "completion_tokens": 4, "total_tokens": 25},
        }
    ).encode()
)


class OriginProtocol(asyncio.Protocol):
    """One connection; each request is answered according to its path and the wish in its body."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting = b""
        self._path = b""
        self._close_after = False
        self._body = bytearray()
        self._body_left = 0
        self._chunks: ChunkDecoder | None = None
        self._in_body = False
        self._received = 0
        self._writable = True
        self._flat_out = False  # a stream without pauses is under way
        self._bulk_left = 0
        self._interval_ns = 0
        self._events_left = 0

    # -- asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._flat_out:
            self._send_flat_out()
        elif self._bulk_left:
            self._send_bulk()

    def data_received(self, data: bytes) -> None:
        if self._in_body:
            self._on_body(data)
            return
        self._waiting += data
        while not self._in_body and (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            head, rest = self._waiting[:end], self._waiting[end + 4 :]
            self._waiting = b""
            self._on_head(head, rest)

    # -- the request
    def _on_head(self, head: bytes, rest: bytes) -> None:
        request_line, _, fields = head.partition(b"\r\n")
        self._path = request_line.split(b" ", 2)[1]
        fields = b"\r\n" + fields.lower() + b"\r\n"
        self._close_after = b"\r\nconnection: close\r\n" in fields
        self._received = 0
        self._body.clear()
        at = fields.find(b"\r\ncontent-length:")
        self._body_left = int(fields[at + 17 : fields.index(b"\r\n", at + 2)]) if at >= 0 else 0
        chunked = b"\r\ntransfer-encoding:" in fields
        self._chunks = ChunkDecoder() if chunked else None
        if b"\r\nexpect: 100-continue\r\n" in fields:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._in_body = True
        self._on_body(rest)

    def _on_body(self, data: bytes) -> None:
        if self._chunks is not None:
            data = self._chunks.feed(data)
            ended = self._chunks.ended
            if ended:
                self._waiting = self._chunks.take_rest()
        else:
            if len(data) > self._body_left:
                self._waiting = data[self._body_left :]
                data = data[: self._body_left]
            self._body_left -= len(data)
            ended = self._body_left == 0
        self._received += len(data)
        if not self._path.startswith(b"/v1/audio/tr"):
            self._body += data
        if ended:
            self._in_body = False
            self._respond()

    # -- the response
    def _respond(self) -> None:
        match self._path:
            case b"/v1/chat/completions" | b"/v1/completions":
                if b'"stream":true' in self._body or b'"stream": true' in self._body:
                    self._start_stream(wish_from_body(self._body))
                else:
                    self._write(_COMPLETION)
            case b"/v1/audio/speech":
                self._start_bulk(wish_from_body(self._body).bytes)
            case b"/v1/audio/transcriptions":
                self._write(_answer(b'{"text":"","bytes":%d}' % self._received))
            case b"/v1/models":
                self._write(_MODELS)
            case b"/health":
                self._write(_HEALTH)
            case _:
                self._write(_MISSING)
        if (
            self._close_after
            and not (self._bulk_left or self._events_left)
            and self._transport is not None
        ):
            self._transport.close()

    def _start_stream(self, wish: Wish) -> None:
        if wish.hold:
            self._write(_SSE_HEAD + event_chunk(time.monotonic_ns()))
        elif wish.rate == 0:
            self._write(_SSE_HEAD)
            self._events_left = wish.events or _ENDLESS
            self._flat_out = True
            self._send_flat_out()
        else:
            self._write(_SSE_HEAD)
            self._interval_ns = _NS // wish.rate
            self._events_left = wish.events or _ENDLESS
            # streams that began together must not send together: each gets its own phase
            phase_ns = random.randrange(self._interval_ns)
            self._pacer.call_at(time.monotonic_ns() + phase_ns, self._send_paced)

    def _send_paced(self, due_ns: int) -> None:
        if self._transport is None:
            return
        self._events_left -= 1
        if self._events_left:
            self._transport.write(event_chunk(time.monotonic_ns()))
            self._pacer.call_at(due_ns + self._interval_ns, self._send_paced)
        else:
            self._transport.write(event_chunk(time.monotonic_ns()) + _DONE_CHUNKS)

    def _send_flat_out(self) -> None:
        """Write one event; the next follows in the next turn, or when the socket takes more.

        One event a write, as a server writes them: bursts would let any tunnel carry hundreds of
        events for the price of one.
        """
        if self._transport is None or not self._writable:
            return  # resume_writing goes on
        self._events_left -= 1
        if self._events_left:
            self._transport.write(event_chunk(time.monotonic_ns()))
            self._loop.call_soon(self._send_flat_out)
        else:
            self._flat_out = False
            self._transport.write(event_chunk(time.monotonic_ns()) + _DONE_CHUNKS)

    def _start_bulk(self, size: int) -> None:
        self._write(
            b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: %d\r\n\r\n" % size
        )
        self._bulk_left = size
        self._send_bulk()

    def _send_bulk(self) -> None:
        while self._bulk_left and self._writable and self._transport is not None:
            piece = _BULK[: self._bulk_left]
            self._bulk_left -= len(piece)
            self._write(piece)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(host: str, port: int) -> None:
    """Listen, print the port, and answer until killed."""
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: OriginProtocol(pacer), host, port, backlog=_BACKLOG)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    allow_many_files()
    uvloop.run(serve(args.host, args.port))


if __name__ == "__main__":
    main()
