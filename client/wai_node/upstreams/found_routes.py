"""Which routes an inference server has: it is asked, cheaply and with no effect on a model.

A server that describes itself (`/openapi.json`, as vLLM and others do) is believed. Any other one
gets a request to each route whose body is no JSON: whoever has the route answers that the body is
wrong, whoever has not that there is no such route. No model sees such a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec

from wai_protocol.errors import WaiError
from wai_protocol.surface import ANY_PART, LLAMA_CPP_API, Route, Task, is_pattern

Ask = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends (method, path, body) and returns (status, body). Raises `WaiError`."""

ASKING_S: Final = 10.0
"""For all questions to one server: forty, of which each takes a round trip."""
DESCRIPTION_PATH: Final = "/openapi.json"
NO_ROUTE: Final = "/v1/no-such-route-is-known"
"""What nobody has. A server that answers it like any other path can't be asked in this way."""
NO_JSON: Final = b"{"
"""Refused before any model sees it."""
EMPTY: Final = b"{}"
"""For servers that read the body before they look at the path. It lacks what every route needs."""
_MISSING: Final = frozenset({404, 405, 501})
# LM Studio answers an unknown path with 200 and this error.
_UNEXPECTED: Final = b"Unexpected endpoint"
# Older llama-servers write an answer to an empty prompt where none is given.
_NEEDS_NO_FIELD: Final = frozenset({LLAMA_CPP_API})


async def find_routes(
    ask: Ask, routes: Iterable[Route], apis: Iterable[str]
) -> frozenset[str] | None:
    """The paths of those of `routes` that the server has; None where it does not let us know.

    `apis` are the dialects that its kind speaks: what it gives no answer for is taken from these.
    """
    routes, apis = list(routes), frozenset(apis)
    try:
        async with asyncio.timeout(ASKING_S):
            described = await _described(ask, routes)
            if described is not None:
                return described
            for body in (NO_JSON, EMPTY):
                if await _is_missing(ask, "POST", NO_ROUTE, body):
                    return await _asked_one_by_one(ask, routes, apis, body)
    except TimeoutError:
        pass
    return None


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
    return _plausible(frozenset(r.path for r in routes if (r.method, r.path) in told), routes)


async def _asked_one_by_one(
    ask: Ask, routes: list[Route], apis: frozenset[str], body: bytes
) -> frozenset[str] | None:
    found: set[str] = set()
    for route in routes:
        if is_pattern(route.path):
            continue  # there is nothing behind a made-up identifier, whoever is asked
        if body == EMPTY and route.api in _NEEDS_NO_FIELD:
            if route.api in apis:
                found.add(route.path)
            continue
        try:
            missing = await _is_missing(ask, route.method, route.path, body)
        except WaiError:  # it has hung up, as some servers do with a body that they can't read
            missing = route.api not in apis
        if not missing:
            found.add(route.path)
    return _plausible(frozenset(found), routes)


def _plausible(found: frozenset[str], routes: list[Route]) -> frozenset[str] | None:
    """`found`, or None where a model could not be asked for anything: a server that lists models
    and has no route for them says "not found" of something else."""
    works = (Task.GENERATE, Task.READ, Task.TRANSCRIBE)
    return found if any(r.path in found and r.task in works for r in routes) else None


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
