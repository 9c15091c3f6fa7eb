"""The HTTP surface that is forwarded: an allow-list of methods, paths and headers.

Relay and node both check requests against this list: the relay so that nothing else enters the
tunnel, the node so that a hostile relay can reach nothing else on the box (SPEC section 7). Paths
are the upstream's; the relay maps its own `/api/v1/...` to `/v1/...` before it looks here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Set
from functools import lru_cache
from typing import Final

import msgspec
from msgspec.structs import force_setattr

from .errors import RequestError
from .status import MAX_API_CHARS

MAX_PATH_CHARS: Final = 256  # of a route; the longest of ours has 35
ANY_PART: Final = "{id}"
"""The part of a route's path that stands for any one part, such as an identifier."""
ANY_REST: Final = "*"
"""The last part of a route's path that stands for one or more parts."""
_PATH_CHARS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:@"
)


NEVER_FORWARDED: Final = (
    *("/api/pull", "/api/push", "/api/delete", "/api/copy", "/api/create", "/api/blobs/x"),
    *("/api/v1/models/download", "/api/v1/models/load", "/api/v1/models/unload"),
    "/api/v1/models/download/status/x",
    *("/models/load", "/models/unload", "/api/me", "/api/signout"),
)
"""Paths by which servers change what they have on the disk or in memory. Nodes use some of them for
admins (docs/models.md); no table of routes may have one, so no caller gets there."""


class Task(enum.Enum):
    """What the model server does for a request of a route."""

    GENERATE = enum.auto()  # it writes an answer in tokens, and takes a slot for that
    READ = enum.auto()  # it reads texts: embeddings, reranking; also speech from text
    TRANSCRIBE = enum.auto()  # it reads a recording
    COUNT = enum.auto()  # it counts a prompt's tokens; no model reads them
    DESCRIBE = enum.auto()  # it tells of its models; no model reads the request
    CONVERSE = enum.auto()  # it listens and speaks over a WebSocket, as long as that is open


class Route(msgspec.Struct, frozen=True):
    """One forwarded endpoint. `api`: the dialect it belongs to, by the name that STATUS uses.
    `operation`: what OpenTelemetry's conventions call it (`gen_ai.operation.name`), if they do.
    `names_model`: its body must name a model; else it may, and so may the query.
    `stored`: it is about an answer that one node keeps, whose id is the `{id}` of its path."""

    method: str
    path: str
    api: str
    task: Task
    operation: str = ""
    names_model: bool = True
    stored: bool = False
    generates: bool = False
    """Whether it takes a slot and answers in tokens; follows from its task, as the next one."""
    is_websocket: bool = False
    """Whether it is the handshake of a WebSocket."""

    def __post_init__(self) -> None:
        force_setattr(self, "generates", self.task is Task.GENERATE)
        force_setattr(self, "is_websocket", self.task is Task.CONVERSE)

    @property
    def has_body(self) -> bool:
        """Whether its request has a body that is read."""
        return self.method not in ("GET", "DELETE", "HEAD")


class RouteTable:
    """An allow-list of routes. It is never changed; `extended` makes a longer one."""

    __slots__ = ("_by_key", "_patterns", "_plain")

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises `RequestError` on a route that is not well-formed or is there twice."""
        self._by_key: dict[tuple[str, str], Route] = {}
        for route in routes:
            _check(route)
            key = route.method, route.path
            if key in self._by_key:
                raise RequestError(f"The route {route.method} {route.path} is there already.")
            self._by_key[key] = route
        self._patterns = [route for route in self if is_pattern(route.path)]
        self._plain = {k: r for k, r in self._by_key.items() if not is_pattern(r.path)}

    def __iter__(self) -> Iterator[Route]:
        return iter(self._by_key.values())

    def find(self, method: str, path: str) -> Route | None:
        """The route for `method` and `path` (no query), or None: then it is refused."""
        route = self._plain.get((method, path))
        if route is not None:
            return route
        return next(
            (one for one in self._patterns if one.method == method and matches(one.path, path)),
            None,
        )

    def methods(self, path: str) -> list[str]:
        """The methods of the routes with this path, sorted."""
        return sorted({route.method for route in self if matches(route.path, path)})

    def extended(self, routes: Iterable[Route]) -> RouteTable:
        """These routes and `routes`. Raises `RequestError` as the constructor does."""
        return RouteTable((*self, *routes))


def extra_route(text: str) -> Route:
    """The route that a node's owner writes as `POST /custom/*`. Raises `RequestError`."""
    method, _, path = text.partition(" ")
    route = Route(method, path.strip(), EXTRA_API, Task.READ, names_model=False)
    _check(route)
    return route


def is_pattern(path: str) -> bool:
    """Whether the path of a route stands for more than itself."""
    return ANY_PART in path or path.endswith("/" + ANY_REST)


def matches(pattern: str, path: str) -> bool:
    """Whether the path of a route, `pattern`, stands for `path`. What a pattern leaves open may
    have the plain characters of a path only: nothing escaped, and no part of dots."""
    if not is_pattern(pattern):
        return pattern == path
    if len(path) > MAX_PATH_CHARS or not _PATH_CHARS.issuperset(path):
        return False
    wanted, parts = pattern.split("/"), path.split("/")
    if any(part in ("", ".", "..") for part in parts[1:]):
        return False
    if wanted[-1] == ANY_REST:
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(
        want in (ANY_PART, part) for want, part in zip(wanted, parts, strict=True)
    )


def _check(route: Route) -> None:
    """Raise `RequestError` unless `route` names one endpoint, or a well-formed pattern."""
    path, where = route.path, f"The route {route.method} {route.path}"
    if not (route.method.isascii() and route.method.isalpha() and route.method.isupper()):
        raise RequestError(f"{where}: the method is not a word of capital letters.")
    parts = path[1:].split("/")
    plain = [part for part in parts if part != ANY_PART]
    if plain and plain[-1] == ANY_REST and parts[-1] == ANY_REST:
        plain.pop()
    if (
        not path.startswith("/")
        or len(path) > MAX_PATH_CHARS
        or not all(_PATH_CHARS.issuperset(part) for part in plain)
    ):
        raise RequestError(f"{where}: the path is not a plain absolute path.")
    if not plain or any(part in ("", ".", "..") for part in plain):
        raise RequestError(f"{where}: the path has an empty part or a part of dots.")
    if any(matches(path, never) for never in NEVER_FORWARDED):
        raise RequestError(f"{where}: by it callers could change which models a server has.")
    if not 0 < len(route.api) <= MAX_API_CHARS:
        raise RequestError(f"{where}: its api needs a name of 1 to {MAX_API_CHARS} characters.")


OPENAI_API: Final = "openai"
ANTHROPIC_API: Final = "anthropic"
OLLAMA_API: Final = "ollama"
LLAMA_CPP_API: Final = "llama.cpp"
LM_STUDIO_API: Final = "lm-studio"
EXTRA_API: Final = "extra"
"""Of routes that a node's owner adds for one server; they are in no table but the node's own."""

OPENAI_ROUTES: Final = (
    Route("POST", "/v1/chat/completions", OPENAI_API, Task.GENERATE, "chat"),
    Route("POST", "/v1/completions", OPENAI_API, Task.GENERATE, "text_completion"),
    Route("POST", "/v1/responses", OPENAI_API, Task.GENERATE, "chat"),
    Route("POST", "/v1/embeddings", OPENAI_API, Task.READ, "embeddings"),
    Route("POST", "/v1/moderations", OPENAI_API, Task.READ),
    Route("POST", "/v1/images/generations", OPENAI_API, Task.READ),
    Route("POST", "/v1/images/edits", OPENAI_API, Task.READ),
    Route("POST", "/v1/images/variations", OPENAI_API, Task.READ),
    Route("POST", "/v1/audio/speech", OPENAI_API, Task.READ),
    Route("POST", "/v1/audio/transcriptions", OPENAI_API, Task.TRANSCRIBE),
    Route("POST", "/v1/audio/translations", OPENAI_API, Task.TRANSCRIBE),
    Route("GET", "/v1/realtime", OPENAI_API, Task.CONVERSE),
    Route("POST", "/v1/chat/completions/input_tokens", OPENAI_API, Task.COUNT),
    Route("POST", "/v1/responses/input_tokens", OPENAI_API, Task.COUNT),
    # an answer that the server keeps
    Route("GET", "/v1/responses/{id}", OPENAI_API, Task.DESCRIBE, stored=True),
    Route("DELETE", "/v1/responses/{id}", OPENAI_API, Task.DESCRIBE, stored=True),
    Route("GET", "/v1/responses/{id}/input_items", OPENAI_API, Task.DESCRIBE, stored=True),
    Route("POST", "/v1/responses/{id}/cancel", OPENAI_API, Task.DESCRIBE, stored=True),
    # what vLLM, llama-server, Jina, Cohere and others have beside OpenAI's
    Route("POST", "/v1/rerank", OPENAI_API, Task.READ),
    Route("POST", "/v2/rerank", OPENAI_API, Task.READ),
    Route("POST", "/rerank", OPENAI_API, Task.READ),
    Route("POST", "/v1/reranking", OPENAI_API, Task.READ),
    Route("POST", "/reranking", OPENAI_API, Task.READ),
    Route("POST", "/v1/score", OPENAI_API, Task.READ),
    Route("POST", "/score", OPENAI_API, Task.READ),
    Route("POST", "/pooling", OPENAI_API, Task.READ),
    Route("POST", "/classify", OPENAI_API, Task.READ),
    Route("POST", "/tokenize", OPENAI_API, Task.COUNT, names_model=False),
    Route("POST", "/detokenize", OPENAI_API, Task.COUNT, names_model=False),
)
ANTHROPIC_ROUTES: Final = (
    Route("POST", "/v1/messages", ANTHROPIC_API, Task.GENERATE, "chat"),
    Route("POST", "/v1/messages/count_tokens", ANTHROPIC_API, Task.COUNT),
)
OLLAMA_ROUTES: Final = (
    Route("POST", "/api/chat", OLLAMA_API, Task.GENERATE, "chat"),
    Route("POST", "/api/generate", OLLAMA_API, Task.GENERATE, "text_completion"),
    Route("POST", "/api/embed", OLLAMA_API, Task.READ, "embeddings"),
    Route("POST", "/api/embeddings", OLLAMA_API, Task.READ, "embeddings"),
    Route("POST", "/api/show", OLLAMA_API, Task.DESCRIBE),
    Route("GET", "/api/tags", OLLAMA_API, Task.DESCRIBE),
    Route("GET", "/api/ps", OLLAMA_API, Task.DESCRIBE),
)
LLAMA_CPP_ROUTES: Final = (
    Route(
        *("POST", "/completion", LLAMA_CPP_API, Task.GENERATE, "text_completion"),
        names_model=False,
    ),
    Route(
        *("POST", "/infill", LLAMA_CPP_API, Task.GENERATE, "text_completion"),
        names_model=False,
    ),
    Route("POST", "/apply-template", LLAMA_CPP_API, Task.COUNT, names_model=False),
    Route("GET", "/props", LLAMA_CPP_API, Task.DESCRIBE, names_model=False),
)
LM_STUDIO_ROUTES: Final = (
    Route("POST", "/api/v1/chat", LM_STUDIO_API, Task.GENERATE, "chat"),
    Route("POST", "/api/v0/chat/completions", LM_STUDIO_API, Task.GENERATE, "chat"),
    Route("POST", "/api/v0/completions", LM_STUDIO_API, Task.GENERATE, "text_completion"),
    Route("POST", "/api/v0/embeddings", LM_STUDIO_API, Task.READ, "embeddings"),
)
ROUTES: Final = RouteTable(
    (
        *OPENAI_ROUTES,
        *ANTHROPIC_ROUTES,
        *OLLAMA_ROUTES,
        *LLAMA_CPP_ROUTES,
        *LM_STUDIO_ROUTES,
    )
)
"""The routes of SPEC section 7. Both ends begin with these; each adds only what is installed on
its own machine (docs/extending.md), so that neither can widen the other's list."""

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
# a disconnect no longer frees the slot; the fields that identify the caller; and a WebSocket's
# handshake, which each hop makes itself.
NOT_FOR_UPSTREAM: Final = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"cookie",
    b"origin",
    b"referer",
    b"x-conversation-id",
    b"forwarded",
    b"x-real-ip",
}
_NOT_FOR_UPSTREAM_PREFIXES: Final = (b"x-forwarded-", b"x-wai-", b"sec-websocket-")
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
NO_OPTIONS: Final = frozenset[bytes]()
_STREAM_TYPES: Final = (b"text/event-stream", b"application/x-ndjson")

Headers = list[tuple[bytes, bytes]]


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


def headers_for_upstream(headers: Headers, *, without: Set[bytes] = NO_OPTIONS) -> Headers:
    """Return those of `headers` (lower-case names) that may be forwarded to an upstream, and are
    not named in `without`."""
    passed = [field for field in headers if _is_for_upstream(field[0]) and field[0] not in without]
    named = _connection_options(headers)
    return [field for field in passed if field[0] not in named] if named else passed


@lru_cache(maxsize=512)  # of names, which repeat; never of values
def _is_for_upstream(name: bytes) -> bool:
    return name not in NOT_FOR_UPSTREAM and not name.startswith(_NOT_FOR_UPSTREAM_PREFIXES)


def headers_for_caller(headers: Headers) -> Headers:
    """Return those of `headers` (lower-case names) that may be forwarded to the caller."""
    passed = [field for field in headers if field[0] in FOR_CALLER]
    named = _connection_options(headers)
    return [field for field in passed if field[0] not in named] if named else passed


def length_of_answer(headers: Headers) -> Headers:
    """Return the Content-Length of an answer as a list of one field, [] if it cannot be relied on.

    It is not forwarded as it is: it announces the body's length to the hop that frames the body
    again (SPEC section 5). It is left out for event streams and NDJSON, which may be changed on
    their way, and for an answer without Content-Type, which may be such a stream.
    """
    fields = dict(headers)
    length, content_type = fields.get(b"content-length"), fields.get(b"content-type")
    if length is None or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        return []
    if content_type is None or content_type.lower().startswith(_STREAM_TYPES):
        return []
    if len(fields) < len(headers) and [name for name, _ in headers].count(b"content-length") > 1:
        return []
    return [(b"content-length", length)]


def _connection_options(headers: Headers) -> Set[bytes]:
    """Return the field names listed in `Connection`: those fields are for one hop only."""
    listed = [value for name, value in headers if name == b"connection"]
    if not listed:  # as in nearly every request
        return NO_OPTIONS
    return {token.strip().lower() for value in listed for token in value.split(b",")}
