"""The heap is trimmed after a large drop of the count, and not after each small one."""

from __future__ import annotations

from collections.abc import Callable

from wai_transport.heap import TRIM_AFTER_DROP, TRIM_DELAY_S, HeapTrimmer, trim_heap


class Later:
    """Stands in for a loop's `call_later`."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    def __call__(self, delay_s: float, call: Callable[[], None]) -> None:
        self.delays_s.append(delay_s)


def test_a_large_drop_of_the_count_is_followed_by_one_trim() -> None:
    later = Later()
    trimmer = HeapTrimmer(later)
    for count in [*range(TRIM_AFTER_DROP + 500), *reversed(range(TRIM_AFTER_DROP + 500))]:
        trimmer.update(count)
    assert later.delays_s == [TRIM_DELAY_S]


def test_small_changes_of_the_count_cause_no_trim() -> None:
    later = Later()
    trimmer = HeapTrimmer(later)
    for _ in range(10):
        for count in (5 * TRIM_AFTER_DROP, 4 * TRIM_AFTER_DROP + 1):
            trimmer.update(count)
    assert later.delays_s == []


def test_a_trim_is_harmless() -> None:
    trim_heap()
