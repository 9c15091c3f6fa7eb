"""Pace: seconds per token as a line over the other answers, sane with little or odd evidence."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_relay.policy.pace import ASSUMED_SLOTS, ASSUMED_WHEN_FULL, LEAST_WHEN_FULL, Pace


def test_a_line_is_found_in_noise() -> None:
    pace, rng = Pace(), random.Random(1)
    for _ in range(300):
        others = rng.randrange(20)
        pace.add(others, (0.02 + 0.004 * others) * rng.uniform(0.8, 1.2))
    assert pace.alone_s == pytest.approx(0.02, rel=0.15)
    assert pace.each_s == pytest.approx(0.004, rel=0.15)


def test_one_load_only_says_nothing_of_the_slope() -> None:
    pace = Pace()
    for _ in range(50):
        pace.add(3, 0.05)
    assert pace.at(3) == pytest.approx(0.05)
    assert pace.each_s == pytest.approx(pace.alone_s * ASSUMED_WHEN_FULL / ASSUMED_SLOTS, rel=0.05)


def test_a_stalled_answer_is_no_new_speed_and_many_are() -> None:
    pace = Pace()
    for _ in range(20):
        pace.add(0, 0.02)
    pace.add(0, 20.0)
    assert pace.alone_s < 0.025
    for _ in range(200):
        pace.add(0, 0.1)
    assert pace.alone_s == pytest.approx(0.1, rel=0.2)


def test_speed_that_seems_to_grow_with_load_is_not_believed() -> None:
    pace = Pace()
    for others in (0, 1, 2, 3, 8):
        pace.add(others, 0.05 / (1 + others))
    assert pace.each_s >= pace.alone_s * LEAST_WHEN_FULL / ASSUMED_SLOTS * 0.99


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(1e-6, 100.0)), min_size=1, max_size=60))
def test_it_never_expects_less_than_nothing(samples: list[tuple[float, float]]) -> None:
    pace = Pace()
    for others, token_s in samples:
        pace.add(others, token_s)
        assert pace.alone_s > 0.0
        assert pace.each_s > 0.0


def test_a_node_with_more_slots_is_assumed_to_crowd_less() -> None:
    small, large = Pace(2), Pace(16)
    for pace in (small, large):
        pace.add(0, 0.02)
    assert small.each_s > 4 * large.each_s
