"""The requests that run now: for the dashboard, `wai top`, and an admin who ends one.

The hot path puts a request in and takes it out, and costs nothing per token: how far an answer is
gets read from its own counters when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from wai_api.requests import LiveView, State
from wai_protocol.errors import Fault
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import RequestRecord, TokenCounts

ENDED_BY_ADMIN: Final = "This request was ended by the relay's admin."


class RunningAnswer(Protocol):
    """What is asked of an attempt's answer (`answer.Answer`)."""

    first_content_at: float | None

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """What it cost so far."""

    def give_up(self, fault: Fault, message: str) -> None:
        """End it, and tell the caller why."""


class LiveRequest:
    """One running request. `key` is set once it is known, `answer` while an upstream has it;
    `ended` once an admin has ended it."""

    __slots__ = ("_cancel", "answer", "arrived_at", "ended", "key", "prompt_tokens", "record")

    def __init__(
        self, record: RequestRecord, arrived_at: float, cancel: Callable[[], object]
    ) -> None:
        self.record = record
        self.arrived_at = arrived_at
        self.key: ApiKey | None = None
        self.answer: RunningAnswer | None = None
        self.prompt_tokens = 0
        self.ended = False
        self._cancel = cancel

    def end(self) -> None:
        """End it now: its caller is told, its slot is freed."""
        self.ended = True
        if self.answer is not None:
            self.answer.give_up(Fault.CANCELLED, ENDED_BY_ADMIN)
        else:
            self._cancel()


class LiveRequests:
    """All running requests by id. Belongs to one loop."""

    def __init__(self) -> None:
        self._running: dict[str, LiveRequest] = {}

    def __len__(self) -> int:
        return len(self._running)

    def enter(
        self, record: RequestRecord, arrived_at: float, cancel: Callable[[], object]
    ) -> LiveRequest:
        """A request came. `cancel` ends it while no upstream has it."""
        live = self._running[record.request_id] = LiveRequest(record, arrived_at, cancel)
        return live

    def leave(self, live: LiveRequest) -> None:
        """It is over."""
        self._running.pop(live.record.request_id, None)

    def find(self, request_id: str) -> LiveRequest | None:
        """The running request with this id."""
        return self._running.get(request_id)

    def views(self, now: float) -> list[LiveView]:
        """All of them, oldest first. `now` is of the clock that `arrived_at` is of."""
        return [live_view(live, now) for live in self._running.values()]


def live_view(live: LiveRequest, now: float) -> LiveView:
    """How `live` stands at `now`."""
    record, answer = live.record, live.answer
    tokens = TokenCounts(prompt=live.prompt_tokens)
    state: State = "queued"
    first_content_at: float | None = None
    if answer is not None:
        first_content_at = answer.first_content_at
        state = "prefill" if first_content_at is None else "streaming"
        if first_content_at is not None:
            tokens = answer.counts(live.prompt_tokens)
    decode_s = now - first_content_at if first_content_at is not None else 0.0
    measurable = tokens.completion > 1 and decode_s > 0
    return LiveView(
        id=record.request_id,
        key_id=record.key_id,
        method=record.method,
        path=record.path,
        model=record.model,
        node=record.node,
        state=state,
        reason=record.reason,
        attempts=record.attempts,
        started_at=record.started_at,
        age_ms=(now - live.arrived_at) * 1000.0,
        queue_ms=record.queue_ms,
        ttft_ms=None if first_content_at is None else (first_content_at - live.arrived_at) * 1000.0,
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        tokens_per_s=(tokens.completion - 1) / decode_s if measurable else None,
    )
