"""Ollama's dialect (/api/…): errors, the error line, and where usage stands. Pure.

Its streams are NDJSON; the last line carries the counts. A prompt that was found in the cache is
not counted by Ollama at all (`prompt_eval_count` is missing); then the estimate stands in for it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from wai_protocol.errors import Fault
from wai_relay.contracts.records import TokenCounts

from .usage import MAX_EVENT_BYTES, BodyReader, UsageReader, count

_FIGURE: Final = re.compile(rb'(?<!\\)"(prompt_eval_count|eval_count)"\s*:\s*(\d{1,12})')

_DONE: Final = re.compile(rb'"done"\s*:\s*true')
_ERROR: Final = re.compile(rb'(?m)^\s*\{"error"')


def error_body(fault: Fault, message: str) -> bytes:
    """`{"error": "…"}`."""
    del fault  # their errors have no code
    return msgspec.json.encode({"error": message})


def error_event(fault: Fault, message: str) -> bytes:
    """The line that their clients raise."""
    return error_body(fault, message) + b"\n"


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
