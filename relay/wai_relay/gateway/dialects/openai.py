"""OpenAI's dialect: chat completions, completions, responses, embeddings and the rest of /v1. Pure.

With llama.cpp's `timings`, which its answers tell beside the usage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import unquote

import msgspec

from wai_protocol.errors import Fault, RequestError
from wai_protocol.surface import OPENAI_API, OPENAI_ROUTES, Route, is_pattern
from wai_relay.contracts.records import TokenCounts
from wai_relay.gateway.catalog import Catalog, CatalogModel
from wai_relay.http.problems import openai_error

from .dialect import EVENT_STREAM, NDJSON, Dialect, Fields, Signal, SignalOf, is_error
from .usage import BodyReader, EventReader, UsageReader, count, decode, last_object

MODELS_PATH: Final = "/v1/models"
CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
RESPONSES_PATH: Final = "/v1/responses"
# Only these two know `stream_options`; /v1/responses always says its usage.
STREAM_OPTIONS_PATHS: Final = frozenset({CHAT_PATH, COMPLETIONS_PATH})
# These take a list of prompts in place of one; the last two are llama.cpp's and LM Studio's.
_PROMPT_LIST_PATHS: Final = frozenset({COMPLETIONS_PATH, "/completion", "/api/v0/completions"})
# A list of prompts with more commas than this is not decoded; each comma then counts as a prompt.
# Decoding it costs 0.1 µs for each, which no stream should wait behind.
MAX_LISTED: Final = 10_000
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
# What a delta of a chat completion may carry beside its role, at all servers that we know.
_CHAT_CONTENT: Final = (
    *("content", "reasoning_content", "reasoning", "thinking", "tool_calls", "function_call"),
    *("audio", "refusal", "reasoning_text", "reasoning_details", "images"),
)
# ... and an event of a stream of speech, of what was heard, or of pictures.
_MEDIA_CONTENT: Final = ("delta", "audio", "text", "b64_json")
_EMBEDDINGS: Final = ("data", "embedding")  # llama.cpp answers some with a list of vectors
_RANKS: Final = ("results", "data", "score")  # TEI's answer is a list of scores
_ANSWER_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    CHAT_PATH: ("choices",),
    COMPLETIONS_PATH: ("choices",),
    RESPONSES_PATH: ("output", "object", "id"),
    "/v1/embeddings": _EMBEDDINGS,
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"), _RANKS),
}

# Inside a JSON string its quotes would be escaped, so no answer can pretend to be one.
_RESPONSE_ID: Final = re.compile(rb'"id": ?"(resp_[A-Za-z0-9_.-]{1,120})"')
_TIMINGS_KEY: Final = b',"timings":{'
_TIMINGS: Final = re.compile(rb',"timings":\{[^{}]*\}')
_FINISHED: Final = b'"finish_reason":"'


class OpenAiDialect(Dialect):
    """See `Dialect`. Many servers speak something close to it: derive from it for those."""

    name = OPENAI_API
    routes: ClassVar[tuple[Route, ...]] = OPENAI_ROUTES
    error_prefixes: ClassVar[tuple[str, ...]] = ("/v1/", MODELS_PATH)
    aliases: ClassVar[Mapping[str, str]] = {
        "/api/v1/": "/v1/",  # as OpenRouter has it
        "/openai/v1/": "/v1/",  # Azure, and the next one
        "/openai/deployments/{id}/": "/v1/",
        # for clients that were given a base URL without `/v1`
        "/models": MODELS_PATH,
        "/models/": MODELS_PATH + "/",
        "/responses/": "/v1/responses/",
        **{
            route.path.removeprefix("/v1"): route.path
            for route in OPENAI_ROUTES
            if route.path.startswith("/v1/")
            and not is_pattern(route.path)
            and all(other.path != route.path.removeprefix("/v1") for other in OPENAI_ROUTES)
        },
    }

    def error_body(self, fault: Fault, message: str) -> bytes:
        """`{"error": {"message", "type", "code", "param"}}`."""
        return openai_error(fault, message)

    def error_event(self, fault: Fault, message: str) -> bytes:
        """What the SDKs raise in the middle of a stream. No `[DONE]` follows."""
        return b"data: " + openai_error(fault, message).strip() + b"\n\n"

    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """See `Dialect`."""
        if not content_type.startswith(EVENT_STREAM):
            body = ResponsesBody if route.path == RESPONSES_PATH else OpenAiBody
            return body(lines=content_type.startswith(NDJSON))
        events = _EVENTS.get(route.path, OpenAiEvents)
        return events(strip_usage=strip_usage, strip_timings=strip_timings)

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        return _SIGNALS.get(route.path, media_signal)

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """See `Dialect`."""
        return _ANSWER_FIELDS.get(route.path, ())

    def takes_stream_options(self, route: Route) -> bool:
        """See `Dialect`."""
        return route.path in STREAM_OPTIONS_PATHS

    def continues(self, route: Route) -> bool:
        """See `Dialect`."""
        return route.path == CHAT_PATH

    def prompts_asked(self, route: Route, fields: Fields) -> int:
        """See `Dialect`. A completion's `prompt` may be a list of prompts."""
        raw = fields.get("prompt") if route.path in _PROMPT_LIST_PATHS else None
        return 1 if raw is None else _prompts_in(bytes(raw))

    def is_list(self, path: str) -> bool:
        """See `Dialect`. Anthropic's SDK asks for the same list, and finds its fields in it."""
        return path == MODELS_PATH or path.startswith(MODELS_PATH + "/")

    def list_answer(self, path: str, catalog: Catalog) -> object:
        """See `Dialect`."""
        if path.rstrip("/") == MODELS_PATH:
            return _model_list(catalog.models(), catalog.created)
        name = unquote(path[len(MODELS_PATH) + 1 :])
        found = catalog.find(name)
        if found is None:
            raise RequestError(f"There is no model `{name[:256]}`.", Fault.MODEL_NOT_FOUND)
        return _model_entry(found, catalog.created)


OPENAI: Final = OpenAiDialect()


class OpenAiEvents(EventReader):
    """A streamed answer. `strip_usage`: the relay asked for the usage chunk, the caller did not;
    `strip_timings`: it asked llama.cpp for `timings_per_token`, and takes them out again. They are
    read only when somebody asks for `counts`."""

    piece = b'"delta"'

    def __init__(self, *, strip_usage: bool = False, strip_timings: bool = False) -> None:
        super().__init__()
        self._strip_usage = strip_usage
        self._strip_timings = strip_timings
        self._timings = b""
        # Whether the last that came was no end: nothing else, or one token's event with timings.
        self._plain = True
        self._finish = b""  # the event with the finish reason, until the usage chunk has come
        self._usage_came = False
        self._last_timings = b""  # from the usage chunk that the relay asked for

    def feed(self, data: bytes) -> bytes:
        """See `EventReader`."""
        if not self._strip_timings:
            out = super().feed(data)
            return out if self._plain else self._finishing(out)
        # Whole events only: what may be cut in two takes the longer way.
        if self._held or not data.endswith(b"\n\n"):
            return self._finishing(super().feed(data))
        data = self.outgoing(data)
        plain = self._plain
        out = super().feed(data)
        return out if plain else self._finishing(out)

    def finish(self) -> bytes:
        """See `UsageReader`."""
        return self.held_back() + super().finish()

    def held_back(self) -> bytes:
        """See `UsageReader`."""
        held, self._finish = self._finish, b""
        return held

    def _finishing(self, events: bytes) -> bytes:
        """llama.cpp tells its last timings in the usage chunk, if that was asked for, else in the
        event with the finish reason: hold that until the next read, and give it what it would have
        had."""
        held, self._finish = self._finish, b""
        events = held + events
        at = events.rfind(_FINISHED) if self._strip_usage else -1
        if at < 0:
            return events
        if self._usage_came:
            end = events.find(b"}\n\n", at)
            if end < 0 or not self._last_timings:
                return events
            timings, self._last_timings = self._last_timings, b""
            return events[:end] + timings + events[end:]
        if held or not (self._timings or not self._plain) or b"[DONE]" in events[at:]:
            return events
        start = events.rfind(b"\n\n", 0, at) + 2
        start = 0 if start == 1 else start
        self._finish = events[start:]
        return events[:start]

    def _keep(self, event: bytes) -> bool:
        kept = super()._keep(event)
        if not kept:
            found = _TIMINGS.search(event)
            self._usage_came, self._last_timings = True, found[0] if found else b""
        return kept

    def outgoing(self, event: bytes) -> bytes:
        """See `EventReader`. Timings beside a usage belong to it."""
        self._plain = False
        if not self._strip_timings or b'"usage"' in event:
            return event
        at = event.find(_TIMINGS_KEY)  # faster than to search by expression
        found = _TIMINGS.match(event, at) if at >= 0 else None
        if found is None:
            return event
        end = found.end()
        if event.find(_TIMINGS_KEY, end) < 0:  # the everyday case: one token, one slice
            self._timings = found[0]
            self._plain = len(event) - end == len(b"}\n\n")
            return event[:at] + event[end:]
        self._timings = _TIMINGS.findall(event)[-1]
        return _TIMINGS.sub(b"", event)

    def observe(self, payload: Any) -> bool:
        """See `EventReader`."""
        response = payload.get("response")  # /v1/responses wraps it: `response.completed`
        holder = response if isinstance(response, dict) else payload
        found = counts_of(holder.get("usage"), holder.get("timings"))
        injected = payload.get("choices") == [] and isinstance(payload.get("usage"), dict)
        if found is not None and self._strip_timings and not holder.get("usage"):
            return True  # where the answer stands; `outgoing` keeps it
        self.said = found or self.said
        return not (self._strip_usage and injected)

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """See `UsageReader`. The first delta of a chat names the role and is no token."""
        if self.said is None and self._timings:
            _, _, timings = self._timings.partition(b":")
            if (so_far := counts_of(None, decode(timings))) is not None:
                so_far.exact = False  # the upstream may be a token or two ahead of what came
                return so_far
        found = super().counts(estimated_prompt)
        if self.said is None and self.piece == b'"delta"':
            found.completion = max(self.chunks - 1, 0)
        return found


class OpenAiTextEvents(OpenAiEvents):
    """A streamed answer of the older /v1/completions."""

    piece = b'"text"'


class ResponsesEvents(OpenAiEvents):
    """A streamed answer of /v1/responses; its first event names it."""

    def feed(self, data: bytes) -> bytes:
        """See `EventReader`."""
        if not self.answer_id and (found := _RESPONSE_ID.search(data)) is not None:
            self.answer_id = found[1].decode()
        return super().feed(data)


class OpenAiBody(BodyReader):
    """A whole answer as one document."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        return counts_of(last_object(text, b"usage"), last_object(text, b"timings"))


class ResponsesBody(OpenAiBody):
    """An answer of /v1/responses."""

    def feed(self, data: bytes) -> bytes:
        """See `BodyReader`."""
        if not self.answer_id and (found := _RESPONSE_ID.search(data)) is not None:
            self.answer_id = found[1].decode()
        return super().feed(data)


_EVENTS: Final[dict[str, type[OpenAiEvents]]] = {
    COMPLETIONS_PATH: OpenAiTextEvents,
    RESPONSES_PATH: ResponsesEvents,
}


def counts_of(usage: object, timings: object) -> TokenCounts | None:
    """Exact counts from a `usage` object, or from llama.cpp's `timings` where there is none. One of
    nothing but zeros or nulls tells nothing: no prompt has no token."""
    if isinstance(usage, dict) and usage:
        details = (
            usage.get("prompt_tokens_details")
            or usage.get("input_tokens_details")
            or usage.get("input_token_details")  # of Realtime
        )
        told = TokenCounts(
            prompt=count(usage.get("prompt_tokens", usage.get("input_tokens"))),
            cached=count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
            completion=count(usage.get("completion_tokens", usage.get("output_tokens"))),
            exact=True,
        )
        if told.prompt or told.completion:
            return told
    if isinstance(timings, dict) and "predicted_n" in timings:
        cached = count(timings.get("cache_n"))
        return TokenCounts(
            prompt=cached + count(timings.get("prompt_n")),
            cached=cached,
            completion=count(timings.get("predicted_n")),
            exact=True,
        )
    return None


def chat_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A chunk of `/v1/chat/completions`."""
    if is_error(name, payload):
        return Signal.ERROR
    signal = Signal.PREAMBLE
    for choice in _dicts(payload.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(delta.get(part) for part in _CHAT_CONTENT):
            return Signal.CONTENT
        signal = _finished(choice, signal)
    return signal


def text_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A chunk of the older `/v1/completions`."""
    if is_error(name, payload):
        return Signal.ERROR
    signal = Signal.PREAMBLE
    for choice in _dicts(payload.get("choices")):
        if choice.get("text"):
            return Signal.CONTENT
        signal = _finished(choice, signal)
    return signal


def _finished(choice: dict[str, Any], so_far: Signal) -> Signal:
    """What a choice's finish reason says of an answer without content."""
    return Signal.END if choice.get("finish_reason") else so_far


def responses_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of `/v1/responses`."""
    kind = str(payload.get("type") or name)
    if kind in ("error", "response.failed") or is_error(name, payload):
        return Signal.ERROR
    if kind in ("response.completed", "response.incomplete"):
        return Signal.END
    item = payload.get("item")
    if isinstance(item, dict) and item.get("name"):  # a tool call begins with its name
        return Signal.CONTENT
    said = payload.get("delta") if kind.endswith(".delta") else payload.get("partial_image_b64")
    return Signal.CONTENT if said else Signal.PREAMBLE


def media_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of a stream of speech, of what was heard (vLLM streams it as a chat), or of
    pictures."""
    if "choices" in payload or is_error(name, payload):
        return chat_signal(name, payload)
    if any(payload.get(part) for part in _MEDIA_CONTENT):
        return Signal.CONTENT
    ended = str(payload.get("type") or name).endswith((".done", ".completed"))
    return Signal.END if ended else Signal.PREAMBLE


_SIGNALS: Final[dict[str, SignalOf]] = {
    CHAT_PATH: chat_signal,
    COMPLETIONS_PATH: text_signal,
    RESPONSES_PATH: responses_signal,
}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _prompts_in(prompt: bytes) -> int:
    """How many prompts a completion's `prompt` holds: it may be a list of them. A list of numbers
    is one prompt, in tokens."""
    if prompt[:1] != b"[":
        return 1
    commas = prompt.count(b",")
    if commas > MAX_LISTED:
        inside = prompt[1:]
        return commas + 1 if any(mark in inside for mark in (b'"', b"[", b"{")) else 1
    try:
        items = _ITEMS.decode(prompt)
    except msgspec.DecodeError:
        return 1
    return max(sum(bytes(item)[:1] in (b'"', b"[", b"{") for item in items), 1)


def _model_entry(model: CatalogModel, created: int) -> dict[str, Any]:
    """An entry of OpenAI's list, with what Anthropic's has besides, and ours under `wai`."""
    context = model.context_tokens
    return {
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "wai",
        "type": "model",
        "display_name": model.id,
        "wai": {
            "ready": model.ready,
            "nodes": model.nodes,
            "context_tokens": model.context_tokens,
            "apis": sorted(model.apis),
            "kind": model.kind,
            "capabilities": sorted(model.capabilities),
            "aliases": sorted(model.aliases),
            "loaded": model.loaded,
        },
        # as vLLM and OpenRouter call it; programs shorten their prompts by it
        **({} if context is None else {"max_model_len": context, "context_length": context}),
    }


def _model_list(models: Iterable[CatalogModel], created: int) -> dict[str, Any]:
    """`GET /v1/models`; `has_more` is what Anthropic's SDK pages by."""
    data = [_model_entry(model, created) for model in models]
    return {"object": "list", "data": data, "has_more": False}
