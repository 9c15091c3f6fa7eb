"""Quantiles from bins are off by less than a bin, however the bins were added up."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_relay.contracts.histogram import LAST_BIN, bin_of, quantile

TIMES = st.lists(st.floats(1.0, 1_000_000.0), min_size=1, max_size=50)


@given(TIMES, st.sampled_from((0.5, 0.9, 0.99)))
def test_a_quantile_is_right_to_a_tenth(times: list[float], share: float) -> None:
    exact = sorted(times)[max(math.ceil(len(times) * share), 1) - 1]
    assert quantile(Counter(map(bin_of, times)), share) == pytest.approx(exact, rel=0.1)


@given(TIMES, TIMES)
def test_added_bins_are_the_bins_of_all(ones: list[float], others: list[float]) -> None:
    together = Counter(map(bin_of, ones)) + Counter(map(bin_of, others))
    assert together == Counter(map(bin_of, ones + others))


def test_the_ends_hold_whatever_comes() -> None:
    assert bin_of(0.0) == bin_of(-1.0) == 0
    assert bin_of(1e12) == LAST_BIN
    assert quantile({}, 0.5) is None
