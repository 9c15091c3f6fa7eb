"""How each API that callers speak says errors and usage: OpenAI's, Anthropic's, Ollama's. Pure.

`rules_for` is the one place that maps a route's dialect to its ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from wai_protocol.errors import Fault
from wai_protocol.surface import Dialect

from . import anthropic, ollama, openai
from .usage import UsageReader

__all__ = ["EVENT_STREAM", "NDJSON", "DialectRules", "UsageReader", "reader_for", "rules_for"]

EVENT_STREAM: Final = b"text/event-stream"
NDJSON: Final = b"application/x-ndjson"


@dataclass(frozen=True, slots=True)
class DialectRules:
    """A dialect's errors: as a body, and as an event in a stream that has begun.

    `stream_type`: the content type of its streams. `comment`: an event that its clients skip, or
    b"" where there is none.
    """

    error_body: Callable[[Fault, str], bytes]
    error_event: Callable[[Fault, str], bytes]
    stream_type: bytes
    comment: bytes


_RULES: Final = {
    Dialect.OPENAI: DialectRules(
        openai.error_body, openai.error_event, EVENT_STREAM, b": waiting\n\n"
    ),
    Dialect.ANTHROPIC: DialectRules(
        anthropic.error_body, anthropic.error_event, EVENT_STREAM, b": waiting\n\n"
    ),
    Dialect.OLLAMA: DialectRules(ollama.error_body, ollama.error_event, NDJSON, b""),
}


def rules_for(dialect: Dialect) -> DialectRules:
    """How `dialect` says errors."""
    return _RULES[dialect]


def reader_for(
    dialect: Dialect,
    path: str,
    content_type: bytes,
    *,
    strip_usage: bool,
    strip_timings: bool = False,
) -> UsageReader:
    """Who watches an answer of `content_type` to a request for `path`.

    `strip_usage`: the usage chunk was asked for by the relay and is not for the caller;
    `strip_timings`: nor are the figures in each chunk.
    """
    streamed = content_type.startswith((EVENT_STREAM, NDJSON))
    match dialect:
        case Dialect.OPENAI if streamed:
            text = path == "/v1/completions"
            events = openai.OpenAiTextEvents if text else openai.OpenAiEvents
            return events(strip_usage=strip_usage, strip_timings=strip_timings)
        case Dialect.OPENAI:
            return openai.OpenAiBody()
        case Dialect.ANTHROPIC:
            return anthropic.AnthropicEvents() if streamed else anthropic.AnthropicBody()
        case Dialect.OLLAMA:
            return ollama.OllamaLines() if streamed else ollama.OllamaBody()
        case _:
            assert_never(dialect)
