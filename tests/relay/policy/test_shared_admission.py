"""Limits that several relays keep: never passed, whatever is lost or dies, and all comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.harness.limited_fleet import Call, LimitedFleet, limited_key
from wai_protocol.errors import Fault, WaiError
from wai_relay.policy.admission import TokenClaim
from wai_relay.policy.grants import BEAT_S
from wai_relay.policy.shared_admission import MAX_WAIT_S

TIGHT = {"rpm": 30, "concurrency": 3, "tpm": 900, "monthly_tokens": 2_500}
GENEROUS = {"rpm": 600, "concurrency": 60, "tpm": 60_000, "monthly_tokens": 200_000}


def small(most: int) -> TokenClaim:
    return TokenClaim(1, most - 1, most)


def calls(fleet: LimitedFleet, relay: int, count: int, key: Any, claim: Any = None) -> list[Call]:
    """So many requests at one relay, after it asked for them."""
    made = [fleet.relays[relay].call(key, claim) for _ in range(count)]
    while fleet.relays[relay].admission.has_something_to_ask:
        fleet.relays[relay].exchange()
    return [call for call in made if call is not None]


def running(made: list[Call]) -> list[Call]:
    return [call for call in made if call.state == "running"]


class AnyOrder(RuleBasedStateMachine):
    """Three relays, keys of both kinds, and messages that are lost, late or said twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = LimitedFleet()
        self.keys = [
            limited_key("key_tight", **TIGHT),
            limited_key("key_wide", **GENEROUS),
            limited_key("key_rpm", rpm=130),
            limited_key("key_slots", concurrency=26),
            limited_key("key_month", monthly_tokens=4_000),
            limited_key("key_tokens", concurrency=3, tpm=100),
        ]

    @rule(
        relay=st.integers(0, 2),
        key=st.integers(0, 5),
        count=st.integers(1, 40),
        most=st.sampled_from([0, 1, 20, 100, 400, 5_000]),
        answer=st.booleans(),
        exchanges=st.integers(0, 3),
    )
    def call(
        self, relay: int, key: int, count: int, most: int, *, answer: bool, exchanges: int
    ) -> None:
        claim = TokenClaim(1, most - 1 if answer else None, most) if most else None
        if self.fleet.relays[relay].alive:
            for _ in range(count):
                self.fleet.relays[relay].call(self.keys[key], claim)
            for _ in range(exchanges):
                self.fleet.relays[relay].exchange()

    @rule(
        number=st.integers(0, 200),
        count=st.integers(1, 40),
        part=st.sampled_from([0.0, 0.3, 1.0]),
        again=st.booleans(),
    )
    def end(self, number: int, count: int, part: float, *, again: bool) -> None:
        for _ in range(min(count, len(self.fleet.calls))):
            call = self.fleet.calls[number % len(self.fleet.calls)]
            call.relay.end(call, int(call.permit.reserved * part) if call.runs else 0)
            if again:  # another one, before the judge knows that this one is over
                call.relay.call(call.key, call.claim)

    @rule(
        relay=st.integers(0, 2),
        fate=st.sampled_from(["arrives"] * 5 + ["is lost", "reply is lost", "is late"]),
        beat=st.booleans(),
    )
    def exchange(self, relay: int, fate: str, beat: bool) -> None:
        self.fleet.relays[relay].exchange(fate, beat=beat)

    @precondition(lambda self: self.fleet.late and not self.fleet.down)
    @rule()
    def come_late(self) -> None:
        self.fleet.come_late()

    @rule(relay=st.integers(0, 2))
    def flush(self, relay: int) -> None:
        if self.fleet.relays[relay].alive and not self.fleet.down:
            self.fleet.relays[relay].flush()

    @rule(seconds=st.sampled_from([0.05, 1.0, 2.9, 5.0, 11.0, 31.0, 61.0]))
    def advance(self, seconds: float) -> None:
        self.fleet.advance(seconds)

    @rule(relay=st.integers(0, 2))
    def die(self, relay: int) -> None:
        if self.fleet.relays[relay].alive:
            self.fleet.relays[relay].die()
        elif not self.fleet.down:
            self.fleet.replace(relay)

    @rule()
    def database(self) -> None:
        if self.fleet.down:
            self.fleet.come_up()
        else:
            for relay in self.fleet.relays:  # all of them are there when it goes
                relay.exchange()
            self.fleet.down = True
            for relay in self.fleet.relays:
                relay.exchange()

    @invariant()
    def holds(self) -> None:
        for key in self.keys:
            self.fleet.check(key)

    def teardown(self) -> None:
        fleet = self.fleet
        fleet.come_up()
        for call in list(fleet.calls):
            call.relay.end(call, 0)
        fleet.late.clear()
        fleet.relays[0].alive or fleet.replace(0)  # type: ignore[func-returns-value]
        for _ in range(30):  # seconds after which nothing counts any more
            for relay in fleet.relays:
                if relay.alive:
                    relay.flush()
                    relay.talk()
            fleet.advance(BEAT_S)
        for key in self.keys[:4]:
            self.use_all_of(key)

    def use_all_of(self, key: Any) -> None:
        """One relay alone can have all of a key, once the others have heard of it."""
        fleet, limits = self.fleet, key.limits
        if limits.monthly_tokens is not None:
            fleet.judge.stored[key.id] = 0  # another month
        wanted = min(limits.rpm or 1_000, limits.concurrency or 1_000)
        made: list[Call] = []
        for _ in range(4):
            made += running(calls(fleet, 0, wanted - len(made), key))
            fleet.check(key)
            for relay in fleet.relays[1:]:
                if relay.alive:
                    relay.talk()
        assert len(made) == wanted
        for call in made:
            call.relay.end(call, 0)


def test_what_was_used_is_not_used_again_before_the_judge_hears_of_it() -> None:
    fleet, key = LimitedFleet(), limited_key(concurrency=3, tpm=1_000)
    for _ in range(10):
        for call in running(calls(fleet, 0, 3, key, small(100)) + fleet.calls):
            call.relay.end(call, 100)
            fleet.relays[0].call(key, small(100))  # with what the relay was given for the other one
            fleet.check(key)


def test_tokens_that_came_into_the_usage_are_not_held_any_more() -> None:
    fleet, key = LimitedFleet(), limited_key(monthly_tokens=1_000)
    for _ in range(40):
        for call in running(calls(fleet, 0, 3, key, small(100))):
            call.relay.end(call, 100)
        fleet.relays[0].flush()
        for _ in range(3):
            fleet.relays[0].call(key, small(100))
        fleet.check(key)


def test_requests_wait_no_longer_than_they_may() -> None:
    fleet, key = LimitedFleet(), limited_key(rpm=30)
    fleet.down = True
    call = fleet.relays[0].call(key)
    assert call is not None
    fleet.relays[0].exchange()
    assert call.error is None
    fleet.advance(MAX_WAIT_S)
    fleet.relays[0].exchange()
    assert isinstance(call.error, WaiError)
    assert call.error.fault is Fault.OVERLOADED
    fleet.come_up()
    assert len(running(calls(fleet, 0, 31, key))) == 30


def test_a_relay_that_is_cut_off_alone_uses_its_share_only_as_long_as_its_lease() -> None:
    fleet, key = LimitedFleet(), limited_key(concurrency=60)
    call = calls(fleet, 0, 1, key)[0]
    call.relay.end(call, 0)
    fleet.relays[0].talk()
    fleet.relays[1].talk()
    assert fleet.relays[0].admission.enter(key, fleet.now + 11.9, 0.0).asking is None
    assert fleet.relays[0].admission.enter(key, fleet.now + 12.1, 0.0).asking is not None


@pytest.mark.parametrize("before", [{}, {"rpm": 100_000}])
def test_what_runs_at_one_relay_when_a_limit_is_set_counts_at_the_others(
    before: dict[str, Any],
) -> None:
    fleet, limited = LimitedFleet(), limited_key(concurrency=3, **before)
    made = calls(fleet, 0, 2, limited_key(**before))
    assert len(running(made)) == 2
    for relay in fleet.relays:
        relay.admission.limits_changed(limited, fleet.now)
        relay.talk()
    assert len(running(calls(fleet, 1, 5, limited))) == 1
    made[0].relay.end(made[0], 0)
    fleet.relays[0].talk()
    assert len(running(calls(fleet, 2, 5, limited))) == 1
    fleet.check(limited)


def test_what_one_relay_let_in_before_a_limit_was_set_counts_at_the_others_for_its_minute() -> None:
    fleet, limited = LimitedFleet(), limited_key(rpm=10)
    for call in calls(fleet, 0, 8, limited_key()):
        call.relay.end(call, 0)
    fleet.relays[0].admission.limits_changed(limited, fleet.now)
    fleet.relays[0].talk()
    assert len(running(calls(fleet, 1, 12, limited))) == 2
    fleet.check(limited)
    fleet.advance(61.0)
    for relay in fleet.relays:
        relay.talk()
    assert len(running(calls(fleet, 1, 12, limited))) == 10


def test_a_share_of_a_former_limit_lets_nobody_in_also_if_its_answer_comes_late() -> None:
    fleet, wide, tight = LimitedFleet(), limited_key(rpm=6_000), limited_key(rpm=4)
    relay = fleet.relays[0]
    calls(fleet, 0, 3, wide)
    relay.talk()
    relay.admission.beat(fleet.now)
    relay.call(wide)
    relay.admission._ask_for(relay.admission._shares[wide.id])
    asks = relay.admission.asks(fleet.now)
    reply = fleet.judge.exchange(relay.name, asks, fleet.now)
    relay.admission.limits_changed(tight, fleet.now)
    relay.admission.hear(asks, reply, fleet.now, fleet.now, fleet.now)
    assert running(calls(fleet, 0, 5, tight)) == []
    fleet.check(tight)


def test_headers_tell_what_the_judge_has_left_and_what_is_held_here() -> None:
    fleet, key = LimitedFleet(), limited_key(rpm=30, tpm=10_000)
    assert dict(fleet.relays[0].admission.headers(key, fleet.now)) == {
        b"x-ratelimit-limit-requests": b"30",
        b"x-ratelimit-remaining-requests": b"30",
        b"x-ratelimit-reset-requests": b"0s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"10000",
        b"x-ratelimit-reset-tokens": b"0s",
    }
    for call in calls(fleet, 1, 4, key, small(1_000)):
        call.relay.end(call, 900)
    fleet.relays[1].talk()
    calls(fleet, 0, 1, key, small(1_000))
    told = dict(fleet.relays[0].admission.headers(key, fleet.now))
    assert told[b"x-ratelimit-remaining-requests"] == b"25"
    assert told[b"x-ratelimit-remaining-tokens"] == b"5400"
    assert told[b"x-ratelimit-reset-requests"] == b"1m0s"


AnyOrder.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_no_order_of_events_passes_a_limit = AnyOrder.TestCase
