"""Cool-down: failing nodes rest, longer each time, and come back by one good answer."""

from __future__ import annotations

from wai_relay.policy.cooldown import (
    FIRST_REST_S,
    FORGET_HALF_S,
    LEAST_REST_S,
    LONGEST_REST_S,
    MOST_TOOK_S,
    PROBE_AFTER_PLACED,
    PROBE_S,
    REFUSALS_IN_ROW,
    Cooldown,
)


def failing(times: int, now: float = 0.0) -> Cooldown:
    cooldown = Cooldown()
    for _ in range(times):
        cooldown.failed(now)
    return cooldown


def test_a_single_failure_is_no_reason_to_rest() -> None:
    assert not failing(2).cooling(0.0)
    assert failing(3).cooling(0.0)


def test_a_node_that_mostly_fails_rests_though_never_thrice_in_a_row() -> None:
    cooldown = Cooldown()
    for good in (False, False, True, False, False):
        cooldown.succeeded() if good else cooldown.failed(0.0)
    assert cooldown.cooling(0.0)


def test_one_probe_at_a_time_and_a_good_one_ends_it() -> None:
    cooldown = failing(3)
    now = FIRST_REST_S
    assert not cooldown.cooling(now)
    cooldown.sent(now)
    assert cooldown.cooling(now)
    cooldown.succeeded()
    assert cooldown.well


def test_a_probe_that_was_the_callers_own_mistake_proves_nothing_and_the_next_one_goes() -> None:
    cooldown = failing(3)
    cooldown.sent(FIRST_REST_S)
    cooldown.refused(FIRST_REST_S)
    assert not cooldown.well
    assert not cooldown.cooling(FIRST_REST_S)
    cooldown.sent(FIRST_REST_S)
    cooldown.failed(FIRST_REST_S)
    assert cooldown.seconds_left(FIRST_REST_S) == 2 * FIRST_REST_S


def test_refused_requests_do_not_hide_that_all_others_fail() -> None:
    cooldown = Cooldown()
    for _ in range(3):
        cooldown.refused(0.0)
        cooldown.failed(0.0)
    assert cooldown.cooling(0.0)


def test_a_node_that_refuses_all_counts_as_failing_until_it_serves_one_and_never_rests() -> None:
    cooldown = Cooldown()
    for _ in range(REFUSALS_IN_ROW - 1):
        cooldown.refused(0.0)
    assert cooldown.spotless, "callers make mistakes"
    for _ in range(5):
        cooldown.refused(0.0)
    assert cooldown.failure_rate(0.0) > 0.5
    assert cooldown.well
    cooldown.succeeded()
    assert cooldown.failure_rate(6 * FORGET_HALF_S) == 0.0
    cooldown.refused(6 * FORGET_HALF_S)
    assert cooldown.spotless, "the row is broken"


def test_each_failed_probe_doubles_the_rest_up_to_its_bound() -> None:
    cooldown, now, rests = failing(3), 0.0, []
    for _ in range(6):
        rests.append(cooldown.seconds_left(now))
        now += cooldown.seconds_left(now)
        cooldown.sent(now)
        cooldown.failed(now)
    assert rests == [5.0, 10.0, *[LONGEST_REST_S] * 4]


def test_a_probe_whose_end_is_never_told_does_not_block_the_node_for_ever() -> None:
    cooldown = failing(3)
    cooldown.sent(FIRST_REST_S)
    assert not cooldown.cooling(FIRST_REST_S + PROBE_S)


def test_failures_of_requests_that_were_under_way_do_not_lengthen_the_rest() -> None:
    cooldown = failing(8)
    assert cooldown.seconds_left(0.0) == FIRST_REST_S


def test_a_node_that_never_served_rests_after_one_failure_that_another_bettered() -> None:
    cooldown = Cooldown()
    cooldown.blamed(0.0)
    assert cooldown.cooling(0.0)


def test_a_node_that_served_rests_after_two_failures_that_others_bettered() -> None:
    cooldown = Cooldown()
    cooldown.succeeded()
    cooldown.blamed(0.0)
    assert not cooldown.cooling(0.0)
    cooldown.blamed(0.0)
    assert cooldown.cooling(0.0)


def test_a_resting_node_is_probed_sooner_where_many_requests_were_placed() -> None:
    cooldown = Cooldown()
    cooldown.blamed(0.0, 100)
    assert cooldown.cooling(LEAST_REST_S, 100 + PROBE_AFTER_PLACED - 1)
    assert cooldown.cooling(LEAST_REST_S / 2, 100 + PROBE_AFTER_PLACED)
    assert not cooldown.cooling(LEAST_REST_S, 100 + PROBE_AFTER_PLACED)
    cooldown.sent(LEAST_REST_S, 100 + PROBE_AFTER_PLACED)
    cooldown.blamed(LEAST_REST_S, 100 + PROBE_AFTER_PLACED)  # the probe failed
    assert cooldown.seconds_left(LEAST_REST_S) == 2 * FIRST_REST_S


def test_the_share_of_failures_is_known_and_forgotten() -> None:
    cooldown = Cooldown()
    cooldown.succeeded()
    cooldown.failed(1.0)
    rate = cooldown.failure_rate(1.0)
    assert rate > 0.2
    assert cooldown.failure_rate(1.0 + FORGET_HALF_S) < 0.6 * rate
    cooldown.failed(2.0)
    assert cooldown.failure_rate(2.0) > rate
    assert cooldown.failure_rate(60.0) == 0.0
    assert cooldown.spotless


def test_a_failure_that_took_long_is_remembered_for_longer_but_not_for_ever() -> None:
    def after(took_s: float, later_s: float) -> float:
        cooldown = Cooldown()
        cooldown.succeeded()
        cooldown.blamed(0.0, took_s=took_s)
        return cooldown.failure_rate(later_s)

    assert after(0.1, 30.0) == 0.0
    assert after(20.0, 30.0) > 0.1
    assert after(3600.0, 30.0) == after(MOST_TOOK_S, 30.0)
    assert after(3600.0, 600.0) == 0.0


def test_a_node_that_fails_one_in_ten_is_not_forgiven_by_a_few_good_answers() -> None:
    cooldown, rates = Cooldown(), []
    for step in range(100):
        now = step * 0.1
        rates.append(cooldown.failure_rate(now))
        if step % 10 == 5:
            cooldown.blamed(now, took_s=12.0)
        else:
            cooldown.succeeded()
    assert all(0.05 <= rate <= 0.2 for rate in rates[20:])
    assert not cooldown.cooling(10.0)
