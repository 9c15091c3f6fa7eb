"""The admin API as an ASGI app, mounted at `/admin/v1`.

A table of endpoints, one file per noun; Starlette finds the one that is asked for, `endpoint` does
what is the same for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from wai_api.feed import EVENTS
from wai_protocol.errors import Fault, RequestError, WaiError

from . import (
    admins,
    captures,
    deployments,
    finished,
    invites,
    keys,
    nodes,
    notify,
    openapi,
    problems,
    relay,
    relays,
    requests,
    sign_ins,
    trials,
    usage,
    watch,
)
from .context import Context
from .endpoint import JSON_TYPE, Endpoint, refuse

log = logging.getLogger("wai.admin")

BASE: Final = "/admin/v1"
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *nodes.ENDPOINTS,
    *invites.ENDPOINTS,
    *keys.ENDPOINTS,
    *trials.ENDPOINTS,
    *relay.ENDPOINTS,
    *relays.ENDPOINTS,
    *problems.ENDPOINTS,
    *notify.ENDPOINTS,
    *usage.ENDPOINTS,
    *finished.ENDPOINTS,
    *requests.ENDPOINTS,
    *captures.ENDPOINTS,
    *deployments.ENDPOINTS,
    *admins.ENDPOINTS,
    *sign_ins.ENDPOINTS,
)


_FEED: Final = openapi.Described(
    *("GET", f"{BASE}/events", "watch", "Watch everything live: docs/http-api.md says what comes"),
    answer=str,
    media_type="text/event-stream",
    events=EVENTS,
    security=({"adminToken": []},),
)


def create_app(context: Context) -> Starlette:
    """The API alone, over what is in `context`; with the dashboard it is `dashboard.app`'s."""
    return Starlette(routes=routes(context), exception_handlers=exception_handlers())


def routes(context: Context, also: Sequence[openapi.Described] = ()) -> list[Route]:
    """Everything below `BASE`; the document describes `also` what is elsewhere."""
    described = msgspec.json.encode(
        openapi.document(ENDPOINTS, context.version, BASE, (_FEED, *also))
    )

    async def describe(request: Request) -> Response:
        return Response(described, media_type=JSON_TYPE)

    async def watch_events(request: Request) -> Response:
        return await watch.respond(context, request)

    return [
        Route(f"{BASE}/openapi.json", describe, methods=["GET"]),
        Route(f"{BASE}/events", watch_events, methods=["GET"]),
        *_routes(context),
    ]


def exception_handlers() -> dict[Any, Any]:
    """What Starlette does with what is raised."""
    return {HTTPException: _refuse_http, Exception: _broken}


def _routes(context: Context) -> list[Route]:
    """One route a path: so that a wrong method is a 405, not a 404."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [
        _NamesInPath(BASE + path, _responder(context, methods), methods=list(methods))
        for path, methods in by_path.items()
    ]


class _NamesInPath(Route):
    """A route whose parts of a path are decoded after they are told apart: a key's name may have a
    slash, which comes as %2F."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches({**scope, "path": scope["raw_path"].decode("ascii")})
        if match is not Match.NONE:
            parts = found["path_params"].items()
            found["path_params"] = {name: unquote(part) for name, part in parts}
        return match, found


def _responder(
    context: Context, methods: dict[str, Endpoint]
) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].respond(context, request)

    return respond


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        answer = refuse(
            RequestError(
                f"{request.method} is not possible on {request.url.path}", Fault.METHOD_NOT_ALLOWED
            )
        )
        answer.headers.update(error.headers or {})
        return answer
    return refuse(RequestError(f"there is no {request.url.path}", Fault.NOT_FOUND))


async def _broken(request: Request, error: Exception) -> Response:
    log.error("admin API: %s %s failed", request.method, request.url.path, exc_info=error)
    return refuse(WaiError("the relay failed to do this; its log says why", Fault.INTERNAL))
