"""A clock that jumped is noticed; one that is only late is not."""

from __future__ import annotations

from wai_node.network import JUMP_S, LOOK_EVERY_S, JumpDetector


def test_sleep_is_a_jump() -> None:
    detector = JumpDetector(100.0)
    assert not detector.observe(101.0, LOOK_EVERY_S)
    assert detector.observe(102.0 + 3600, LOOK_EVERY_S)


def test_a_jump_is_told_of_once() -> None:
    detector = JumpDetector(100.0)
    assert detector.observe(200.0, LOOK_EVERY_S)
    assert not detector.observe(201.0, LOOK_EVERY_S)


def test_a_busy_box_is_no_jump() -> None:
    detector = JumpDetector(100.0)
    assert not detector.observe(100.0 + LOOK_EVERY_S + JUMP_S, LOOK_EVERY_S)


def test_a_clock_that_was_set_back_is_no_jump() -> None:
    detector = JumpDetector(100.0)
    assert not detector.observe(50.0, LOOK_EVERY_S)
    assert not detector.observe(51.0, LOOK_EVERY_S)
