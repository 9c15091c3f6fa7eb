"""Who only fails, or is refused often, is remembered until it works or nobody tries any more."""

from __future__ import annotations

from tests.relay.conftest import Clock
from wai_relay.contracts.api_keys import TRIAL_KEY_ID
from wai_relay.contracts.records import Attempt, RequestRecord
from wai_relay.observe.outcomes import (
    FAILURES,
    MAX_KEPT,
    RATE_REFUSALS,
    REFUSALS,
    WINDOW_S,
    Outcomes,
)


class Kept:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def finish(self, record: RequestRecord) -> None:
        self.records.append(record)


class Rig:
    def __init__(self) -> None:
        self.clock, self.kept = Clock(), Kept()
        self.outcomes = Outcomes(self.kept, self.clock)

    def answer(self, *attempts: tuple[str, str], status: int = 200, **fields: object) -> None:
        """A request that was tried at these nodes, each with its fault ("": it answered)."""
        record = RequestRecord("req", 0.0, "POST", "/v1/chat/completions", "key_1", "m")
        record.tried = [Attempt(node, "m", "", 0.0, fault=fault) for node, fault in attempts]
        record.attempts = len(attempts)
        if attempts:
            record.node, record.served_model = attempts[-1][0], "m"
            record.fault = attempts[-1][1]
        record.status = status
        for name, value in fields.items():
            setattr(record, name, value)
        self.outcomes.finish(record)

    def fail(self, times: int = FAILURES, node: str = "box") -> None:
        for _ in range(times):
            self.answer((node, "upstream_broke"), status=500)

    def refuse(self, fault: str, times: int = REFUSALS, **fields: object) -> None:
        for _ in range(times):
            self.answer(status=429, fault=fault, **fields)

    @property
    def failing(self) -> list[tuple[str, int]]:
        return [(one.node, one.count) for one in self.outcomes.failing()]

    @property
    def refused(self) -> list[tuple[str, int]]:
        return [(one.key, count) for one, count in self.outcomes.refused()]


def test_a_node_that_answers_only_errors_is_told_after_the_third_and_not_before() -> None:
    rig = Rig()
    rig.fail(FAILURES - 1)
    assert rig.failing == []
    rig.fail(1)
    assert rig.failing == [("box", FAILURES)]


def test_one_answer_takes_it_all_back() -> None:
    rig = Rig()
    rig.fail()
    rig.answer(("box", ""))
    assert rig.failing == []
    rig.fail(1)
    assert rig.failing == []


def test_an_answer_after_another_node_failed_counts_for_each_what_it_did() -> None:
    rig = Rig()
    rig.fail(node="good")
    for _ in range(FAILURES):
        rig.answer(("bad", "upstream_timeout"), ("good", ""))
    assert rig.failing == [("bad", FAILURES)]


def test_a_caller_that_went_away_shows_nothing_of_the_node() -> None:
    rig = Rig()
    rig.fail()
    rig.answer(("box", ""), status=200, cancelled=True)
    rig.answer(("bad", "upstream_broke"), ("box", ""), cancelled=True)
    assert rig.failing == [("box", FAILURES)]


def test_what_the_caller_did_wrong_is_not_the_nodes() -> None:
    rig = Rig()
    for fault in ("context_length_exceeded", "bad_request", "overloaded"):
        for _ in range(FAILURES):
            rig.answer(("box", fault), status=400)
    assert rig.failing == []


def test_who_is_not_asked_any_more_is_forgotten() -> None:
    rig = Rig()
    rig.fail()
    rig.clock.now += WINDOW_S
    assert rig.failing == []


def test_a_key_whose_month_is_used_up_is_told_until_it_is_served() -> None:
    rig = Rig()
    rig.refuse("insufficient_quota", REFUSALS - 1)
    assert rig.refused == []
    rig.refuse("insufficient_quota", 1)
    assert rig.refused == [("key_1", REFUSALS)]
    rig.answer(("box", ""))
    assert rig.refused == []


def test_a_program_that_waits_and_tries_again_is_no_problem() -> None:
    rig = Rig()
    for _ in range(RATE_REFUSALS):
        rig.refuse("rate_limit_exceeded", 1)
        rig.clock.now += WINDOW_S / (RATE_REFUSALS - 1)
    assert rig.refused == []


def test_a_key_that_is_nearly_always_over_its_limits_is_told_though_some_are_served() -> None:
    rig = Rig()
    for _ in range(RATE_REFUSALS):
        rig.refuse("rate_limit_exceeded", 1)
        rig.answer(("box", ""))
    assert rig.refused == [("key_1", RATE_REFUSALS)]


def test_a_key_that_is_not_good_is_told_and_a_strangers_guess_is_not() -> None:
    rig = Rig()
    rig.refuse("invalid_api_key", key_id="", refused_key="wai_sk_abcd")
    rig.refuse("invalid_api_key", key_id="", refused_key="")
    assert rig.refused == [("wai_sk_abcd", REFUSALS)]


def test_what_is_kept_is_bounded_and_the_latest_stay() -> None:
    rig = Rig()
    for number in range(MAX_KEPT + 5):
        rig.fail(node=f"n{number}")
        rig.refuse("invalid_api_key", key_id="", refused_key=f"wai_sk_{number:04}")
    assert len(rig.failing) == len(rig.refused) == MAX_KEPT
    assert rig.failing[-1] == (f"n{MAX_KEPT + 4}", FAILURES)


def test_what_the_doctor_asks_is_seen_here_and_counted_nowhere() -> None:
    rig = Rig()
    rig.fail()
    rig.kept.records.clear()
    rig.answer(("box", ""), key_id=TRIAL_KEY_ID)
    assert rig.failing == []
    assert rig.kept.records == []
