"""A model server with `/v1/realtime`: transcription as vLLM has it, conversation as OpenAI does.

What vLLM says was read in its source (0.22): it describes itself without its WebSocket, accepts any
subprotocol's offer without choosing, and counts in `transcription.done`. It can't be run here.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

PATH: Final = "/v1/realtime"
Json = dict[str, Any]
WORDS: Final = ("All", " is", " well.")
USAGE: Final = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}


@dataclass(slots=True)
class RealtimeServer:
    """A running one: its address, its model, the heads of its WebSockets, and how they ended."""

    url: str
    model: str
    heads: list[Request] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    """For each WebSocket with a query that is over, the code that its other end gave; 1006: none.
    One without was a node's, to see whether it is there."""


@contextmanager
def realtime_server(model: str = "voice", key: str = "") -> Iterator[RealtimeServer]:
    """Serve until the block ends. With a `key` it wants that as a bearer token, as vLLM does."""
    told = RealtimeServer("", model)

    def process(connection: ServerConnection, request: Request) -> Response | None:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return _json(HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
        if request.path.partition("?")[0] != PATH:
            return _plain(request, model)
        if "?" in request.path:
            told.heads.append(request)
        return None

    def talk(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            _talk(connection, model)
        if connection.request is not None and "?" in connection.request.path:
            told.closed.append(connection.close_code or 1006)

    server: Server = serve(talk, "127.0.0.1", 0, process_request=process, max_size=1 << 24)
    told.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()


def _plain(request: Request, model: str) -> Response:
    path = request.path.partition("?")[0]
    if path == "/v1/models":
        entry = {"id": model, "object": "model", "owned_by": "vllm", "max_model_len": 8192}
        return _json(HTTPStatus.OK, {"object": "list", "data": [entry]})
    if path == "/openapi.json":
        paths: Json = {
            "/v1/chat/completions": {"post": {}},
            "/v1/audio/transcriptions": {"post": {}},
        }
        return _json(HTTPStatus.OK, {"openapi": "3.1.0", "paths": paths})
    return _json(HTTPStatus.NOT_FOUND, {"detail": "Not Found"})


def _json(status: HTTPStatus, document: object) -> Response:
    body = json.dumps(document).encode()
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
    return Response(status.value, status.phrase, headers, body)


def _talk(connection: ServerConnection, model: str) -> None:
    def say(kind: str, **fields: Any) -> None:
        connection.send(json.dumps({"type": kind, "event_id": "event_1", **fields}))

    say("session.created", id="sess_1", session={"type": "realtime", "model": model})
    heard = 0
    for message in connection:
        if isinstance(message, bytes):  # not theirs: it shows that any frame comes through
            connection.send(message)
            continue
        event = json.loads(message)
        match event["type"]:
            case "session.update":
                say("session.updated", session=event.get("session", {}))
            case "input_audio_buffer.append":
                heard += len(base64.b64decode(event["audio"]))
            case "input_audio_buffer.commit":
                for word in WORDS:
                    say("transcription.delta", delta=word)
                say("transcription.done", text=f"{heard} bytes", usage=USAGE)
            case "response.create":
                for word in WORDS:
                    say("response.output_text.delta", delta=word, response_id="resp_1")
                usage = {"input_tokens": 20, "output_tokens": 3, "total_tokens": 23}
                say(
                    "response.done",
                    response={"id": "resp_1", "object": "realtime.response"}
                    | {"status": "completed", "usage": usage},
                )
            case "test.vanish":
                connection.socket.shutdown(socket.SHUT_RDWR)
                return
            case other:
                say("error", error={"type": "invalid_request_error", "message": f"no {other}"})
