"""The last hour's figures: what counts, what does not, and what an odd clock does to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from wai_relay.contracts.records import (
    DiscardingRecorder,
    PastRequest,
    RequestRecord,
    TokenCounts,
)
from wai_relay.observe.live import ENDED_BY_ADMIN, LiveRequests
from wai_relay.observe.pulse import MINUTES, NOW_STEPS, STEP_S, STEPS, Pulse


@dataclass
class Answer:
    """An upstream's answer that has said `tokens` so far."""

    first_content_at: float | None = 1.0
    tokens: int = 0
    given_up: list[str] = field(default_factory=list)

    def counts(self, estimated_prompt: int) -> TokenCounts:
        return TokenCounts(estimated_prompt, 0, self.tokens)

    def give_up(self, fault: Any, message: str) -> None:
        self.given_up.append(message)


class Rig:
    """A pulse whose time the test makes pass."""

    def __init__(self) -> None:
        self.now = 100.0
        self.live = LiveRequests()
        self.later: list[Any] = []
        self.pulse = Pulse(
            DiscardingRecorder(),
            clock=lambda: self.now,
            wall_clock=lambda: 1.8e9 + self.now,
            call_later=self._call_later,
        )
        self.pulse.start(self.live)

    def _call_later(self, delay_s: float, call: Any) -> Rig:
        self.later = [call]
        return self

    def cancel(self) -> None:
        self.later = []

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += STEP_S
            due, self.later = self.later, []
            for call in due:
                call()


def record(
    name: str = "req", *, attempts: int = 1, status: int = 200, tokens: int = 0
) -> RequestRecord:
    made = RequestRecord(name, 1.0, "POST", "/v1/chat/completions", model="m")
    made.attempts, made.status, made.tokens = attempts, status, TokenCounts(1, 0, tokens)
    return made


def test_tokens_count_while_they_come_and_not_again_when_their_request_ends() -> None:
    rig = Rig()
    kept = record()
    live = rig.live.enter(kept, 0.0, lambda: None)
    live.answer = answer = Answer(tokens=60)
    rig.step()
    assert rig.pulse.now.tokens_per_s == pytest.approx(60 / STEP_S / NOW_STEPS)
    answer.tokens = 90
    kept.tokens = TokenCounts(1, 0, 90)
    rig.live.leave(live)
    rig.pulse.finish(kept)
    rig.step()
    assert rig.pulse.now.tokens_hour == 90
    rig.step(NOW_STEPS)
    assert rig.pulse.now.tokens_per_s == 0.0


def test_tokens_that_a_retry_takes_back_are_no_negative_speed() -> None:
    rig = Rig()
    live = rig.live.enter(record(), 0.0, lambda: None)
    live.answer = Answer(tokens=60)
    rig.step()
    live.answer = Answer(tokens=0)
    rig.step()
    assert min(rig.pulse.history().tokens_per_s) == 0.0


def test_what_was_refused_before_any_upstream_is_no_request_and_no_error() -> None:
    rig = Rig()
    rig.pulse.finish(record(attempts=0, status=401))
    rig.pulse.finish(record(status=502))
    rig.step()
    assert (rig.pulse.now.requests_hour, rig.pulse.now.errors_hour) == (1, 1)


def test_after_an_hour_a_request_is_forgotten() -> None:
    rig = Rig()
    rig.pulse.finish(record())
    rig.step(round((MINUTES - 1) * 60 / STEP_S))
    assert rig.pulse.now.requests_hour == 1
    rig.step(round(60 / STEP_S))
    assert rig.pulse.now.requests_hour == 0


def test_a_machine_that_slept_keeps_no_more_than_an_hour() -> None:
    rig = Rig()
    rig.pulse.finish(record())
    rig.now += 90_000.0
    rig.step()
    assert rig.pulse.now.requests_hour == 0
    assert len(rig.pulse.history().tokens_per_s) == STEPS


def test_running_and_queued_are_told_apart_and_the_history_ends_now() -> None:
    rig = Rig()
    rig.live.enter(record("queued"), 0.0, lambda: None)
    rig.live.enter(record("running"), 0.0, lambda: None).answer = Answer(first_content_at=None)
    rig.step()
    now, history = rig.pulse.now, rig.pulse.history()
    assert (now.running, now.queued) == (1, 1)
    assert (history.running[-1], history.until, history.step_s) == (1, now.at, STEP_S)


def test_a_pulse_that_is_closed_samples_no_more() -> None:
    rig = Rig()
    rig.pulse.close()
    rig.pulse.close()
    assert rig.later == []


def test_a_request_without_a_token_has_no_speed() -> None:
    live = LiveRequests()
    running = live.enter(record(), 1.0, lambda: None)
    running.answer = Answer(first_content_at=2.0, tokens=1)
    [view] = live.views(2.0)
    assert (view.state, view.tokens_per_s, view.ttft_ms) == ("streaming", None, 1000.0)
    running.answer = Answer(first_content_at=2.0, tokens=11)
    assert live.views(7.0)[0].tokens_per_s == 2.0


def test_ending_a_request_tells_its_caller_or_takes_it_out_of_the_queue() -> None:
    live, cancelled = LiveRequests(), list[str]()
    waiting = live.enter(record("a"), 0.0, lambda: cancelled.append("a"))
    waiting.end()
    assert (waiting.ended, cancelled) == (True, ["a"])
    running = live.enter(record("b"), 0.0, lambda: cancelled.append("b"))
    running.answer = answer = Answer()
    running.end()
    assert (answer.given_up, cancelled) == ([ENDED_BY_ADMIN], ["a"])


def test_an_outage_shows_although_no_node_was_tried() -> None:
    rig = Rig()
    for status in (503, 503, 401, 404, 429):
        rig.pulse.finish(record(attempts=0, status=status))
    gone = record(attempts=0, status=503)
    gone.cancelled = True
    rig.pulse.finish(gone)
    rig.step()
    assert (rig.pulse.now.requests_hour, rig.pulse.now.errors_hour) == (2, 2)


def past(ended_ago_s: float, **fields: Any) -> PastRequest:
    took_ms = fields.get("duration_ms", 1000.0)
    made = PastRequest(
        1.8e9 + 100.0 - ended_ago_s - took_ms / 1000.0,
        *("box", 100.0, took_ms, 10, 1, 200),
        failed=False,
        cancelled=False,
    )
    return made._replace(**fields)


def test_after_a_restart_the_last_hour_is_as_it_was() -> None:
    rig = Rig()
    rig.pulse.restore(
        [
            past(30.0),
            past(1800.0, failed=True, status=502),
            past(1800.0, attempts=0, status=401, completion_tokens=0),  # refused: no request
            past(3601.0),  # before it
            past(-5.0),  # the clock was set back meanwhile
        ]
    )
    now = rig.pulse.now
    assert (now.requests_hour, now.errors_hour, now.tokens_hour) == (2, 1, 20)
    assert now.ttft_p50_ms == pytest.approx(100.0, rel=0.1)
    rates = rig.pulse.history().tokens_per_s
    assert [index for index, rate in enumerate(rates) if rate] == [899, 1784]
    rig.step(round(1800 / STEP_S))
    assert rig.pulse.now.requests_hour == 1
    assert rig.pulse.now.tokens_hour == 10


def test_a_long_answer_of_before_a_restart_is_no_peak_at_its_end() -> None:
    rig = Rig()
    rig.pulse.restore([past(10.0, duration_ms=60_000.0, ttft_ms=20_000.0, completion_tokens=800)])
    rates = [rate for rate in rig.pulse.history().tokens_per_s if rate]
    assert rig.pulse.now.tokens_hour == 800
    assert max(rates) == pytest.approx(20.0, rel=0.1)


def test_an_answer_that_began_before_the_hour_stays_within_it() -> None:
    rig = Rig()
    rig.pulse.restore([past(3590.0, duration_ms=600_000.0, completion_tokens=100)])
    assert rig.pulse.now.tokens_hour == 100


def test_a_restored_pulse_counts_on() -> None:
    rig = Rig()
    rig.pulse.restore([past(10.0)])
    rig.pulse.finish(record(tokens=30))
    rig.step()
    assert (rig.pulse.now.requests_hour, rig.pulse.now.tokens_hour) == (2, 40)
