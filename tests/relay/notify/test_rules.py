"""What is told and when: once, together, not in the night, and when it is over."""

from __future__ import annotations

import pytest

from wai_api.health import ProblemView
from wai_relay.notify.rules import GAP_S, GROUP_S, LONG_GAP_S, MANY, Announcer

AFTER_S = 60.0
STEP_S = 5.0


def problem(name: str) -> ProblemView:
    return ProblemView("node", name, "it is offline", "start it", f"node {name}")


class Rig:
    """Looks every five seconds, as the watch does."""

    def __init__(self, *known: str, after_s: float = AFTER_S) -> None:
        self.now = 1000.0
        self.rules = Announcer(after_s, [problem(name) for name in known])
        self.told: list[tuple[float, list[str], list[str], int]] = []

    def run(self, seconds: float, *wrong: str, quiet: bool = False) -> list[str]:
        """What is told meanwhile, in short: "+box" has begun, "-box" is over."""
        told: list[str] = []
        ends = self.now + seconds
        while self.now < ends:
            news = self.rules.look([problem(name) for name in wrong], self.now, quiet=quiet)
            if news is not None:
                begun = [one.subject for one in news.begun]
                over = [one.subject for one in news.over]
                self.told.append((self.now, begun, over, news.lasting))
                told += [f"+{name}" for name in begun] + [f"-{name}" for name in over]
            self.now += STEP_S
        return told


def test_a_problem_is_told_once_and_its_end_once() -> None:
    rig = Rig()
    assert rig.run(AFTER_S, "box") == []
    assert rig.run(3600, "box") == ["+box"]
    assert rig.run(AFTER_S) == []
    assert rig.run(3600) == ["-box"]


def test_what_ends_by_itself_soon_is_not_told() -> None:
    rig = Rig()
    assert rig.run(AFTER_S - STEP_S, "box") + rig.run(7200) == []


def test_fifty_nodes_that_go_one_after_the_other_are_two_messages() -> None:
    rig = Rig()
    names = [f"box{n}" for n in range(50)]
    for count in range(1, 51):
        rig.run(STEP_S, *names[:count])
    rig.run(600, *names)
    assert len(rig.told) <= 2 + 50 * STEP_S / GAP_S
    assert sorted(name for _, begun, _, _ in rig.told for name in begun) == sorted(names)
    assert rig.told[-1][3] == 50 - len(rig.told[-1][1])  # the others last


def test_what_happens_at_about_the_same_time_is_one_message() -> None:
    rig = Rig()
    rig.run(GROUP_S, "box")
    assert rig.run(300, "box", "desk") == ["+box", "+desk"]
    assert len(rig.told) == 1


def test_a_problem_that_comes_and_goes_is_one_problem() -> None:
    rig = Rig()
    told = []
    for _ in range(60):  # an hour of it
        told += rig.run(30, "box") + rig.run(30)
    assert told == ["+box"]
    assert rig.run(7200) == ["-box"]


def test_one_that_comes_and_goes_slowly_is_told_ever_more_seldom() -> None:
    rig = Rig()
    for _ in range(12):  # ten minutes here, ten minutes gone: four hours of it
        rig.run(600, "box")
        rig.run(600)
    assert len(rig.told) < 12
    assert rig.run(7200) in ([], ["-box"])


def test_one_that_comes_back_the_next_day_is_told_as_at_first() -> None:
    rig = Rig()
    assert rig.run(300, "box") + rig.run(86400) == ["+box", "-box"]
    assert rig.run(AFTER_S + GROUP_S + STEP_S, "box") == ["+box"]
    assert rig.run(AFTER_S + GAP_S + GROUP_S) == ["-box"]


def test_nothing_is_told_in_quiet_hours_and_what_lasts_is_told_at_their_end() -> None:
    rig = Rig()
    rig.run(300, "old")
    assert rig.run(3600, "old", "short", quiet=True) == []
    assert rig.run(3600, "box", quiet=True) == []
    assert sorted(rig.run(300, "box")) == ["+box", "-old"]
    assert len(rig.told) == 2


def test_a_storm_is_a_bounded_number_of_messages() -> None:
    rig = Rig(after_s=0.0)
    for number in range(720):  # another problem every five seconds, for an hour
        rig.run(STEP_S, f"box{number}")
    assert len(rig.told) <= MANY + 3600 / LONG_GAP_S + 1


def test_after_a_restart_what_was_told_is_not_told_again_but_its_end_is() -> None:
    rig = Rig("box", "desk")
    assert rig.run(3600, "box") == ["-desk"]


@pytest.mark.parametrize("after_s", [0.0, 86400.0])
def test_the_extremes_of_the_waiting_time(after_s: float) -> None:
    rig = Rig(after_s=after_s)
    assert rig.run(after_s + GROUP_S + STEP_S, "box") == ["+box"]
    assert rig.run(after_s + GAP_S + GROUP_S + STEP_S) == ["-box"]


def test_what_is_over_and_forgotten_takes_no_memory() -> None:
    rig = Rig()
    for number in range(100):
        rig.run(STEP_S, f"box{number}")
    rig.run(7200)
    assert rig.rules._cases == {}
