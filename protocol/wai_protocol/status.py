"""STATUS: what a node can serve now (SPEC section 6).

A node sends a whole new `NodeStatus` whenever something in it changed; the relay keeps the last
one. On the wire it is a msgpack map with the field names below. Unknown keys are ignored, so that a
newer node can send more; a known key of the wrong type is refused. The memory that a relay needs
for a STATUS is bounded by the size of its frame, except for `detail`, which may hold any values and
has a bound of its own.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .errors import RemoteProtocolError
from .limits import MAX_DETAIL_BYTES
from .weight import fits

MAX_MODELS: Final = 512  # a llama-server in router mode lists every GGUF file of a folder
MAX_NAME_CHARS: Final = 256  # model ids look like `publisher/repo-GGUF:Q4_K_M`
MAX_APIS: Final = 8  # there are three
MAX_API_CHARS: Final = 32  # "anthropic" is the longest
MAX_CAPABILITIES: Final = 16  # there are seven
MAX_CAPABILITY_CHARS: Final = 32  # "continue_final_message" is the longest
MAX_ALIASES: Final = 16  # of one model: Ollama's have one
MAX_ROUTES: Final = 256  # of one upstream: there are 40, and those that its owner adds
MAX_ROUTE_CHARS: Final = 256
LOAD_BASE_S: Final = 1.0  # a guess: the start of a process
LOAD_BYTES_PER_S: Final = 500 << 20  # a guess: from an SSD, or half as fast as its cache
MAX_COUNT: Final = 1 << 40  # more than any real count of tokens or slots; sums still fit into int64

FAILED_MODELS: Final = "failed_models"
"""In `detail`: a map of the deployed models that failed to the reasons."""

PER_TOKEN_TIMINGS: Final = "per_token_timings"  # noqa: S105 - no password
"""Capability: `timings_per_token` puts llama.cpp's token counts into each chunk of a stream."""
CONTINUE_FINAL_MESSAGE: Final = "continue_final_message"
"""Capability: `continue_final_message` continues the last message; without it a new turn begins."""
COMPLETION: Final = "completion"
"""Capability: the model writes text. This word and the next ones are Ollama's."""
EMBEDDING: Final = "embedding"
VISION: Final = "vision"
TOOLS: Final = "tools"
THINKING: Final = "thinking"
OLLAMA_WORDS: Final = frozenset({COMPLETION, EMBEDDING, VISION, TOOLS, THINKING})
"""What a model can do, in the words of Ollama's `/api/show`."""

# For older nodes, which do not tell capabilities, but put the kind before the `@` of `upstream`.
# Nothing else may read the kind out of that name.
_CAPABILITIES_OF_OLD_KINDS: Final = {
    "llama-server": (PER_TOKEN_TIMINGS, CONTINUE_FINAL_MESSAGE),
    "vllm": (CONTINUE_FINAL_MESSAGE,),
}


class ModelStatus(msgspec.Struct, frozen=True):
    """One model as served by one upstream of a node.

    `context_tokens` is per slot. `slots_total` is None if the upstream does not report it.
    `apis`: the dialects that the upstream speaks, by the names that routes use. `routes`: the paths
    of the routes that it has, as they stand in the table of routes; None if that is not known: then
    it may have all those of its dialects. `aliases`: other names by which it can be asked for.
    `loaded`: whether it is in memory now; None if that is not told. `load_ms`: how long it takes to
    load it, where that is known. `largest_context_tokens`: what
    `context_tokens` could be if a request asks for it.
    `prefill_tps` and `decode_tps` are measured in tokens per second, None before the first
    measurement.
    """

    id: str
    upstream: str
    apis: tuple[str, ...] = ("openai",)
    ready: bool = True
    context_tokens: int | None = None
    slots_total: int | None = None
    slots_busy: int = 0
    queued: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    capabilities: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    size_bytes: int | None = None
    largest_context_tokens: int | None = None
    routes: frozenset[str] | None = None
    load_ms: int | None = None

    @property
    def load_s(self) -> float:
        """How long a request is expected to wait for the model to be loaded, in seconds."""
        if self.loaded is not False:
            return 0.0
        if self.load_ms is None:
            return guessed_load_s(self.size_bytes or 0)
        return self.load_ms / 1000.0

    def has_route(self, api: str, path: str) -> bool:
        """Whether the upstream has the route of the dialect `api` with this path, as far as is
        known."""
        return api in self.apis and (self.routes is None or path in self.routes)


def guessed_load_s(size_bytes: int) -> float:
    """How long it may take to load a model of this size that was never seen to load."""
    return LOAD_BASE_S + size_bytes / LOAD_BYTES_PER_S


# `routes` are told once for each upstream, these only where there is something to tell.
_OPTIONAL: Final = ("aliases", "loaded", "size_bytes", "largest_context_tokens", "load_ms")
_OF_A_MODEL: Final = tuple(
    name for name in ModelStatus.__struct_fields__ if name not in ("routes", *_OPTIONAL)
)


class NodeStatus(msgspec.Struct, frozen=True):
    """What a node can serve at one moment. `detail` is for people: hardware, OS, upstreams."""

    models: tuple[ModelStatus, ...] = ()
    draining: bool = False
    version: str = ""
    detail: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def models_left_out(self) -> int:
        """How many of the node's models are missing in `models`, because STATUS has no room."""
        count = self.detail.get("models_left_out")
        return count if type(count) is int and 0 < count <= MAX_COUNT else 0

    def to_wire(self) -> dict[str, Any]:
        """Return the map that STATUS carries."""
        told = {m.upstream: m.routes for m in self.models if m.routes is not None}
        return {
            "models": [_model_to_wire(model) for model in self.models],
            "routes": {upstream: sorted(routes) for upstream, routes in told.items()},
            "draining": self.draining,
            "version": self.version,
            "detail": self.detail,
        }

    @classmethod
    def from_wire(cls, value: object) -> NodeStatus:
        """Check a peer's map. Raises `RemoteProtocolError` for a wrong type or excess."""
        if not isinstance(value, dict):
            raise RemoteProtocolError("STATUS is not a map")
        models = value.get("models", [])
        if not isinstance(models, list) or len(models) > MAX_MODELS:
            raise RemoteProtocolError(f"STATUS.models is not a list of at most {MAX_MODELS}")
        routes = _routes(value.get("routes", {}))
        detail = value.get("detail", {})
        if not isinstance(detail, dict):
            raise RemoteProtocolError("STATUS.detail is not a map")
        if not fits(detail, MAX_DETAIL_BYTES):
            detail = {}  # no request depends on it, so it is no reason to end the session
        return cls(
            models=tuple(_model_from_wire(model, routes) for model in models),
            draining=value.get("draining", False) is True,
            version=_text(value, "version"),
            detail=detail,
        )


def _model_to_wire(model: ModelStatus) -> dict[str, Any]:
    told = {name: getattr(model, name) for name in _OF_A_MODEL}
    for name in _OPTIONAL:
        if (value := getattr(model, name)) not in (None, ()):
            told[name] = value
    return told


def _routes(value: object) -> dict[str, frozenset[str]]:
    """The routes of each upstream. All models of one share a set."""
    if not isinstance(value, dict) or len(value) > MAX_MODELS:
        raise RemoteProtocolError(f"STATUS.routes is not a map of at most {MAX_MODELS} upstreams")
    return {
        str(upstream): frozenset(_words(value, upstream, MAX_ROUTES, MAX_ROUTE_CHARS) or ())
        for upstream in value
    }


def _model_from_wire(value: object, routes: dict[str, frozenset[str]]) -> ModelStatus:
    if not isinstance(value, dict):
        raise RemoteProtocolError("a model in STATUS is not a map")
    model_id = _text(value, "id")
    if not model_id:
        raise RemoteProtocolError("a model in STATUS has no id")
    upstream = _text(value, "upstream")
    apis = _words(value, "apis", MAX_APIS, MAX_API_CHARS)
    told = _words(value, "capabilities", MAX_CAPABILITIES, MAX_CAPABILITY_CHARS)
    if told is None:
        told = _CAPABILITIES_OF_OLD_KINDS.get(upstream.partition("@")[0], ())
    return ModelStatus(
        id=model_id,
        upstream=upstream,
        apis=("openai",) if apis is None else apis,
        capabilities=told,
        ready=value.get("ready", True) is True,
        context_tokens=_count(value, "context_tokens"),
        slots_total=_count(value, "slots_total"),
        slots_busy=_count(value, "slots_busy") or 0,
        queued=_count(value, "queued") or 0,
        prefill_tps=_rate(value, "prefill_tps"),
        decode_tps=_rate(value, "decode_tps"),
        aliases=_words(value, "aliases", MAX_ALIASES, MAX_NAME_CHARS) or (),
        loaded=loaded if isinstance(loaded := value.get("loaded"), bool) else None,
        size_bytes=_count(value, "size_bytes"),
        largest_context_tokens=_count(value, "largest_context_tokens"),
        routes=routes.get(upstream),
        load_ms=_count(value, "load_ms"),
    )


def _text(value: dict[Any, Any], key: str) -> str:
    text = value.get(key, "")
    if not isinstance(text, str) or len(text) > MAX_NAME_CHARS:
        raise RemoteProtocolError(f"{key} in STATUS is not a short string")
    return text


def _words(value: dict[Any, Any], key: str, most: int, max_chars: int) -> tuple[str, ...] | None:
    """The first `most` of a list of words; None where the key is missing."""
    words = value.get(key)
    if words is None and key not in value:
        return None
    if not isinstance(words, list | tuple) or not all(
        isinstance(word, str) and len(word) <= max_chars for word in words
    ):
        raise RemoteProtocolError(f"{key} in STATUS is not a list of short strings")
    return tuple(words[:most])


def _count(value: dict[Any, Any], key: str) -> int | None:
    count = value.get(key)
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_COUNT:
        raise RemoteProtocolError(f"{key} in STATUS is not a count")
    return count


def _rate(value: dict[Any, Any], key: str) -> float | None:
    rate = value.get(key)
    if rate is None:
        return None
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= MAX_COUNT:
        raise RemoteProtocolError(f"{key} in STATUS is not a rate")
    return float(rate)
