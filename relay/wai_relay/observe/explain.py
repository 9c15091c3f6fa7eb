"""Why requests went where they went: the last ones, in memory, for `wai explain REQUEST_ID`.

Records hold no prompt and no answer, so neither does this. A restart forgets everything.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import msgspec

from wai_api.requests import ExplainedAttempt, Explanation, FinishedRequest, LoadView
from wai_relay.contracts.records import Attempt, RequestRecord

# About 2 KiB each with eight candidates: 8 MiB; at ten requests a second the last seven minutes.
MAX_EXPLAINED: Final = 4096


class Explanations:
    """The finished requests that are remembered: the last `size`. Belongs to one loop."""

    def __init__(self, size: int = MAX_EXPLAINED) -> None:
        self._size = size
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def remember(self, record: RequestRecord) -> None:
        """A request is over."""
        self._records[record.request_id] = record
        if len(self._records) > self._size:
            self._records.popitem(last=False)

    def find(self, request_id: str) -> RequestRecord | None:
        """The record of a finished request, None if it is forgotten or never was."""
        return self._records.get(request_id)


def explain(record: RequestRecord, *, running: bool = False, captured: bool = False) -> Explanation:
    """`record` in a form fit for JSON."""
    return Explanation(
        id=record.request_id,
        started_at=record.started_at,
        running=running,
        method=record.method,
        path=record.path,
        key_id=record.key_id,
        model=record.model,
        served_model=record.served_model,
        node=record.node,
        status=record.status,
        fault=record.fault,
        reason=record.reason,
        cancelled=record.cancelled,
        fallback=record.fallback,
        continued=record.continued,
        queue_ms=record.queue_ms,
        first_byte_ms=record.first_byte_ms,
        ttft_ms=record.ttft_ms,
        duration_ms=record.duration_ms,
        tokens_per_s=record.tokens_per_second,
        prompt_tokens=record.tokens.prompt,
        cached_tokens=record.tokens.cached,
        completion_tokens=record.tokens.completion,
        tokens_exact=record.tokens.exact,
        attempts=[_attempt(attempt) for attempt in record.tried],
        translated=record.translated,
        relay=record.relay,
        captured=captured,
    )


def explain_stored(request: FinishedRequest) -> Explanation:
    """What is still known of a request whose attempts are forgotten."""
    return Explanation(
        id=request.id,
        started_at=request.started_at,
        running=False,
        method="",
        path=request.path,
        key_id=request.key_id,
        model=request.model,
        served_model=request.served_model,
        node=request.node,
        status=request.status,
        fault=request.fault,
        reason=request.reason,
        cancelled=request.cancelled,
        fallback=request.fallback,
        continued=request.continued,
        queue_ms=request.queue_ms,
        first_byte_ms=None,
        ttft_ms=request.ttft_ms,
        duration_ms=request.duration_ms,
        tokens_per_s=request.tokens_per_s,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        completion_tokens=request.completion_tokens,
        tokens_exact=request.tokens_exact,
        attempts=[],
        relay=request.relay,
    )


def _attempt(attempt: Attempt) -> ExplainedAttempt:
    return ExplainedAttempt(
        node=attempt.node,
        model=attempt.model,
        reason=attempt.reason,
        queue_ms=attempt.queue_ms,
        fault=attempt.fault,
        candidates=[_candidate(candidate) for candidate in attempt.candidates],
        load=None if attempt.load is None else LoadView(*attempt.load),
    )


def _candidate(candidate: object) -> dict[str, Any]:
    """A candidate's figures by name, whatever the dispatcher keeps them in."""
    as_dict = getattr(candidate, "_asdict", None)  # a named tuple's
    figures = msgspec.to_builtins(as_dict() if as_dict is not None else candidate)
    return figures if isinstance(figures, dict) else {"node": str(candidate)}
