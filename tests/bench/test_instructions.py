"""Counts of instructions are read from callgrind's files, and compared with those that are kept."""

from __future__ import annotations

import pytest

from bench.instructions import compare, measured


def test_only_what_is_between_run_and_stop_counts() -> None:
    dumps = [f"events: Ir\nfn=(1) a\n1 2\ntotals: {n}\n" for n in (900, 10, 500, 20, 700)]
    assert measured(dumps) == 30


def test_a_python_whose_calls_callgrind_does_not_see_is_said() -> None:
    with pytest.raises(ValueError, match="getloadavg"):
        measured(["totals: 900\n"])


def test_a_count_that_is_over_the_tolerance_is_named() -> None:
    kept = {"relay-request": 1000, "node-request": 1000}
    more = compare({"relay-request": 1029, "node-request": 1040, "new": 5}, kept)
    assert more == ["node-request: 1,040 instructions, 4.0% more than 1,000"]
