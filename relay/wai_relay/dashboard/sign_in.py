"""Signing in and out from a browser: `/dashboard/session`.

    POST    {"token": "wai_at_…"} → the cookie, and who it is
    GET     who is signed in, and the token that changes must carry; null: nobody
    DELETE  sign out

Programs send their token with each request instead.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wai_api.sign_ins import SignInRequest, SignInView
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_relay.access.sign_ins import COOKIE, SIGN_IN_S, SignIn, csrf_token
from wai_relay.admin.context import Context
from wai_relay.admin.endpoint import JSON_TYPE, NO_STORE, refuse, signed_in
from wai_relay.admin.openapi import Described
from wai_relay.http.connection import peer_key

from .throttle import SignInThrottle

MAX_BODY_BYTES: Final = 2048  # a token in JSON is a tenth of this
_COOKIE_RULES: Final = "Path=/; Secure; HttpOnly; SameSite=Strict"


def routes(context: Context, path: str) -> list[Route]:
    """What answers at `path`."""
    throttle = SignInThrottle(time.monotonic())

    async def sign_in(request: Request) -> Response:
        address = request.client.host if request.client is not None else ""
        address = peer_key(address) or address  # a household has 2^64 of IPv6's
        _check_same_origin(request)
        token = (await _read(request)).token.strip()
        try:
            found, cookie = await context.sign_ins.begin(
                token.encode(),
                address=request.client.host if request.client is not None else "",
                user_agent=request.headers.get("user-agent", ""),
            )
        except AuthError:  # only a wrong token is throttled: see `throttle`
            throttle.failed(address, time.monotonic())
            raise
        await context.audit.record(found.admin, "admin.sign_in", found.admin)
        answer = _view(context, found, cookie)
        answer.headers["set-cookie"] = (
            f"{COOKIE}={cookie}; Max-Age={SIGN_IN_S:.0f}; {_COOKIE_RULES}"
        )
        return answer

    async def who(request: Request) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        try:
            found = context.sign_ins.find(cookie)
        except AuthError:  # nobody is an answer, and no error in a browser's console
            return Response(b"null", 200, NO_STORE, JSON_TYPE)
        return _view(context, found, cookie)

    async def sign_out(request: Request) -> Response:
        found = signed_in(context, request)
        await context.sign_ins.end(found)
        await context.audit.record(found.admin, "admin.sign_out", found.admin)
        gone = f"{COOKIE}=; Max-Age=0; {_COOKIE_RULES}"
        return Response(status_code=204, headers={**NO_STORE, "set-cookie": gone})

    methods = {"POST": sign_in, "GET": who, "HEAD": who, "DELETE": sign_out}

    async def respond(request: Request) -> Response:
        """One route for all: so that a wrong method hears of every right one."""
        return await _told(methods[request.method])(request)

    return [Route(path, respond, methods=list(methods))]


def described(path: str) -> tuple[Described, ...]:
    """The same for the admin API's document."""
    return (
        Described(*("POST", path, "sign_in", "Sign in from a browser", SignInView, SignInRequest)),
        Described("GET", path, "signed_in", "Say who is signed in here", SignInView | None),
        Described(
            *("DELETE", path, "sign_out", "Sign out"),
            status=204,
            security=({"signIn": [], "csrf": []},),
        ),
    )


Respond = Callable[[Request], Awaitable[Response]]


def _told(respond: Respond) -> Respond:
    """What goes wrong is an answer too."""

    async def checked(request: Request) -> Response:
        try:
            return await respond(request)
        except WaiError as error:
            return refuse(error)

    return checked


def _view(context: Context, found: SignIn, cookie: str) -> Response:
    view = SignInView(
        id=found.id,
        name=found.admin,
        csrf=csrf_token(cookie),
        expires_at=found.expires_at,
        version=context.version,
        url=context.public_url,
        time=context.clock(),
    )
    return Response(msgspec.json.encode(view), 200, NO_STORE, JSON_TYPE)


def _check_same_origin(request: Request) -> None:
    """Nobody else's page signs a browser in. Other origins can't send JSON without asking first,
    which is never allowed; browsers also say where a request is from."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != JSON_TYPE:
        raise RequestError(f"send {JSON_TYPE}")
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise AuthError("sign in from the dashboard's own page", Fault.FORBIDDEN)


async def _read(request: Request) -> SignInRequest:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise RequestError("this is no admin token", Fault.BODY_TOO_LARGE)
    try:
        return read_json(body, SignInRequest, "the body")
    except ForeignJsonError as error:
        raise RequestError(f"the body is not what is expected: {error.reason}") from error
