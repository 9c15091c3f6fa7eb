"""One endpoint of the admin API as a value, and how a request becomes a call of its handler.

Sign-in, the body's bound and check, and errors are the same for all and live here; what an endpoint
does is its handler's, in the file of its noun. `app` and `openapi` both read the same table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from wai_api.errors import ErrorAnswer, ErrorDetail
from wai_api.patterns import IN_WORDS
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, decode_json
from wai_protocol.relay_pass import PREFIX as PASS_PREFIX
from wai_relay.access.sign_ins import COOKIE, CSRF_HEADER, SignIn, check_csrf
from wai_transport.wording import in_words

from .context import Context

log = logging.getLogger("wai.admin")

MAX_BODY_BYTES: Final = (
    64 * 1024
)  # the largest real one, a key's limits with lists, is under 10 KiB
MAX_QUERY_CHARS: Final = 256  # as long as a model's name may be
JSON_TYPE: Final = "application/json"
MAX_WHOLE: Final = 1 << 53  # above it floats skip whole numbers
# Answers hold secrets that are shown once, and the state of this moment.
NO_STORE: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Query(msgspec.Struct, frozen=True):
    """A query parameter: a whole number between its bounds, a yes/no, or a text (one of `choices`,
    where there are any, or one that has `pattern`)."""

    name: str
    kind: type[int] | type[bool] | type[str]
    about: str
    minimum: int = 0
    maximum: int = 1 << 53
    choices: tuple[str, ...] = ()
    needed: bool = False
    pattern: str = ""


class Call(msgspec.Struct, frozen=True):
    """A checked request: who asks, the path's names, the query's values, the body (its type)."""

    actor: str
    path: dict[str, str]
    query: dict[str, Any]
    body: Any


Handler = Callable[[Context, Call], Awaitable[Any]]


class Endpoint(msgspec.Struct, frozen=True):
    """`METHOD path` (below /admin/v1) with its types. `needs_admin` False: anyone may ask; `also`:
    another media type that may be asked for; `for_relays`: another relay of the fleet may ask, for
    one of its admins."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Any
    body: Any = None
    status: int = 200
    query: tuple[Query, ...] = ()
    needs_admin: bool = True
    also: str = ""
    for_relays: bool = False

    async def respond(self, context: Context, request: Request) -> Response:
        """Answer a request; what goes wrong is an answer too."""
        try:
            actor = self._actor(context, request) if self.needs_admin else ""
            call = Call(actor, dict(request.path_params), self._query(request), None)
            if self.body is not None:
                call = Call(call.actor, call.path, call.query, await self._read(request))
            answer = await self.handler(context, call)
        except WaiError as error:
            return refuse(error)
        if isinstance(answer, Response):  # in another format, as it was asked for
            return answer
        return Response(msgspec.json.encode(answer), self.status, NO_STORE, JSON_TYPE)

    def _actor(self, context: Context, request: Request) -> str:
        token = request.headers.get("authorization", "").partition(" ")[2].strip()
        if self.for_relays and token.startswith(PASS_PREFIX):
            return context.peers.actor_of(token)
        return sign_in(context, request)

    async def _read(self, request: Request) -> Any:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise RequestError(
                    f"the body is longer than {MAX_BODY_BYTES} bytes", Fault.BODY_TOO_LARGE
                )
        try:
            asked = decode_json(_DECODER, body or b"{}", "the body", limit_bytes=MAX_BODY_BYTES)
            return msgspec.convert(asked, self.body)
        except ForeignJsonError as error:
            raise RequestError(in_words(error.reason, patterns=IN_WORDS)) from error
        except msgspec.ValidationError as error:
            raise RequestError(in_words(str(error), patterns=IN_WORDS)) from error

    def _query(self, request: Request) -> dict[str, Any]:
        known = {query.name: query for query in self.query}
        values: dict[str, Any] = {}
        for name, text in request.query_params.multi_items():
            if name not in known:
                raise RequestError(f"unknown query parameter {name[:64]!r}")
            values[name] = _query_value(known[name], text)
        for query in self.query:
            if query.needed and query.name not in values:
                raise RequestError(f"the query parameter {query.name!r} is missing: {query.about}")
        return values


def _number(text: str) -> int | float:
    """JSON has one kind of number: 5.0 is as whole as 5, and Python's own encoder writes it so."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= MAX_WHOLE else value


_DECODER: Final = msgspec.json.Decoder(float_hook=_number)


def sign_in(context: Context, request: Request) -> str:
    """The name of the admin that asks: by token, or by the cookie of a browser that is signed in.
    Raises `AuthError`."""
    if "authorization" not in request.headers and COOKIE in request.cookies:
        return signed_in(context, request).admin
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthError("send `Authorization: Bearer` with an admin token", Fault.KEY_MISSING)
    return context.admins.authenticate(token.strip().encode("latin-1"))


def signed_in(context: Context, request: Request) -> SignIn:
    """The sign-in that the request's cookie is of. Whatever changes something must prove that it
    comes from our own page. Raises `AuthError`."""
    cookie = request.cookies.get(COOKIE, "")
    found = context.sign_ins.find(cookie)
    if request.method not in ("GET", "HEAD"):
        check_csrf(cookie, request.headers.get(CSRF_HEADER, ""))
    return found


def refuse(error: WaiError) -> Response:
    """The answer that tells of an error, in OpenAI's format."""
    row = error.fault.row
    log.log(row.log_level, "admin API: %s", error)
    answer = ErrorAnswer(ErrorDetail(str(error), row.openai_type, row.openai_code))
    headers = dict(NO_STORE)
    if row.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return Response(msgspec.json.encode(answer), row.http_status, headers, JSON_TYPE)


def _query_value(query: Query, text: str) -> int | bool | str:
    if query.kind is str:
        if query.choices and text not in query.choices:
            raise RequestError(f"{query.name} is one of {', '.join(query.choices)}")
        if query.pattern and not re.match(query.pattern, text):
            raise RequestError(f"{query.name} is {IN_WORDS[query.pattern]}")
        if len(text) > MAX_QUERY_CHARS:
            raise RequestError(f"{query.name} has at most {MAX_QUERY_CHARS} characters")
        return text
    if query.kind is bool:
        if text not in ("true", "false"):
            raise RequestError(f"{query.name} is true or false")
        return text == "true"
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 17 else -1
    if not query.minimum <= number <= query.maximum:
        raise RequestError(f"{query.name} is {query.minimum} to {query.maximum}")
    return number
