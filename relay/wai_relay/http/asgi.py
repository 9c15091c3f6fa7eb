"""Serve exchanges with an ASGI 3 application (the admin API, the dashboard).

Plain HTTP only: no websockets, no lifespan events, no extensions. Bodies are streamed in both
directions; each piece that the application sends is sent at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from wai_protocol.errors import LocalProtocolError

from .edge import Handler
from .exchange import Exchange, Request

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def asgi_handler(make: Callable[[], Application]) -> Handler:
    """Return a handler that serves each exchange with the application that `make` returns.

    `make` is called once, in a thread, at the first exchange, and again at the next one if it has
    failed. So a relay starts without the application's modules, and no stream waits for them.
    """
    making: asyncio.Task[Application] | None = None

    async def handle(exchange: Exchange) -> None:
        nonlocal making
        if making is None or (making.done() and making.exception() is not None):
            making = asyncio.create_task(asyncio.to_thread(make))
        app = await asyncio.shield(making)  # other exchanges wait for it too
        await app(_scope(exchange.request), _receiver(exchange), _sender(exchange))

    return handle


def _scope(request: Request) -> Message:
    headers = [(n, v) for n, v in request.headers if n != b"host"]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version,
        "method": request.method,
        "scheme": request.scheme,
        "path": unquote(request.path),
        "raw_path": request.path.encode("ascii"),
        "query_string": request.query.encode("ascii"),
        "root_path": "",
        "headers": [(b"host", request.authority.encode("ascii")), *headers],
        "client": (request.peer, 0) if request.peer else None,
        "server": None,
    }


def _receiver(exchange: Exchange) -> Callable[[], Awaitable[Message]]:
    ended = False

    async def receive() -> Message:
        nonlocal ended
        if ended:
            # An application that calls `receive` after the body waits for the disconnect. The edge
            # then cancels this task, so this waits for the cancellation and returns nothing.
            await asyncio.get_running_loop().create_future()
        data = await exchange.read()
        ended = not data
        return {"type": "http.request", "body": data, "more_body": not ended}

    return receive


def _sender(exchange: Exchange) -> Callable[[Message], Awaitable[None]]:
    writable = asyncio.Event()
    exchange.on_resume = writable.set

    async def send(message: Message) -> None:
        match message["type"]:
            case "http.response.start":
                headers = [(bytes(n).lower(), bytes(v)) for n, v in message.get("headers", ())]
                exchange.start(message["status"], headers)
            case "http.response.body":
                exchange.write(message.get("body", b""))
                if not message.get("more_body", False):
                    exchange.end()
                    return
                while exchange.paused:
                    writable.clear()
                    await writable.wait()
            case other:
                raise LocalProtocolError(f"the ASGI message {other!r} is not supported")

    return send
