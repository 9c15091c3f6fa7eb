"""The heap is trimmed after a large drop of the count, and collections leave old objects alone."""

from __future__ import annotations

import subprocess
import sys
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


def test_what_lives_as_long_as_the_process_is_not_collected_again() -> None:
    code = (
        "import gc, wai_relay.running.life\n"
        "from wai_transport.heap import settle_heap\n"
        "settle_heap()\n"
        "print(len(gc.get_objects()) < 2000, gc.get_freeze_count() > 40_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_what_is_garbage_after_the_start_is_collected() -> None:
    code = (
        "import gc\n"
        "from wai_transport.heap import hold_heap, settle_heap\n"
        "hold_heap()\n"
        "held = gc.isenabled()\n"
        "settle_heap()\n"
        "print(held, gc.isenabled())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
