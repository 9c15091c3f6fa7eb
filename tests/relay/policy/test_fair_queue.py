"""Fair queue: bounded, fair between keys, and nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault, NodeUnavailable
from wai_relay.policy.fair_queue import FairQueue


def order(queue: FairQueue[str]) -> list[str]:
    return [entry.item for entry in queue]


def test_keys_take_turns_however_many_one_of_them_sends() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(4):
        queue.push("a", f"a{i}", work=10)
    for i in range(2):
        queue.push("b", f"b{i}", work=10)
    assert order(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_key_with_heavy_requests_gets_fewer_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(3):
        queue.push("heavy", f"h{i}", work=30)
    for i in range(4):
        queue.push("light", f"l{i}", work=10)
    assert order(queue) == ["h0", "l0", "l1", "l2", "h1", "l3", "h2"]


def test_a_higher_priority_goes_first_and_the_lower_still_moves() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(3):
        queue.push("batch", f"b{i}", work=10)
    for i in range(9):
        queue.push("chat", f"c{i}", work=10, priority=1)
    names = order(queue)
    assert names.index("b1") == 5
    assert names.index("b2") == 10


def test_one_that_was_served_and_comes_back_does_not_jump_the_line() -> None:
    queue: FairQueue[str] = FairQueue()
    first, _ = queue.push("a", "a0", work=10)
    queue.push("b", "b0", work=10)
    queue.take(first)
    queue.push("a", "a1", work=10)
    assert order(queue) == ["b0", "a1"]


def test_an_entry_lets_those_of_its_own_key_pass_and_the_keys_turns_stay() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "book", work=90, lets_pass=9)
    queue.push("b", "other", work=10, lets_pass=9)
    queue.push("a", "question", work=10)
    assert order(queue) == ["question", "other", "book"]


def test_those_that_let_others_pass_do_not_pass_each_other() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(4):
        queue.push("a", f"a{i}", work=10, lets_pass=9)
    assert order(queue) == ["a0", "a1", "a2", "a3"]


def test_an_entry_lets_no_more_pass_than_it_said() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "book", work=10, lets_pass=2)
    for i in range(4):
        queue.push("a", f"a{i}", work=10)
    assert order(queue) == ["a0", "a1", "book", "a2", "a3"]


def test_one_in_a_hurry_goes_first_of_its_key() -> None:
    queue: FairQueue[str] = FairQueue()
    book, _ = queue.push("a", "book", work=10, lets_pass=9)
    queue.push("b", "b0", work=10)
    for i in range(2):
        queue.push("a", f"a{i}", work=10)
    queue.hurry(book)
    queue.push("a", "a2", work=10)
    assert order(queue) == ["book", "b0", "a0", "a1", "a2"]


def test_leaving_moves_those_behind_up() -> None:
    queue: FairQueue[str] = FairQueue()
    gone, _ = queue.push("a", "a0", work=100)
    queue.push("a", "a1", work=10)
    for i in range(5):
        queue.push("b", f"b{i}", work=10)
    queue.discard(gone)
    queue.discard(gone)
    assert order(queue)[0] == "a1"


def test_a_full_queue_takes_its_place_from_the_key_that_fills_it() -> None:
    queue: FairQueue[str] = FairQueue(limit=3)
    for i in range(3):
        queue.push("greedy", f"g{i}", work=1)
    _, displaced = queue.push("modest", "m0", work=1)
    assert displaced is not None
    assert displaced.item == "g2"
    with pytest.raises(NodeUnavailable) as refused:
        queue.push("greedy", "g3", work=1)
    assert refused.value.fault is Fault.QUEUE_FULL
    assert refused.value.retry_after_s


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(1, 1000), st.integers(-5, 5), st.integers(0, 9)
        ),
        min_size=1,
        max_size=60,
    )
)
def test_nobody_starves_beside_a_key_that_never_stops(
    pushes: list[tuple[str, int, int, int]],
) -> None:
    queue: FairQueue[str] = FairQueue(limit=1000)
    waiting = set()
    for number, (key, work, priority, lets_pass) in enumerate(pushes):
        queue.push(key, f"{number}", work=work, priority=priority, lets_pass=lets_pass)
        waiting.add(f"{number}")
    for _ in range(600_000):  # a greedy key adds one of the highest class for each that is served
        queue.push("greedy", "greedy", work=1000, priority=3)
        served = next(iter(queue))
        queue.take(served)
        waiting.discard(served.item)
        if not waiting:
            break
    assert not waiting
