"""A clock that is wrong, or that nothing sets any more, is told; one that never was set is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from wai_relay.health.clock import ClockWatch, kernel_says_synchronised


class Kernel:
    def __init__(self, says: bool | None) -> None:
        self.says = says

    def __call__(self) -> bool | None:
        return self.says


def _problems(watch: ClockWatch, **others: float) -> list[str]:
    return [one.text for one in watch.problems(iter(others.items()))]


def test_a_clock_that_loses_its_synchronisation_is_told_until_it_is_back(tmp_path: Path) -> None:
    kernel = Kernel(says=True)
    watch = ClockWatch(kernel, tmp_path / "none")
    watch.look()
    assert _problems(watch) == []
    kernel.says = False
    watch.look()
    [text] = _problems(watch)
    assert "not synchronised" in text
    kernel.says = True
    watch.look()
    assert _problems(watch) == []


@pytest.mark.parametrize("says", [False, None])
def test_a_clock_that_the_host_keeps_is_no_problem(tmp_path: Path, says: bool | None) -> None:
    watch = ClockWatch(Kernel(says), tmp_path / "none")
    watch.look()
    watch.look()
    assert _problems(watch) == []


def test_a_loss_before_the_relay_started_is_known_by_what_timesyncd_left(tmp_path: Path) -> None:
    (tmp_path / "synchronized").touch()
    watch = ClockWatch(Kernel(says=False), tmp_path / "synchronized")
    watch.look()
    assert len(_problems(watch)) == 1


def test_a_kernel_that_tells_nothing_any_more_takes_the_problem_back(tmp_path: Path) -> None:
    kernel = Kernel(says=True)
    watch = ClockWatch(kernel, tmp_path / "none")
    for says in (True, False, None):
        kernel.says = says
        watch.look()
    assert _problems(watch) == []


@pytest.mark.parametrize(
    ("ahead_s", "text"),
    [
        (60.0, None),
        (-60.0, None),
        (7200.0, "the clock is 7200 s behind that of cloud"),
        (-61.0, "the clock is 61 s ahead of that of cloud"),
    ],
)
def test_a_clock_that_differs_from_a_providers(
    tmp_path: Path, ahead_s: float, text: str | None
) -> None:
    watch = ClockWatch(Kernel(says=None), tmp_path / "none")
    assert _problems(watch, cloud=ahead_s) == ([text] if text else [])


def test_this_machines_kernel_can_be_asked() -> None:
    assert kernel_says_synchronised() in (True, False, None)
