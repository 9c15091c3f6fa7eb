"""Ollama's dialect: /api/… Pure.

Its streams are NDJSON; the last line carries the counts. A prompt that was found in the cache is
not counted by Ollama at all (`prompt_eval_count` is missing); then the estimate stands in for it.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault
from wai_protocol.status import OLLAMA_WORDS
from wai_protocol.surface import OLLAMA_API, OLLAMA_ROUTES, Route
from wai_relay.contracts.records import TokenCounts
from wai_relay.gateway.catalog import Catalog, CatalogModel
from wai_relay.gateway.raw_json import named_in_any_case, options_of

from .dialect import NDJSON, Dialect, Fields, Signal, SignalOf, error_in, is_stream
from .usage import MAX_EVENT_BYTES, BodyReader, UsageReader, count

TAGS_PATH: Final = "/api/tags"
PS_PATH: Final = "/api/ps"
VERSION_PATH: Final = "/api/version"
VERSION: Final = "0.14.0"
"""The version of Ollama whose API is forwarded and translated. Clients refuse older ones."""
_KEPT_S: Final = 300  # how long Ollama keeps a model in memory, if it is not told otherwise
MAX_OPTION: Final = 1 << 31  # of a number in `options`; only keeps the numbers small

_FIGURE: Final = re.compile(rb'(?<!\\)"(prompt_eval_count|eval_count)"\s*:\s*(\d{1,12})')

_ANSWER_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "/api/chat": ("message", "done"),
    "/api/generate": ("response", "thinking", "done"),
    "/api/embed": ("embeddings", "model"),
}

_DONE: Final = re.compile(rb'"done"\s*:\s*true')
_ERROR: Final = re.compile(rb'(?m)^\s*\{"error"')


class OllamaDialect(Dialect):
    """See `Dialect`. Its streams are lines of JSON, among which its clients skip none."""

    name = OLLAMA_API
    routes = OLLAMA_ROUTES
    error_prefixes = ("/api/",)
    stream_type = NDJSON
    heartbeat = b""
    streams_unasked = True

    def error_body(self, fault: Fault, message: str) -> bytes:
        """`{"error": "…"}`."""
        del fault  # their errors have no code
        return msgspec.json.encode({"error": message})

    def error_event(self, fault: Fault, message: str) -> bytes:
        """The line that their clients raise."""
        return self.error_body(fault, message) + b"\n"

    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """See `Dialect`."""
        del route, strip_usage, strip_timings  # the counts are always told
        return OllamaLines() if is_stream(content_type) else OllamaBody()

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        del route
        return line_signal

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """See `Dialect`. A request without a prompt loads the model, and says nothing else."""
        return _ANSWER_FIELDS.get(route.path, ())

    def output_limits(self, fields: Fields) -> list[int]:
        """See `Dialect`. Ollama takes 0 for "no limit" too."""
        return [limit or -1 for limit in _options(fields, "num_predict")]

    def context_asked(self, fields: Fields) -> int | None:
        """See `Dialect`."""
        return max(_options(fields, "num_ctx"), default=None)

    def is_list(self, path: str) -> bool:
        """See `Dialect`."""
        return path in (TAGS_PATH, PS_PATH, VERSION_PATH)

    def list_answer(self, path: str, catalog: Catalog) -> object:
        """See `Dialect`. `/api/ps` has the models that are loaded."""
        if path == VERSION_PATH:
            return {"version": VERSION}
        models = catalog.models(OLLAMA_API)
        if path == TAGS_PATH:
            return {"models": [_model_entry(model, catalog.created) for model in models]}
        return {
            "models": [
                _model_entry(model, catalog.created)
                | {
                    "expires_at": _stamp(catalog.created + _KEPT_S),
                    "size_vram": model.size_bytes or 0,
                    "context_length": model.context_tokens or 0,
                }
                for model in models
                if model.ready and model.loaded is not False
            ]
        }


OLLAMA: Final = OllamaDialect()


class OllamaLines(UsageReader):
    """A streamed answer. Passes whole lines on, so that a cut stream never ends inside one."""

    def __init__(self) -> None:
        super().__init__()
        self._held = b""
        self._overlong = False
        self._last = b""

    @property
    def ended(self) -> bool:
        """See `UsageReader`."""
        return _DONE.search(self._last) is not None

    @property
    def failed(self) -> bool:
        """See `UsageReader`."""
        return _ERROR.search(self._last) is not None

    def feed(self, data: bytes) -> bytes:
        """See `UsageReader`."""
        if not self._held and data.endswith(b"\n"):
            whole = data
        else:
            held = self._held + data
            cut = held.rfind(b"\n") + 1
            whole, self._held = held[:cut], held[cut:]
            if len(self._held) > MAX_EVENT_BYTES or (self._overlong and not cut):
                whole, self._held = whole + self._held, b""
                self._overlong = True
                return whole
        if whole:
            self._overlong = False
            self._last = whole
            self.chunks += whole.count(b"\n")
            if b'"eval_count"' in whole:
                self.said = counts_of(whole)
        return whole

    def finish(self) -> bytes:
        """See `UsageReader`."""
        rest, self._held = self._held, b""
        self._last = rest or self._last
        return rest

    def broken(self) -> bytes:
        """See `UsageReader`."""
        self._held = b""
        return b"\n" if self._overlong else b""

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """See `UsageReader`."""
        return _with_prompt(super().counts(estimated_prompt), estimated_prompt)


class OllamaBody(BodyReader):
    """A whole answer as one document."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        return counts_of(text)

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """See `UsageReader`."""
        return _with_prompt(super().counts(estimated_prompt), estimated_prompt)


def counts_of(text: bytes) -> TokenCounts | None:
    """The counts in a last line, or None. `exact` unless the prompt's are missing."""
    found = {name: count(int(digits)) for name, digits in _FIGURE.findall(text)}
    if not found:
        return None
    return TokenCounts(
        prompt=found.get(b"prompt_eval_count", 0),
        completion=found.get(b"eval_count", 0),
        exact=b"prompt_eval_count" in found,
    )


def _with_prompt(counts: TokenCounts, estimated_prompt: int) -> TokenCounts:
    if not counts.exact and not counts.prompt:
        counts.prompt = estimated_prompt
    return counts


def line_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A line of Ollama's `/api/chat` or `/api/generate`."""
    del name
    if error_in(payload) is not None:
        return Signal.ERROR
    message = payload.get("message")
    said = message if isinstance(message, dict) else payload
    if any(said.get(part) for part in ("content", "thinking", "tool_calls", "response")):
        return Signal.CONTENT
    return Signal.END if payload.get("done") is True else Signal.PREAMBLE


def _options(fields: Fields, name: str) -> list[int]:
    """What Ollama's `options` say of `name`; what is no number is left for Ollama to refuse."""
    found: list[int] = []
    for field in named_in_any_case(fields, ("options",)):
        options = options_of(fields[field])
        value: Any = options.get(name) if isinstance(options, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(int(min(max(value, -1), MAX_OPTION)))
    return found


def _model_entry(model: CatalogModel, created: int) -> dict[str, Any]:
    """What their clients read of an entry. The digest is made of the name: the files are the
    boxes' business, and may differ among them."""
    family = model.id.partition(":")[0].rpartition("/")[2].rstrip("0123456789.-_").lower()
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": _stamp(created),
        "size": model.size_bytes or 0,
        "digest": hashlib.sha256(model.id.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": "",
            "quantization_level": "",
        },
        "capabilities": sorted(model.capabilities & OLLAMA_WORDS),
    }


def _stamp(seconds: int) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
