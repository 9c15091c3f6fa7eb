"""llama.cpp's own dialect: /completion, /infill and what belongs to them. Pure.

Code editors fill in by it. Its errors are OpenAI's; its streams have no `[DONE]`: their last event
says `"stop":true`, and tells the counts.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

from wai_protocol.surface import LLAMA_CPP_API, LLAMA_CPP_ROUTES, Route
from wai_relay.contracts.records import TokenCounts

from .dialect import EVENT_STREAM, NDJSON, Signal, SignalOf, is_error
from .openai import OpenAiDialect, counts_of
from .usage import BodyReader, EventReader, UsageReader, count, last_object

_STOP: Final = re.compile(rb'"stop": ?true')
_COUNT: Final = re.compile(rb'(?<!\\)"(tokens_evaluated|tokens_predicted)"\s*:\s*(\d{1,12})')


class LlamaCppDialect(OpenAiDialect):
    """See `Dialect`."""

    name = LLAMA_CPP_API
    routes: ClassVar[tuple[Route, ...]] = LLAMA_CPP_ROUTES
    error_prefixes: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}
    prompt_fields = ("input_prefix", "input_suffix", "input_extra", "prompt")

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
        if content_type.startswith(EVENT_STREAM):
            return LlamaCppEvents()
        return LlamaCppBody(lines=content_type.startswith(NDJSON))

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        del route
        return completion_signal

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """See `Dialect`."""
        return ("content", "stop") if route.generates else ()


LLAMA_CPP: Final = LlamaCppDialect()


class LlamaCppEvents(EventReader):
    """A streamed answer."""

    piece = b'"content"'
    end_mark = _STOP

    def observe(self, payload: Any) -> bool:
        """See `EventReader`."""
        self.said = _counts(payload.get("timings"), payload) or self.said
        return True


class LlamaCppBody(BodyReader):
    """A whole answer as one document; the settings that it repeats are far from its counts."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        told = {name.decode(): int(digits) for name, digits in _COUNT.findall(text)}
        return _counts(last_object(text, b"timings"), told)


def completion_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of `/completion`."""
    if is_error(name, payload):
        return Signal.ERROR
    if payload.get("content"):
        return Signal.CONTENT
    return Signal.END if payload.get("stop") is True else Signal.PREAMBLE


def _counts(timings: object, told: dict[str, Any]) -> TokenCounts | None:
    found = counts_of(None, timings)
    if found is not None or "tokens_predicted" not in told:
        return found
    return TokenCounts(
        prompt=count(told.get("tokens_evaluated")),
        completion=count(told.get("tokens_predicted")),
        exact=True,
    )
