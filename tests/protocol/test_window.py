"""A stream's receiving half: its credit, and how its window grows and shrinks."""

from __future__ import annotations

import pytest

from wai_protocol.errors import Fault, LocalProtocolError, RemoteProtocolError
from wai_protocol.limits import CREDIT_EVERY_BYTES, MAX_STREAM_WINDOW_BYTES
from wai_protocol.window import (
    HEADROOM,
    SHARED_HEADROOM,
    SHARED_WINDOW_BYTES,
    TIMED_S,
    GrowthBudget,
    ReceiveWindow,
)


def window(size: int = 1000) -> ReceiveWindow:
    return ReceiveWindow(1, size, 0.0)


def test_a_peer_that_sends_more_than_its_credit_is_refused() -> None:
    receiver = window(10)
    receiver.receive(10)
    with pytest.raises(RemoteProtocolError) as refusal:
        receiver.receive(1)
    assert refusal.value.fault is Fault.FLOW_CONTROL


def test_using_more_than_came_is_our_own_mistake() -> None:
    receiver = window(10)
    receiver.receive(4)
    receiver.consume(4, None, GrowthBudget(0), 0.0)
    with pytest.raises(LocalProtocolError):
        receiver.consume(1, None, GrowthBudget(0), 0.0)


def test_credit_is_given_back_at_half_a_window_and_all_of_it() -> None:
    receiver = window()
    receiver.receive(1000)
    budget = GrowthBudget(1 << 30)
    assert receiver.consume(499, None, budget, 9.0) == 0
    assert receiver.consume(1, None, budget, 9.0) == 500
    assert receiver.consume(500, None, budget, 9.0) == 500


def test_a_window_that_is_the_brake_grows_and_only_that() -> None:
    budget = GrowthBudget(1 << 30)
    receiver = window()
    receiver.receive(1000)
    assert receiver.consume(500, 0.2, budget, 0.01) == 500 + 7000
    assert receiver.consume(500, 0.2, budget, 0.01) == 0  # half of 8000 is not used yet
    assert receiver.size == 8000
    slow = window()
    slow.receive(1000)
    assert slow.consume(500, 0.2, budget, 0.5) == 500


def test_a_window_grows_to_a_few_round_trips_of_what_its_reader_takes() -> None:
    receiver = window()
    receiver.receive(1000)
    receiver.consume(500, 0.25, GrowthBudget(1 << 30), 0.125)
    assert receiver.size == HEADROOM * 0.25 * 4000


def test_beside_other_streams_a_window_grows_to_no_more_than_they_can_wait_for() -> None:
    receiver = window()
    receiver.receive(1000)
    receiver.consume(500, 0.25, GrowthBudget(1 << 30), 0.125, alone=False)
    assert receiver.size == SHARED_HEADROOM * 0.25 * 4000


def test_a_window_shrinks_by_kept_credit_once_other_streams_wait_behind_it() -> None:
    budget = GrowthBudget(8 * SHARED_WINDOW_BYTES)
    receiver = window(SHARED_WINDOW_BYTES)
    receiver.receive(SHARED_WINDOW_BYTES)
    half = SHARED_WINDOW_BYTES // 2
    receiver.consume(half, 1.0, budget, 0.1)
    assert receiver.size == 5 * SHARED_WINDOW_BYTES  # the budget's half
    now, given = 0.1, 0
    for _ in range(20):
        now += 1.0
        receiver.receive(half)
        given += receiver.consume(half, 0.0001, budget, now, alone=False)
    assert receiver.size == SHARED_WINDOW_BYTES
    assert given == 20 * half - 4 * SHARED_WINDOW_BYTES
    assert budget.take(8 * SHARED_WINDOW_BYTES)  # what it had claimed is there again


def test_one_quick_turn_on_a_short_way_makes_no_large_window() -> None:
    budget = GrowthBudget(1 << 30)
    receiver = window()
    receiver.receive(1000)
    assert receiver.consume(500, 0.001, budget, 0.0001) == 500
    assert receiver.consume(500, 0.001, budget, 0.0002) == 500
    receiver.receive(1000)
    assert receiver.consume(500, 0.001, budget, TIMED_S) == 500  # 75 kB/s need no more
    assert receiver.size == 1000


def test_time_before_the_answer_began_makes_no_slow_reader() -> None:
    receiver = window()
    receiver.measure_from(9.0)  # a long prefill
    receiver.receive(1000)
    assert receiver.consume(500, 0.2, GrowthBudget(1 << 30), 9.01) == 500 + 7000


def test_a_stream_need_not_find_out_again_what_an_earlier_one_found() -> None:
    budget = GrowthBudget(1 << 30)
    first = window()
    for _ in range(3):
        first.receive(first.credit)
        first.consume(first.size - first.credit, 1.0, budget, 0.0)
    second = window()
    second.receive(1000)
    second.consume(500, 1.0, budget, 0.0)
    assert second.size == first.size == 512_000


def test_the_sender_of_a_large_window_need_not_wait_for_half_of_it() -> None:
    receiver = window(MAX_STREAM_WINDOW_BYTES)
    receiver.receive(receiver.size)
    step = CREDIT_EVERY_BYTES
    assert receiver.consume(step - 1, 1.0, GrowthBudget(0), 0.0) == 0
    assert receiver.consume(1, 1.0, GrowthBudget(0), 0.0) == step


def test_a_window_stops_growing_at_its_bound() -> None:
    receiver = window(MAX_STREAM_WINDOW_BYTES - 10)
    receiver.receive(receiver.size)
    half = receiver.size // 2
    assert receiver.consume(half, 1.0, GrowthBudget(1 << 30), 0.0) == half + 10
    assert receiver.size == MAX_STREAM_WINDOW_BYTES


def test_growth_comes_out_of_both_budgets_and_goes_back_to_both() -> None:
    process = GrowthBudget(1500)
    session = GrowthBudget(10_000, above=process)
    other = GrowthBudget(10_000, above=process)
    receiver = window()
    receiver.receive(1000)
    assert receiver.consume(500, 1.0, session, 0.0) == 500 + 750  # half of what there is
    assert not other.take(751)  # refused above: nothing is claimed here either
    receiver.close(session)
    receiver.close(session)  # twice gives nothing back twice
    assert other.take(1500)
    assert not session.take(1)
    other.give_back(1500)
    assert session.take(1500)


def test_after_the_end_there_is_no_data_and_no_credit() -> None:
    receiver = window()
    receiver.receive(900)
    receiver.ended = True
    assert receiver.consume(900, 1.0, GrowthBudget(1 << 30), 0.0) == 0
    with pytest.raises(RemoteProtocolError):
        receiver.receive(1)
