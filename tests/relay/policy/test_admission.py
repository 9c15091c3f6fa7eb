"""Admission: limits bite exactly at their number, at once, and let go in time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault, RequestError
from wai_relay.access.keys import ApiKey, KeyLimits
from wai_relay.policy.admission import Admission, MinuteWindow, Permit, format_reset
from wai_relay.policy.months import MonthTokens

WALL = datetime.datetime(2026, 11, 30, 23, 0, tzinfo=datetime.UTC).timestamp()


def key(**limits: Any) -> ApiKey:
    return ApiKey("key_1", "app", b"", "wai_sk_", KeyLimits(**limits), 1, 0.0)


def refused(admission: Admission, who: ApiKey, tokens: int, now: float) -> RequestError:
    with pytest.raises(RequestError) as info:
        admission.admit(who, tokens, now, WALL)
    return info.value


def test_requests_a_minute_bite_at_their_number_and_say_when_to_come_back() -> None:
    admission = Admission()
    for _ in range(5):
        admission.admit(key(rpm=5), 1, 10.0, WALL)
    error = refused(admission, key(rpm=5), 1, 40.0)
    assert error.fault is Fault.RATE_LIMITED
    assert error.retry_after_s == pytest.approx(30.0, abs=0.2)
    admission.admit(key(rpm=5), 1, 70.2, WALL)


def test_a_changed_limit_works_from_the_next_request_on() -> None:
    admission = Admission()
    admission.admit(key(rpm=1), 1, 0.0, WALL)
    refused(admission, key(rpm=1), 1, 1.0)
    admission.admit(key(rpm=2), 1, 1.0, WALL)


def test_tokens_are_set_right_when_a_request_ends() -> None:
    admission = Admission()
    permit = admission.admit(key(tpm=1000), 900, 0.0, WALL)
    refused(admission, key(tpm=1000), 200, 0.5)
    admission.settle(permit, 100, 1.0)
    admission.admit(key(tpm=1000), 900, 1.0, WALL)
    refused(admission, key(tpm=1000), 1, 1.0)


def test_a_request_larger_than_the_limit_is_told_so_and_not_to_come_back() -> None:
    error = refused(Admission(), key(tpm=100), 101, 0.0)
    assert (error.fault, error.retry_after_s) == (Fault.RATE_LIMITED, None)


def test_requests_at_once_are_counted_until_they_end_and_only_once() -> None:
    admission = Admission()
    permits = [admission.admit(key(concurrency=2), 1, 0.0, WALL) for _ in range(2)]
    assert refused(admission, key(concurrency=2), 1, 0.0).fault is Fault.RATE_LIMITED
    for _ in range(3):
        admission.settle(permits[0], 1, 0.0)
    admission.admit(key(concurrency=2), 1, 0.0, WALL)
    refused(admission, key(concurrency=2), 1, 0.0)


def test_the_month_is_used_up_and_a_new_one_begins_in_utc() -> None:
    months = MonthTokens(WALL)
    months.add("key_1", WALL, 95)
    admission = Admission(months)
    permit = admission.admit(key(monthly_tokens=100), 5, 0.0, WALL)
    assert refused(admission, key(monthly_tokens=100), 1, 0.0).fault is Fault.QUOTA_EXCEEDED
    admission.settle(permit, 5, 0.0)  # the recorder counts it then
    months.add("key_1", WALL, 5)
    error = refused(admission, key(monthly_tokens=100), 1, 0.0)
    assert error.fault is Fault.QUOTA_EXCEEDED
    assert "100 tokens of 2026-" in str(error)
    admission.admit(key(monthly_tokens=100), 1, 0.0, WALL + 3600)


def test_what_a_request_took_after_all_counts_for_the_minute() -> None:
    admission = Admission()
    permit = admission.admit(key(tpm=100), 50, 0.0, WALL)
    admission.settle(permit, 10, 0.0)
    admission.correct(permit, 80, 1.0)
    assert refused(admission, key(tpm=100), 11, 1.0).fault is Fault.RATE_LIMITED
    admission.correct(permit, -500, 1.0)  # never less than nothing
    admission.admit(key(tpm=100), 100, 1.0, WALL)
    assert refused(admission, key(tpm=100), 1, 1.0).fault is Fault.RATE_LIMITED


def test_another_try_of_the_same_request_is_not_one_more() -> None:
    admission = Admission()
    permit = admission.admit(key(rpm=1), 1, 0.0, WALL)
    admission.settle(permit, 0, 0.0)
    admission.admit(key(rpm=1), 1, 0.0, WALL, again=True)


def test_headers_look_as_openai_sends_them() -> None:
    admission = Admission()
    who = key(rpm=60, tpm=10_000)
    admission.admit(who, 1000, 0.0, WALL)
    assert dict(admission.headers(who, 0.0)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
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
    permits: list[Permit] = [admission.admit(key(), 100, 0.0, WALL) for _ in actual]
    for permit, tokens in zip(permits, actual, strict=True):
        admission.settle(permit, tokens, 1.0)
    use = admission._use("key_1")
    assert (use.running, use.reserved) == (0, 0)
    assert use.tokens.used == sum(actual)
