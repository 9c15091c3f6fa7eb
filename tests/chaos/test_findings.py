"""What `make chaos` says of what it saw: nothing that went wrong is left unsaid."""

from __future__ import annotations

import pytest

from tests.chaos.callers import Watched
from tests.chaos.findings import Findings, percentile
from tests.harness.counted import Counted


def whole(wanted: int = 3) -> Counted:
    return Counted(wanted, numbers=list(range(wanted)), finished=True)


def judged(answer: Counted, *, may_refuse: bool = False) -> list[str]:
    found = Findings("some fault", "some promise", answers=[answer])
    found.judge(may_refuse=may_refuse, resumes_within_s=None)
    return found.broken


def test_a_whole_stream_breaks_no_promise() -> None:
    assert judged(whole()) == []


@pytest.mark.parametrize(
    "answer",
    [
        Counted(3, numbers=[0, 2], finished=True),
        Counted(3, numbers=[0, 1, 1, 2], finished=True),
        Counted(3, numbers=[0, 2, 1], finished=True),
        Counted(3, numbers=[0, 1], error="node_lost"),
        Counted(3, numbers=[0, 1], broken="TimeoutError()"),
        Counted(3, refusal="503 no_node"),
    ],
    ids=["lost", "repeated", "reordered", "an error event", "a broken connection", "refused"],
)
def test_whatever_went_wrong_with_a_stream_breaks_the_promise(answer: Counted) -> None:
    assert judged(answer)


def test_a_refusal_is_right_while_the_node_is_away() -> None:
    assert judged(Counted(3, refusal="503 no_node"), may_refuse=True) == []


def test_streams_that_go_on_too_late_break_the_promise() -> None:
    found = Findings("some fault", "some promise", resumed=[0.1] * 50 + [2.5])
    found.judge(may_refuse=False, resumes_within_s=2.0)
    assert found.broken
    assert "BROKEN" in found.text()


def test_a_kind_that_was_left_out_says_why() -> None:
    found = Findings("some fault", "some promise", left_out="it needs a TUN device")
    assert found.text() == "some fault: LEFT OUT: it needs a TUN device"


@pytest.mark.parametrize(
    ("share", "figure"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentiles(share: float, figure: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == figure


def test_no_figures_have_no_percentile() -> None:
    assert percentile([], 0.99) == 0.0


def test_a_stream_resumes_with_the_first_number_after_the_fault() -> None:
    one = Watched(began_at=0.0, arrivals=[1.0, 2.0, 9.5, 9.6])
    assert one.was_flowing_at(5.0)
    assert one.resumed_after_s(5.0) == 4.5
    assert one.resumed_after_s(10.0) is None


def test_a_stream_whose_first_number_came_after_the_fault_did_not_stand_still() -> None:
    assert not Watched(began_at=0.0, arrivals=[6.0]).was_flowing_at(5.0)
