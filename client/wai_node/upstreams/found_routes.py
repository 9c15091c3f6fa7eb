"""Which routes an inference server has: it is asked, cheaply and with no effect on a model.

A server that describes itself (`/openapi.json`, as vLLM and others do) is believed. Any other one
is asked by a method that its routes don't have: most web frameworks answer 405 where there is such
a path, and 404 where there is none. Of the kinds that answer both alike it is known what they do
with a body that is no JSON: whoever has the route finds the body wrong, before any model sees it.
Whether there is a WebSocket shows only by opening it, for no description lists one.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec

from wai_protocol.errors import WaiError
from wai_protocol.surface import ANY_PART, LLAMA_CPP_API, Route, Task, is_pattern

Ask = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends (method, path, body) and returns (status, body). Raises `WaiError`."""

AcceptsWebSocket = Callable[[str], Awaitable[bool]]
"""Opens a WebSocket at the path and closes it: whether the server agreed. Raises `WaiError`."""

ASKING_S: Final = 10.0
"""For all questions to one server: forty, of which each takes a round trip."""
DESCRIPTION_PATH: Final = "/openapi.json"
NO_ROUTE: Final = "/v1/no-such-route-is-known"
"""What nobody has. A server that answers it like any other path can't be asked."""
NO_JSON: Final = b"{"
"""Refused before any model sees it."""
EMPTY: Final = b"{}"
"""For servers that read the body before they look at the path. It lacks what every route needs."""
_MISSING: Final = frozenset({404, 405, 501})
# LM Studio answers an unknown path with 200 and this error.
_UNEXPECTED: Final = b"Unexpected endpoint"
# Older llama-servers write an answer to an empty prompt where none is given.
_NEEDS_NO_FIELD: Final = frozenset({LLAMA_CPP_API})
# Whatever serves a model has these, if its kind does; asking would only fill its log.
_TAKEN_FOR_GRANTED: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


class Way(enum.Enum):
    """How a kind of server is asked which routes it has, if it does not describe itself."""

    BY_METHOD = enum.auto()
    BY_BODY = enum.auto()


async def find_routes(
    ask: Ask,
    routes: Iterable[Route],
    apis: Iterable[str],
    way: Way = Way.BY_METHOD,
    accepts_websocket: AcceptsWebSocket | None = None,
) -> frozenset[str] | None:
    """The paths of those of `routes` that the server has; None where it does not let us know.

    `apis` are the dialects that its kind speaks: what it gives no answer for is taken from these.
    Of the kinds that are asked by body none has a WebSocket.
    """
    routes, apis = list(routes), frozenset(apis)
    plain = [route for route in routes if not route.is_websocket]
    try:
        async with asyncio.timeout(ASKING_S):
            found = await _described(ask, plain)
            if found is None:
                by = _by_body if way is Way.BY_BODY else _by_method
                found = await by(ask, [r for r in plain if not is_pattern(r.path)], apis)
            if found is not None and accepts_websocket is not None and way is Way.BY_METHOD:
                found |= await _websockets(accepts_websocket, routes)
    except TimeoutError:
        return None
    # A server that lists models and has no route for them says "not found" of something else.
    works = (Task.GENERATE, Task.READ, Task.TRANSCRIBE)
    return found if any(r.path in (found or ()) and r.task in works for r in routes) else None


async def _described(ask: Ask, routes: list[Route]) -> frozenset[str] | None:
    """What the server's own description has of `routes`; None where there is none of an API."""
    try:
        status, body = await ask("GET", DESCRIPTION_PATH, b"")
    except WaiError:
        return None
    document = _decoded(body) if status == 200 else None
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        return None
    told = {
        (method.upper(), _with_any_parts(path))
        for path, operations in paths.items()
        if isinstance(operations, dict)
        for method in operations
    }
    return frozenset(r.path for r in routes if (r.method, r.path) in told) or None


async def _by_method(ask: Ask, routes: list[Route], apis: frozenset[str]) -> frozenset[str] | None:
    """What is there by the answers to GET; None where no path is told from another."""
    status, _ = await ask("GET", NO_ROUTE, b"")
    if status != 404:
        return None
    found: set[str] = set()
    tells = False
    for route in routes:
        try:
            status, _ = await ask("GET", route.path, b"")
        except WaiError:
            status = 0
        there = status in (200, 405) if route.method == "GET" else status == 405
        tells = tells or (there and route.method != "GET")
        if there or (status not in _MISSING and route.api in apis):
            found.add(route.path)
    return frozenset(found) if tells else None


async def _by_body(ask: Ask, routes: list[Route], apis: frozenset[str]) -> frozenset[str] | None:
    """What is there by the answers to a body that is wrong."""
    for body in (NO_JSON, EMPTY):
        if await _is_missing(ask, "POST", NO_ROUTE, body):
            break
    else:
        return None
    found: set[str] = set()
    for route in routes:
        missing = route.api not in apis
        granted = not missing and route.path in _TAKEN_FOR_GRANTED
        if not granted and not (body == EMPTY and route.api in _NEEDS_NO_FIELD):
            with contextlib.suppress(WaiError):  # it has hung up: that says nothing
                missing = await _is_missing(ask, route.method, route.path, body)
        if not missing:
            found.add(route.path)
    return frozenset(found)


async def _websockets(accepts: AcceptsWebSocket, routes: list[Route]) -> frozenset[str]:
    """The paths of those of `routes` where the server agrees to a WebSocket."""
    found: set[str] = set()
    for route in routes:
        if route.is_websocket:
            with contextlib.suppress(WaiError):  # it has hung up: so it does on a caller
                if await accepts(route.path):
                    found.add(route.path)
    return frozenset(found)


async def _is_missing(ask: Ask, method: str, path: str, body: bytes) -> bool:
    status, answer = await ask(method, path, b"" if method == "GET" else body)
    return status in _MISSING or (status == 200 and _UNEXPECTED in answer[:200])


def _with_any_parts(path: str) -> str:
    """`/v1/responses/{response_id}` as it stands in our table."""
    return "/".join(
        ANY_PART if part[:1] == "{" and part[-1:] == "}" else part for part in path.split("/")
    )


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
