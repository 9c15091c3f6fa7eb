"""OpenAI's dialect: errors, the error event, where usage stands; llama.cpp's `timings` too. Pure.

For chat completions, completions, responses, embeddings and the rest of /v1.
"""

from __future__ import annotations

import re
from typing import Any, Final

from wai_protocol.errors import Fault
from wai_relay.contracts.records import TokenCounts
from wai_relay.http.problems import openai_error

from .usage import BodyReader, EventReader, count, decode, last_object

# Inside a JSON string its quotes would be escaped, so no answer can pretend to be one.
_TIMINGS_KEY: Final = b',"timings":{'
_TIMINGS: Final = re.compile(rb',"timings":\{[^{}]*\}')


def error_body(fault: Fault, message: str) -> bytes:
    """`{"error": {"message", "type", "code", "param"}}`."""
    return openai_error(fault, message)


def error_event(fault: Fault, message: str) -> bytes:
    """What the SDKs raise in the middle of a stream. No `[DONE]` follows."""
    return b"data: " + openai_error(fault, message).strip() + b"\n\n"


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

    def feed(self, data: bytes) -> bytes:
        """See `EventReader`."""
        # Whole events only: what may be cut in two takes the longer way.
        if self._strip_timings and not self._held and data.endswith(b"\n\n"):
            data = self.outgoing(data)
        return super().feed(data)

    def outgoing(self, event: bytes) -> bytes:
        """See `EventReader`. Timings beside a usage belong to it."""
        if not self._strip_timings or b'"usage"' in event:
            return event
        at = event.find(_TIMINGS_KEY)  # faster than to search by expression
        found = _TIMINGS.match(event, at) if at >= 0 else None
        if found is None:
            return event
        end = found.end()
        if event.find(_TIMINGS_KEY, end) < 0:  # the everyday case: one token, one slice
            self._timings = found[0]
            return event[:at] + event[end:]
        self._timings = _TIMINGS.findall(event)[-1]
        return _TIMINGS.sub(b"", event)

    def observe(self, payload: Any) -> bool:
        """See `EventReader`."""
        response = payload.get("response")  # /v1/responses wraps it: `response.completed`
        holder = response if isinstance(response, dict) else payload
        found = counts_of(holder.get("usage"), holder.get("timings"))
        if found is None:
            return True
        if self._strip_timings and not holder.get("usage"):
            return True  # where the answer stands; `outgoing` keeps it
        self.said = found
        injected = payload.get("choices") == [] and isinstance(payload.get("usage"), dict)
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


class OpenAiBody(BodyReader):
    """A whole answer as one document."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        return counts_of(last_object(text, b"usage"), last_object(text, b"timings"))


def counts_of(usage: object, timings: object) -> TokenCounts | None:
    """Exact counts from a `usage` object, or from llama.cpp's `timings` where there is none."""
    if isinstance(usage, dict) and usage:
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        return TokenCounts(
            prompt=count(usage.get("prompt_tokens", usage.get("input_tokens"))),
            cached=count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
            completion=count(usage.get("completion_tokens", usage.get("output_tokens"))),
            exact=True,
        )
    if isinstance(timings, dict) and "predicted_n" in timings:
        cached = count(timings.get("cache_n"))
        return TokenCounts(
            prompt=cached + count(timings.get("prompt_n")),
            cached=cached,
            completion=count(timings.get("predicted_n")),
            exact=True,
        )
    return None
