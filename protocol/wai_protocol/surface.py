"""The HTTP surface that is forwarded: an allow-list of methods, paths and headers.

Relay and node both check requests against this list: the relay so that nothing else enters the
tunnel, the node so that a hostile relay can reach nothing else on the box (SPEC section 7). Paths
are the upstream's; the relay maps its own `/api/v1/...` to `/v1/...` before it looks here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Dialect(enum.Enum):
    """Whose API a route belongs to.

    It determines the form of errors, where token usage is found, and which upstreams can serve it.
    """

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


@dataclass(frozen=True, slots=True)
class Route:
    """One forwarded endpoint. `generates`: a request occupies a slot and is answered in tokens."""

    method: str
    path: str
    dialect: Dialect
    generates: bool


_OPENAI_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_OPENAI_OTHER = (
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions/input_tokens",
)
ROUTES: Final[dict[tuple[str, str], Route]] = {
    (route.method, route.path): route
    for route in (
        *(Route("POST", p, Dialect.OPENAI, generates=True) for p in _OPENAI_GENERATING),
        *(Route("POST", p, Dialect.OPENAI, generates=False) for p in _OPENAI_OTHER),
        Route("POST", "/v1/messages", Dialect.ANTHROPIC, generates=True),
        Route("POST", "/v1/messages/count_tokens", Dialect.ANTHROPIC, generates=False),
        Route("POST", "/api/chat", Dialect.OLLAMA, generates=True),
        Route("POST", "/api/generate", Dialect.OLLAMA, generates=True),
        Route("POST", "/api/embed", Dialect.OLLAMA, generates=False),
        Route("POST", "/api/show", Dialect.OLLAMA, generates=False),
        Route("GET", "/api/tags", Dialect.OLLAMA, generates=False),
        Route("GET", "/api/ps", Dialect.OLLAMA, generates=False),
    )
}

# Hop-by-hop fields (RFC 9110 section 7.6.1), and framing, which each hop sets itself.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"content-length",
        b"host",
        b"expect",
    }
)
# Never forwarded to an upstream: the caller's credentials; Origin and Referer, because Ollama
# answers them with 403; X-Conversation-Id, which turns on llama-server's resumable streams, so that
# a disconnect no longer frees the slot; and the fields that identify the caller.
NOT_FOR_UPSTREAM: Final = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"origin",
    b"referer",
    b"x-conversation-id",
    b"forwarded",
    b"x-real-ip",
}
_NOT_FOR_UPSTREAM_PREFIXES: Final = (b"x-forwarded-", b"x-wai-")
FOR_CALLER: Final = frozenset(
    {
        # the body's type and encoding
        b"content-type",
        b"content-encoding",
        b"content-language",
        b"content-disposition",
        # whether and when to repeat the request; SDKs read all four
        b"cache-control",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
        # by which server and how fast the answer was made
        b"request-id",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
        b"anthropic-version",
        b"x-compute-characters",
        b"x-compute-time",
        b"x-compute-tokens",
        b"x-compute-type",
        b"x-generated-tokens",
        b"x-inference-time",
        b"x-prompt-tokens",
        b"x-queue-time",
        b"x-time-per-token",
        b"x-total-time",
        b"x-validation-time",
    }
)
"""The response headers that are forwarded to a caller. It is an allow-list, because other headers
of a model server would have effects: `Location` sends the caller's API key to another host,
`X-Accel-Redirect` and `X-Sendfile` make a proxy in front of the relay serve its own files,
`Clear-Site-Data`, `Refresh` and `Set-Cookie` act in a browser, and CORS, `Alt-Svc`,
`Strict-Transport-Security` and `X-RateLimit-*` are set by the relay only. `Date`, `X-Request-Id`
and the framing are set by each hop. The last eleven names are those of TGI and TEI."""

MAX_LENGTH_DIGITS: Final = 15  # below 2**53, which servers and JSON readers represent exactly
_STREAM_TYPES: Final = (b"text/event-stream", b"application/x-ndjson")

Headers = list[tuple[bytes, bytes]]


def find_route(method: str, path: str) -> Route | None:
    """Return the route for `method` and `path` (without query), or None if it is not forwarded."""
    return ROUTES.get((method, path))


def is_redirect(status: int) -> bool:
    """Return whether `status` is a redirect or 304 (3xx).

    A model server's redirect is not forwarded: clients would follow it, with their API key, to
    whichever host it names.
    """
    return 300 <= status <= 399


REDIRECTED: Final = (
    "the model server answered with a redirect (status {}), which is not followed; "
    "give its final address as the upstream's URL"
)
"""The error text for a redirect; a format string that takes the status."""


def headers_for_upstream(headers: Headers) -> Headers:
    """Return those of `headers` (lower-case names) that may be forwarded to an upstream."""
    named = _connection_options(headers)
    return [
        (n, v)
        for n, v in headers
        if n not in NOT_FOR_UPSTREAM
        and n not in named
        and (n[:2] != b"x-" or not n.startswith(_NOT_FOR_UPSTREAM_PREFIXES))
    ]


def headers_for_caller(headers: Headers) -> Headers:
    """Return those of `headers` (lower-case names) that may be forwarded to the caller."""
    named = _connection_options(headers)
    return [(n, v) for n, v in headers if n in FOR_CALLER and n not in named]


def length_of_answer(headers: Headers) -> Headers:
    """Return the Content-Length of an answer as a list of one field, [] if it cannot be relied on.

    It is not forwarded as it is: it announces the body's length to the hop that frames the body
    again (SPEC section 5). It is left out for event streams and NDJSON, which may be changed on
    their way, and for an answer without Content-Type, which may be such a stream.
    """
    named = dict(headers)
    length, content_type = named.get(b"content-length"), named.get(b"content-type")
    if length is None or content_type is None or content_type.lower().startswith(_STREAM_TYPES):
        return []
    repeated = sum(name == b"content-length" for name, _ in headers) > 1
    if repeated or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        return []
    return [(b"content-length", length)]


def _connection_options(headers: Headers) -> set[bytes]:
    """Return the field names listed in `Connection`: those fields are for one hop only."""
    return {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
