"""Anthropic's dialect (/v1/messages): errors, the error event, and where usage stands. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault
from wai_relay.contracts.records import TokenCounts

from .usage import BodyReader, EventReader, count, last_object

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


def error_body(fault: Fault, message: str) -> bytes:
    """`{"type": "error", "error": {"type", "message"}}`."""
    kind = _TYPES.get(fault.row.http_status, "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


def error_event(fault: Fault, message: str) -> bytes:
    """`event: error`, which their SDKs raise."""
    return b"event: error\ndata: " + error_body(fault, message) + b"\n\n"


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
