"""Admission: limits bite exactly at their number, at once, and let go in time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.policy.admission import Admission, Permit, TokenClaim
from wai_relay.policy.limit_words import CONCURRENCY_RETRY_S
from wai_relay.policy.minutes import MinuteWindow, format_reset
from wai_relay.policy.months import MonthTokens

WALL = datetime.datetime(2026, 11, 30, 23, 0, tzinfo=datetime.UTC).timestamp()


def key(**limits: Any) -> ApiKey:
    return ApiKey("key_1", "app", b"", "wai_sk_", KeyLimits(**limits), 1, 0.0)


def claim(most: int, least: int | None = None) -> TokenClaim:
    """A request that takes `most` tokens, or no less than `least`."""
    return TokenClaim((most if least is None else least) - 1, None, most)


def admit(admission: Admission, who: ApiKey, tokens: TokenClaim | int, now: float) -> Permit:
    permit = admission.enter(who, now, WALL)
    try:
        admission.reserve(
            permit, who, claim(tokens) if isinstance(tokens, int) else tokens, now, WALL
        )
    except RequestError:
        admission.settle(permit, 0, now)
        raise
    return permit


def refused(
    admission: Admission, who: ApiKey, tokens: TokenClaim | int, now: float
) -> RequestError:
    with pytest.raises(RequestError) as info:
        admit(admission, who, tokens, now)
    return info.value


def test_requests_a_minute_bite_at_their_number_and_say_when_to_come_back() -> None:
    admission = Admission()
    for _ in range(5):
        admit(admission, key(rpm=5), 1, 10.0)
    error = refused(admission, key(rpm=5), 1, 40.0)
    assert error.fault is Fault.RATE_LIMITED
    assert error.retry_after_s == pytest.approx(30.0, abs=0.2)
    admit(admission, key(rpm=5), 1, 70.2)


def test_a_changed_limit_works_from_the_next_request_on() -> None:
    admission = Admission()
    admit(admission, key(rpm=1), 1, 0.0)
    refused(admission, key(rpm=1), 1, 1.0)
    admit(admission, key(rpm=2), 1, 1.0)


def test_tokens_are_set_right_when_a_request_ends() -> None:
    admission = Admission()
    permit = admit(admission, key(tpm=1000), 900, 0.0)
    refused(admission, key(tpm=1000), 200, 0.5)
    admission.settle(permit, 100, 1.0)
    admit(admission, key(tpm=1000), 900, 1.0)
    refused(admission, key(tpm=1000), 1, 1.0)


@pytest.mark.parametrize("limit", ["tpm", "monthly_tokens"])
@pytest.mark.parametrize(("prompt", "answer", "most"), [(7, 1000, 1071), (20, None, 131_072)])
def test_requests_at_once_cannot_pass_a_limit_of_tokens_together(
    limit: str, prompt: int, answer: int | None, most: int
) -> None:
    months = MonthTokens(WALL)
    admission, who = Admission(months), key(**{limit: 5000})
    asks = TokenClaim(prompt, answer, most)
    running = [admit(admission, who, asks, 0.0) for _ in range(4 if answer else 1)]
    for _ in range(96):
        assert refused(admission, who, asks, 0.0).retry_after_s == CONCURRENCY_RETRY_S
    for permit in running:  # each takes all that it may
        months.add(who.id, WALL, prompt + (answer or 4000))
        admission.settle(permit, prompt + (answer or 4000), 1.0)
    assert months.of(who.id, WALL) <= 5000


def test_a_reservation_lasts_as_long_as_its_request() -> None:
    admission, who = Admission(), key(tpm=1000)
    long = admit(admission, who, 900, 0.0)
    refused(admission, who, 200, 300.0)
    admission.settle(long, 100, 300.0)
    admit(admission, who, 900, 300.0)


def test_what_is_given_back_makes_no_room_that_was_never_there() -> None:
    admission, who = Admission(), key(tpm=1000)
    admission.settle(admit(admission, who, 900, 0.0), 100, 59.0)
    refused(admission, who, TokenClaim(901, 0, 901), 61.0)  # the 100 of second 59 count until 119


def test_a_small_limit_serves_callers_without_max_tokens_one_at_a_time() -> None:
    admission, who = Admission(), key(tpm=5000)
    unbounded = TokenClaim(10, None, 131_072)
    for second in range(3):
        permit = admit(admission, who, unbounded, second)
        assert refused(admission, who, unbounded, second).retry_after_s == CONCURRENCY_RETRY_S
        assert refused(admission, who, 10, second).fault is Fault.RATE_LIMITED
        admission.settle(permit, 1000, second)
    admission.settle(admit(admission, who, unbounded, 3), 9000, 3)  # one answer's rest, once
    assert refused(admission, who, unbounded, 3).retry_after_s == pytest.approx(60, abs=5)


def test_a_prompt_that_was_estimated_too_short_passes_a_limit_once_and_not_at_once() -> None:
    admission, who = Admission(), key(tpm=5000)
    dense = TokenClaim(100, 10, 474)  # 400 bytes of text may be 400 tokens
    for _ in range(5000 // 474):
        admit(admission, who, dense, 0.0)
    refused(admission, who, dense, 0.0)


@pytest.mark.parametrize(
    ("limits", "asks", "fault"),
    [
        ({"tpm": 100}, TokenClaim(101, None, 200), Fault.RATE_LIMITED),
        ({"tpm": 5000}, TokenClaim(10, 5000, 5100), Fault.RATE_LIMITED),
        ({"monthly_tokens": 5000}, TokenClaim(10, 5000, 5100), Fault.QUOTA_EXCEEDED),
    ],
)
def test_a_request_larger_than_the_limit_is_told_so_and_not_to_come_back(
    limits: dict[str, Any], asks: TokenClaim, fault: Fault
) -> None:
    error = refused(Admission(), key(**limits), asks, 0.0)
    assert (error.fault, error.retry_after_s) == (fault, None)
    assert "Lower `max_tokens`" in str(error)


def test_requests_at_once_are_counted_from_the_head_until_they_end_and_only_once() -> None:
    admission, who = Admission(), key(concurrency=2)
    permits = [admission.enter(who, 0.0, WALL) for _ in range(2)]
    assert refused(admission, who, 1, 0.0).fault is Fault.RATE_LIMITED
    for _ in range(3):
        admission.settle(permits[0], 1, 0.0)
    admission.enter(who, 0.0, WALL)
    refused(admission, who, 1, 0.0)


def test_the_month_is_used_up_and_a_new_one_begins_in_utc() -> None:
    months = MonthTokens(WALL)
    months.add("key_1", WALL, 95)
    admission, who = Admission(months), key(monthly_tokens=100)
    permit = admit(admission, who, 5, 0.0)
    assert refused(admission, who, 1, 0.0).retry_after_s == CONCURRENCY_RETRY_S
    admission.settle(permit, 5, 0.0)  # the recorder counts it then
    months.add("key_1", WALL, 5)
    error = refused(admission, who, 1, 0.0)
    assert error.fault is Fault.QUOTA_EXCEEDED
    assert error.retry_after_s == 3600.0
    assert "100 tokens of 2026-11" in str(error)
    admission.enter(who, 0.0, WALL + 3600)


def test_a_request_that_the_rest_of_the_month_cannot_hold_waits_for_the_next() -> None:
    months = MonthTokens(WALL)
    months.add("key_1", WALL, 95)
    error = refused(Admission(months), key(monthly_tokens=100), TokenClaim(2, 10, 60), 0.0)
    assert (error.fault, error.retry_after_s) == (Fault.QUOTA_EXCEEDED, 3600.0)
    assert "has 5 left" in str(error)


def test_a_clock_that_visits_another_month_does_not_free_this_one() -> None:
    months = MonthTokens(WALL)
    months.add("key_1", WALL, 100)
    admission, who = Admission(months), key(monthly_tokens=100)
    for there in (3600, 40 * 86400, -40 * 86400, -400 * 86400, 400 * 86400):
        months.of("key_1", WALL + there)
        months.add("key_1", WALL + there, 1)
        assert refused(admission, who, 1, 0.0).fault is Fault.QUOTA_EXCEEDED
    with pytest.raises(RequestError):  # nor is a month free that nobody has looked up yet
        admission.enter(who, 0.0, WALL - 70 * 86400)


def test_a_month_that_is_not_known_is_asked_for_once() -> None:
    asked: list[int] = []
    months = MonthTokens(WALL, asked.append)
    months.of("key_1", WALL)
    for _ in range(2):
        months.of("key_1", WALL + 86400)
    assert asked == [months.begin(WALL + 86400)]


def test_what_a_request_took_after_all_counts_for_the_minute() -> None:
    admission, who = Admission(), key(tpm=100)
    permit = admit(admission, who, 50, 0.0)
    admission.correct(permit, 500, 0.0)  # it is not over yet, and ends with the right number
    admission.settle(permit, 10, 0.0)
    admission.correct(permit, 80, 1.0)
    assert refused(admission, who, 11, 1.0).fault is Fault.RATE_LIMITED
    admission.correct(permit, -500, 1.0)  # never more than it was
    assert refused(admission, who, 21, 1.0).fault is Fault.RATE_LIMITED
    admission.settle(admit(admission, who, 20, 1.0), 20, 1.0)
    admission.correct(permit, -10, 90.0)
    admit(admission, who, 100, 90.0)
    assert refused(admission, who, 1, 90.0).fault is Fault.RATE_LIMITED


def test_headers_look_as_openai_sends_them() -> None:
    admission = Admission()
    who = key(rpm=60, tpm=10_000)
    admission.settle(admit(admission, who, 600, 0.0), 600, 0.0)
    admit(admission, who, 400, 0.0)
    assert dict(admission.headers(who, 0.0)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"58",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"9000",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }
    assert admission.headers(key(), 0.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.12, "120ms"), (1, "1s"), (8.64, "8.64s"), (360, "6m0s"), (59.9999, "1m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert format_reset(seconds) == text


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), max_size=80))
def test_no_sixty_seconds_ever_hold_more_than_the_limit(steps: list[tuple[float, int]]) -> None:
    window, now, limit = MinuteWindow(), 0.0, 100
    taken: list[tuple[float, int]] = []
    for gap, amount in steps:
        now += gap
        window.expire(now)
        if window.wait_s(amount, limit, now) == 0:
            window.add(amount, now)
            taken.append((now, amount))
    for end, _ in taken:
        assert sum(a for at, a in taken if end - 60 < at <= end) <= limit


@given(st.lists(st.integers(0, 500), max_size=30))
def test_counts_of_what_runs_never_drift(actual: list[int]) -> None:
    admission = Admission()
    permits: list[Permit] = [admit(admission, key(tpm=10_000), 100, 0.0) for _ in actual]
    for permit, tokens in zip(permits, actual, strict=True):
        admission.settle(permit, tokens, 1.0)
    use = admission._use("key_1")
    assert (use.running, use.reserved) == (0, 0)
    assert use.tokens.used == sum(actual)


def test_what_is_spent_on_the_way_is_not_charged_again_at_the_end() -> None:
    admission, who = Admission(), key(tpm=100)
    permit = admission.enter(who, 0.0, WALL)
    admission.spend(permit, who, 40, 1.0, WALL)
    assert dict(admission.headers(who, 1.0))[b"x-ratelimit-remaining-tokens"] == b"60"
    with pytest.raises(RequestError) as refusal:
        admission.spend(permit, who, 60, 2.0, WALL)
    assert refusal.value.fault is Fault.RATE_LIMITED
    admission.settle(permit, 100, 3.0)
    assert dict(admission.headers(who, 3.0))[b"x-ratelimit-remaining-tokens"] == b"0"
    assert dict(admission.headers(who, 70.0))[b"x-ratelimit-remaining-tokens"] == b"100"


def test_what_is_spent_on_the_way_counts_against_the_month() -> None:
    months = MonthTokens(WALL)
    admission, who = Admission(months), key(monthly_tokens=100)
    months.add(who.id, WALL, 50)
    permit = admission.enter(who, 0.0, WALL)
    admission.spend(permit, who, 49, 1.0, WALL)
    with pytest.raises(RequestError) as refusal:
        admission.spend(permit, who, 1, 1.0, WALL)
    assert refusal.value.fault is Fault.QUOTA_EXCEEDED
