"""Anthropic's dialect: /v1/messages. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault
from wai_protocol.surface import ANTHROPIC_API, ANTHROPIC_ROUTES, Route
from wai_relay.contracts.records import TokenCounts

from .dialect import EVENT_STREAM, NDJSON, Dialect, Signal, SignalOf, is_error
from .usage import BodyReader, EventReader, UsageReader, count, last_object

TOO_LONG: Final = "prompt is too long"
"""Claude Code looks for these words, and then shortens its conversation."""

# Their documented error types, by status; anything else is an `api_error`.
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicDialect(Dialect):
    """See `Dialect`."""

    name = ANTHROPIC_API
    routes = ANTHROPIC_ROUTES
    error_prefixes = ("/v1/messages",)
    too_long_words = TOO_LONG.encode()

    def error_body(self, fault: Fault, message: str) -> bytes:
        """`{"type": "error", "error": {"type", "message"}}`."""
        kind = _TYPES.get(fault.row.http_status, "api_error")
        if fault is Fault.CONTEXT_EXCEEDED and TOO_LONG not in message.lower():
            message = f"{TOO_LONG}: {message}"
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})

    def error_event(self, fault: Fault, message: str) -> bytes:
        """`event: error`, which their SDKs raise."""
        return b"event: error\ndata: " + self.error_body(fault, message) + b"\n\n"

    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """See `Dialect`."""
        del route, strip_usage, strip_timings  # usage is always told
        if content_type.startswith(EVENT_STREAM):
            return AnthropicEvents()
        return AnthropicBody(lines=content_type.startswith(NDJSON))

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        del route
        return messages_signal

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """See `Dialect`. One that says nothing has a reason to."""
        return ("content", "stop_reason") if route.generates else ()


ANTHROPIC: Final = AnthropicDialect()


class AnthropicEvents(EventReader):
    """A streamed answer: `message_start` tells the prompt's tokens, `message_delta` its own."""

    piece = b'"content_block_delta"'

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, Any] = {}

    def observe(self, payload: Any) -> bool:
        """See `EventReader`."""
        message = payload.get("message")
        usage = (message if isinstance(message, dict) else payload).get("usage")
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}
            self.said = counts_of(self._usage)
            # Before `message_delta` the answer's count is only where it stood at the start.
            self.said.exact = payload.get("type") == "message_delta"
        return True


class AnthropicBody(BodyReader):
    """A whole answer as one document, or a count of tokens (which has no `usage`)."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        usage = last_object(text, b"usage")
        return None if usage is None else counts_of(usage)


def counts_of(usage: dict[str, Any]) -> TokenCounts:
    """Exact counts from their `usage`, whose `input_tokens` leave the cached ones out."""
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    return TokenCounts(
        prompt=count(usage.get("input_tokens")) + cached + written,
        cached=cached,
        completion=count(usage.get("output_tokens")),
        exact=True,
    )


def messages_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of Anthropic's `/v1/messages`."""
    kind = str(payload.get("type") or name)
    if kind == "error" or is_error(name, payload):
        return Signal.ERROR
    if kind == "message_stop":
        return Signal.END
    block = payload.get("content_block")
    if kind == "content_block_start" and isinstance(block, dict):
        # A tool call begins with its name; a text block begins empty.
        said = any(block.get(part) for part in ("name", "text", "thinking", "data"))
        return Signal.CONTENT if said else Signal.PREAMBLE
    delta = payload.get("delta") if kind == "content_block_delta" else None
    if not isinstance(delta, dict):
        return Signal.PREAMBLE
    said = any(value for field, value in delta.items() if field != "type")
    return Signal.CONTENT if said else Signal.PREAMBLE
