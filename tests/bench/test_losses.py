"""The report's losses: each figure is judged by what the winner gives for it."""

from __future__ import annotations

import pytest

from bench.routing.losses import BOUND, OURS, Reason, Row, compared, verdict
from bench.routing.simulation import Outcome


def row(policy: str, p50: float, p99: float, end: float, load: float = 0.5) -> Row:
    outcome = Outcome(p50, p99, p50, end, 0.01, 1.0, 0.0, 0.0)
    return Row("fleet", "trace", load, 1.0, 1.0, policy, outcome)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ((0.8, 12.0, 5.0), Reason.WAITS),
        ((0.8, 10.0, 6.0), Reason.ENDS),
        ((0.8, 10.2, 5.1), Reason.PLAIN),
        ((0.991, 10.5, 5.2), None),
    ],
)
def test_a_better_median_is_told_with_its_price(
    theirs: tuple[float, float, float], reason: Reason | None
) -> None:
    _, lost = compared([row(OURS, 1.0, 10.0, 5.0), row("other", *theirs)], "p50_s")
    assert [loss.reason for loss in lost] == ([] if reason is None else [reason])


def test_a_better_p99_that_the_median_pays_for_is_told_so() -> None:
    _, lost = compared([row(OURS, 1.0, 10.0, 5.0), row("other", 2.0, 8.0, 5.0)], "p99_s")
    assert [loss.reason for loss in lost] == [Reason.MEDIAN]


def test_what_nobody_notices_is_not_called_a_plain_loss() -> None:
    _, lost = compared([row(OURS, 0.108, 10.0, 5.0), row("other", 0.1, 10.0, 5.0)], "p50_s")
    assert [loss.reason for loss in lost] == [Reason.UNSEEN]


def test_the_bound_is_no_rival_and_each_loss_is_listed_once() -> None:
    rows = [
        *(row(OURS, 1.0, 10.0, 5.0), row("other", 0.5, 20.0, 5.0), row(BOUND, 0.1, 0.1, 0.1)),
        *(row(OURS, 1.0, 10.0, 5.0, 0.7), row("other", 2.0, 20.0, 9.0, 0.7)),
        row(BOUND, 0.1, 0.1, 0.1, 0.7),
    ]
    lines = verdict(rows)
    assert lines[0].endswith(
        "wai is lowest in 1 of 2 cells, and at most 3 % above the lowest in 1."
    )
    listed = [line for line in lines if line.startswith("| fleet, trace")]
    assert listed[1:] == [
        "| fleet, trace, 50% | p50 | 1 s | 0.5 s | other | p99 20, end 5 | p99 10, end 5 |"
    ]
    assert "| other | 1.00 | 2.00 | 1.34 |" in lines
