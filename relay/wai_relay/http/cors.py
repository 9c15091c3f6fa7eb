"""Let web pages of other origins call the API from a browser: CORS (the Fetch standard, 3.2).

`CrossOrigin` wraps the handler of the API. It answers a browser's preflight itself, without a key,
and has the edge add the CORS fields to every other response, whichever status it has. Credentials
that a browser sends by itself (cookies, client certificates) are never allowed, and the API accepts
none of them: a page can do only what its own API key allows. So every origin may call by default.
The dashboard and the admin API, which accept a cookie, are not wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from wai_protocol.errors import AuthError, Fault, RequestError
from wai_protocol.surface import Headers

from .edge import Handler, refusal
from .exchange import Exchange, Request

ANY_ORIGIN: Final = "*"
MAX_ORIGINS: Final = 100
"""In the configuration. Each request of a page is compared with all of them."""
MAX_ORIGIN_CHARS: Final = 300
"""A host name has up to 253 characters."""
MAX_AGE_S: Final = 7200
"""How long a browser may remember the answer to a preflight. Chromium remembers none for longer."""
MAX_ASKED_BYTES: Final = 2048
"""Of the field names in a preflight. The SDKs send about 15 names, some 250 bytes."""

_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_USUAL_FIELDS: Final = b"authorization, content-type, x-api-key, api-key, *"
_EXPOSED: Final = b", ".join(
    (
        b"x-request-id",
        b"x-wai-node",
        b"x-wai-reason",
        b"x-wai-queue-ms",
        b"x-wai-attempts",
        b"x-wai-translated",
        b"retry-after",
        b"x-should-retry",
        *(
            b"x-ratelimit-%b-%b" % (what, unit)
            for what in (b"limit", b"remaining", b"reset")
            for unit in (b"requests", b"tokens")
        ),
        b"*",  # the inference server's; browsers from before 2020 take it for a name
    )
)
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD_NAMES: Final = re.compile(rb"%b(?:[ \t]*,[ \t]*%b)*" % (_TOKEN, _TOKEN))
# `https://app.example`, `https://*.app.example`, `http://localhost:*`, `chrome-extension://ID`,
# `null` (a page from a file). As the browser sends it: no path and no slash at the end.
_ORIGIN: Final = re.compile(
    r"null|[a-z][a-z0-9+.-]*://(?:\*\.)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?:[0-9]+|\*))?"
)


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """Which web pages may call the API from a browser (`[cors]`).

    Raises `RequestError` for an origin that no browser sends.
    """

    origins: tuple[str, ...] = (ANY_ORIGIN,)
    """`*`: all of them. Else such as `https://app.example`, `https://*.app.example` (its
    subdomains), `http://localhost:*` (every port). An empty list: none."""

    def __post_init__(self) -> None:
        if len(self.origins) > MAX_ORIGINS:
            raise RequestError(f"cors.origins has up to {MAX_ORIGINS} origins")
        for origin in self.origins:
            if origin != ANY_ORIGIN and (
                len(origin) > MAX_ORIGIN_CHARS or _ORIGIN.fullmatch(origin) is None
            ):
                raise RequestError(
                    f"cors.origins: {origin[:MAX_ORIGIN_CHARS]!r} is not an origin as browsers"
                    " send it, such as https://app.example or http://localhost:3000 (no path)"
                )


class CrossOrigin:
    """The handler of the API for web pages too. `handle` is a `Handler`."""

    def __init__(self, handler: Handler, config: CorsConfig) -> None:
        self._handler = handler
        self._any = False
        self._origins: re.Pattern[bytes] | None = None
        self.configure(config)

    def configure(self, config: CorsConfig) -> None:
        """Use other origins for requests that begin from now on."""
        self._any = ANY_ORIGIN in config.origins
        self._origins = _pattern(config.origins) if config.origins and not self._any else None

    async def handle(self, exchange: Exchange) -> None:
        """Answer a preflight, or have the handler answer with the CORS fields added."""
        origin = exchange.request.index.get(b"origin")
        if origin is not None and exchange.websocket_key and not self._may_call(origin):
            _refuse(exchange, [])
            return
        if origin is not None and (self._any or self._origins is not None):
            allowed = self._fields(origin)
            if _is_preflight(exchange.request):
                _answer_preflight(exchange, allowed)
                return
            exchange.added_headers = allowed
        await self._handler(exchange)

    def _may_call(self, origin: bytes) -> bool:
        """Return whether a page of `origin` may call. Browsers see to it, but for WebSockets."""
        origins = self._origins
        return self._any or (origins is not None and origins.fullmatch(origin) is not None)

    def _fields(self, origin: bytes) -> Headers:
        """Return the fields of each response to a page of `origin`: it may read it, or not."""
        if not self._may_call(origin):
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", ANY_ORIGIN.encode() if self._any else origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]


def _pattern(origins: Iterable[str]) -> re.Pattern[bytes]:
    """Return what matches each of `origins`; `*` stands for subdomains, or for a port."""
    alternatives = []
    for origin in origins:
        text = re.escape(origin)
        text = text.replace(r"://\*\.", r"://(?:[A-Za-z0-9_-]+\.)+").replace(r":\*", "(?::[0-9]+)?")
        alternatives.append(text)
    return re.compile("|".join(alternatives).encode(), re.IGNORECASE)


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS" and b"access-control-request-method" in request.index


def _refuse(exchange: Exchange, fields: Headers) -> None:
    error = AuthError("pages of this origin may not call: see [cors] origins", Fault.FORBIDDEN)
    status, headers, body = refusal(error)
    exchange.start(status, [*headers, *fields])
    exchange.write(body)
    exchange.end()


def _answer_preflight(exchange: Exchange, allowed: Headers) -> None:
    """Say what a page may send. It needs no key, and nothing is looked up or counted for it."""
    request = exchange.request
    if len(allowed) == 1:
        _refuse(exchange, allowed)
        return
    asked = request.header(b"access-control-request-headers")
    if len(asked) > MAX_ASKED_BYTES or _FIELD_NAMES.fullmatch(asked) is None:
        asked = _USUAL_FIELDS
    headers = [
        *allowed,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
    ]
    # A page of a public site that calls a relay on the visitor's own network (Private Network
    # Access).
    if request.header(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    exchange.start(204, headers)
    exchange.end()
