"""Memory goes back to the system after a crowd has left, and not each time that somebody has."""

from __future__ import annotations

from collections.abc import Callable

from wai_transport.heap import AFTER_S, CROWD, Ebb, give_back


class Later:
    """Stands in for a loop's `call_later`."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    def __call__(self, delay_s: float, call: Callable[[], None]) -> None:
        self.delays_s.append(delay_s)


def test_a_crowd_that_leaves_is_followed_by_one_trim() -> None:
    later = Later()
    ebb = Ebb(later)
    for count in [*range(CROWD + 500), *reversed(range(CROWD + 500))]:
        ebb.now(count)
    assert later.delays_s == [AFTER_S]


def test_those_who_come_and_go_cause_no_trim() -> None:
    later = Later()
    ebb = Ebb(later)
    for _ in range(10):
        for count in (5 * CROWD, 4 * CROWD + 1):
            ebb.now(count)
    assert later.delays_s == []


def test_a_trim_is_harmless() -> None:
    give_back()
