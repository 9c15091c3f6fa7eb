"""A chat server that tells nothing of itself and works at a given pace, for tests of routing.

It has a number of places; a request that finds none waits inside for one, as in Ollama. `failure`
makes it answer at once with an error instead. One asyncio loop in a thread: hundreds of requests at
once cost little.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from .loop_end import end_connections

Refusal = Literal["500", "429", "404", "401", "503", "402", "405", "410", "520"]
BadBody = Literal["error as JSON", "no answer", "sentence", "page", "cut"]
BadStream = Literal["error event", "error, done", "empty", "comments"]
BadRole = Literal["role only", "role, error", "role, cut"]
Failure = Literal["", Refusal, BadBody, BadStream, BadRole]
MODEL: Final = "paced"
_STATUS: Final = {
    "500": "500 Oh",
    "429": "429 Too many",
    "404": "404 No",
    "401": "401 Who",
    "503": "503 Later",
    "402": "402 Pay",
    "405": "405 Not so",
    "410": "410 Gone",
    "520": "520 Odd",
    "error as JSON": "200 OK",
}
# A body that is no answer, and its type.
_BODIES: Final = {
    "page": ("<html><h1>Welcome to the router</h1></html>", "text/html"),
    "no answer": ('{"detail": "not now"}', "application/json"),
    "sentence": ("no healthy upstream", "text/plain"),
}
_ERROR: Final = {"error": {"message": "broken", "type": "server_error"}}
_ROLE: Final = 'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
# What comes of a stream that fails.
_STREAMED: Final[dict[str, tuple[str, ...]]] = {
    "error event": (f"data: {json.dumps(_ERROR)}\n\n",),
    "empty": (),
    "role only": (": hello\n\n", _ROLE, "data: [DONE]\n\n"),
    "role, error": (": hello\n\n", _ROLE, f"event: error\ndata: {json.dumps(_ERROR)}\n\n"),
    "role, cut": (": hello\n\n", _ROLE),
    "comments": (": hello\n\n", ": still here\n\n"),
    "error, done": (f"data: {json.dumps(_ERROR)}\n\n", "data: [DONE]\n\n"),
}


@dataclass(slots=True)
class Pace:
    """How a server works; may be changed while it runs. Answers are longer or shorter than `tokens`
    by up to the share `spread`. `comment`: it sends one at once."""

    places: int = 1000
    first_s: float = 0.02
    token_s: float = 0.02
    tokens: int = 16
    spread: float = 0.0
    comment: bool = False
    failure: Failure = ""


@dataclass(slots=True)
class PacedServer:
    """A running one. `taken` counts its requests, `most` of them at once."""

    url: str
    pace: Pace
    taken: int = 0
    running: int = 0
    most: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    lengths: random.Random = field(default_factory=lambda: random.Random(1))


@contextmanager
def paced_server(pace: Pace) -> Iterator[PacedServer]:
    """Serve until the end of the block."""
    server = PacedServer("", pace)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(
            lambda reader, writer: _connection(server, reader, writer), "127.0.0.1", 0, backlog=512
        )
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        await end_connections(listening)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _connection(
    server: PacedServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        try:
            while True:
                await _exchange(server, reader, writer)
        finally:
            writer.transport.abort()


async def _exchange(
    server: PacedServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next((int(x[15:]) for x in lines if x.startswith("content-length:")), 0)
    await reader.readexactly(length)
    if lines[0].startswith("get"):
        listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        found = lines[0].split()[1] == "/v1/models"
        _send(writer, "200 OK" if found else "404 No", json.dumps(listed))
    else:
        await _answer(server, writer)
    await writer.drain()


async def _answer(server: PacedServer, writer: asyncio.StreamWriter) -> None:
    pace = server.pace
    server.taken += 1
    tokens = round(pace.tokens * server.lengths.uniform(1 - pace.spread, 1 + pace.spread))
    if pace.failure in _STATUS:
        _send(writer, _STATUS[pace.failure], json.dumps(_ERROR))
        return
    if pace.failure in _BODIES:
        _send(writer, "200 OK", *_BODIES[pace.failure])
        return
    if pace.failure == "cut":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b'content-length: 999\r\n\r\n{"choices":[{"message":')
        await writer.drain()
        raise ConnectionError
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    if pace.failure:
        for text in _STREAMED[pace.failure]:
            _chunk(writer, text)
        if pace.failure == "role, cut":
            raise ConnectionError
    else:
        if pace.comment:
            _chunk(writer, ": hello\n\n")
            _chunk(writer, _ROLE)
        await _take_place(server)
        try:
            await asyncio.sleep(pace.first_s)
            for _ in range(tokens):
                _chunk(writer, 'data: {"choices": [{"delta": {"content": "word "}}]}\n\n')
                await writer.drain()
                await asyncio.sleep(pace.token_s)
        finally:
            _leave_place(server)
        usage = {"prompt_tokens": 100, "completion_tokens": tokens}
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}
        _chunk(writer, f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")


async def _take_place(server: PacedServer) -> None:
    if server.running >= server.pace.places:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        server.waiting.append(place)
        await place  # whoever leaves has passed its place on
    else:
        server.running += 1
    server.most = max(server.most, server.running)


def _leave_place(server: PacedServer) -> None:
    if server.waiting:
        server.waiting.pop(0).set_result(None)
    else:
        server.running -= 1


def _send(
    writer: asyncio.StreamWriter, status: str, body: str, kind: str = "application/json"
) -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}"
    writer.write(f"{head}\r\n\r\n{body}".encode())


def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(text), text.encode()))
