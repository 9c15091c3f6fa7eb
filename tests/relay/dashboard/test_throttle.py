"""How often a wrong token may be tried, by address and in all."""

from __future__ import annotations

import pytest

from wai_protocol.errors import AuthError, Fault
from wai_relay.dashboard.throttle import (
    MAX_ADDRESSES,
    REFILL_S,
    TOTAL_REFILL_S,
    TOTAL_TRIES,
    TRIES,
    SignInThrottle,
)


def fail(throttle: SignInThrottle, address: str, now: float, times: int = 1) -> None:
    for _ in range(times):
        throttle.failed(address, now)


def test_an_address_has_a_few_tries_and_is_told_when_it_may_come_again() -> None:
    throttle = SignInThrottle(0.0)
    fail(throttle, "a", 0.0, TRIES)
    with pytest.raises(AuthError) as refused:
        throttle.failed("a", 1.0)
    assert refused.value.fault is Fault.RATE_LIMITED
    assert refused.value.retry_after_s == pytest.approx(REFILL_S - 1.0)
    throttle.failed("a", REFILL_S)


def test_one_address_does_not_slow_down_another() -> None:
    throttle = SignInThrottle(0.0)
    fail(throttle, "a", 0.0, TRIES)
    throttle.failed("b", 0.0)


def test_many_addresses_are_no_way_around_it_and_bystanders_wait_seconds() -> None:
    throttle = SignInThrottle(0.0)
    for n in range(TOTAL_TRIES):
        fail(throttle, f"address-{n}", 0.0)
    with pytest.raises(AuthError) as refused:
        throttle.failed("bystander", 0.0)
    assert refused.value.retry_after_s == pytest.approx(TOTAL_REFILL_S)
    throttle.failed("bystander", TOTAL_REFILL_S)


def test_one_address_that_tries_on_uses_up_nothing_of_what_all_have() -> None:
    throttle = SignInThrottle(0.0)
    fail(throttle, "stubborn", 0.0, TRIES)
    for _ in range(10 * TOTAL_TRIES):
        with pytest.raises(AuthError):
            throttle.failed("stubborn", 0.0)
    throttle.failed("bystander", 0.0)


def test_a_long_pause_gives_no_more_tries_than_there_are() -> None:
    throttle = SignInThrottle(0.0)
    fail(throttle, "a", 0.0)
    fail(throttle, "a", 1e6, TRIES)
    with pytest.raises(AuthError):
        throttle.failed("a", 1e6)


def test_addresses_fill_no_memory_and_who_tries_on_is_not_the_one_forgotten() -> None:
    throttle = SignInThrottle(0.0)
    for n in range(MAX_ADDRESSES + 10):
        now = n * TOTAL_REFILL_S * 2
        throttle.failed(f"address-{n}", now)
        if n % 1000 == 0:
            throttle.failed("stubborn", now)
    assert len(throttle._by_address) == MAX_ADDRESSES
    assert "stubborn" in throttle._by_address
    assert "address-0" not in throttle._by_address
