"""When a node tries again, by a clock that the test moves."""

from __future__ import annotations

from wai_node.tunnel.backoff import (
    FIRST_S,
    LONGEST_PATIENCE_S,
    LONGEST_S,
    PATIENCE_S,
    QUICK_FOR_S,
    QUICK_S,
    YOUNG_S,
    Backoff,
)


def longest() -> Backoff:
    """One whose random share is all of the bound."""
    return Backoff(lambda: 1.0)


def fail_from(backoff: Backoff, now: float, until: float) -> list[float]:
    """The waits of tries that fail at once, from `now` on."""
    waits = []
    while now < until:
        waits.append(backoff.next_wait_s(now))
        now += waits[-1]
    return waits


def test_the_first_try_after_a_loss_goes_out_at_once() -> None:
    backoff = longest()
    backoff.connected(0.0)
    backoff.lost(100.0)
    assert backoff.next_wait_s(100.0) == 0.0
    assert backoff.next_wait_s(100.0) == FIRST_S


def test_tries_stay_quick_for_as_long_as_the_session_can_be_resumed() -> None:
    backoff = longest()
    backoff.connected(0.0, quick_for_s=300.0)
    backoff.lost(100.0)
    assert max(fail_from(backoff, 100.0, 400.0)[:-1]) <= QUICK_S


def test_tries_grow_rarer_after_that_and_never_stop() -> None:
    backoff = longest()
    backoff.connected(0.0, quick_for_s=60.0)
    backoff.lost(100.0)
    fail_from(backoff, 100.0, 161.0)
    assert set(fail_from(backoff, 200.0, 100_000.0)[5:]) == {LONGEST_S}


def test_a_node_whose_network_is_not_there_yet_at_its_start_tries_quickly() -> None:
    assert max(fail_from(longest(), 1000.0, 1000.0 + QUICK_FOR_S - QUICK_S)) <= QUICK_S


def test_a_finished_handshake_forgets_the_failures_before_it() -> None:
    backoff = longest()
    backoff.lost(0.0)
    fail_from(backoff, 0.0, 1000.0)
    backoff.connected(1000.0)
    backoff.lost(1000.0 + YOUNG_S)
    assert backoff.next_wait_s(1000.0 + YOUNG_S) == 0.0


def test_a_flapping_link_does_not_make_the_waits_grow() -> None:
    backoff, now, waits = longest(), 0.0, []
    for _ in range(100):
        backoff.connected(now)
        now += YOUNG_S / 2
        backoff.lost(now)
        waits.append(backoff.next_wait_s(now))
        now += waits[-1]
    assert set(waits) == {FIRST_S}  # nor are they so short that both ends do nothing else


def test_a_new_network_is_tried_at_once_even_after_a_night_without_one() -> None:
    backoff = longest()
    fail_from(backoff, 0.0, 10_000.0)
    backoff.begin_anew()
    assert backoff.next_wait_s(10_000.0) == 0.0
    assert max(fail_from(backoff, 10_000.0, 10_000.0 + QUICK_FOR_S / 2)) <= QUICK_S


def test_what_the_relay_asked_for_is_added_before_the_jitter() -> None:
    backoff = longest()
    assert backoff.next_wait_s(0.0, 5.0) == 5.0
    assert backoff.next_wait_s(0.0, 5.0) == 5.0 + FIRST_S


def test_a_slow_way_gets_more_patience_with_each_try_until_it_has_answered() -> None:
    backoff = longest()
    assert backoff.patience_s == PATIENCE_S
    backoff.stalled()
    assert backoff.patience_s == 2 * PATIENCE_S
    for _ in range(20):
        backoff.stalled()
    assert backoff.patience_s == LONGEST_PATIENCE_S
    backoff.connected(0.0)
    assert backoff.patience_s == PATIENCE_S
