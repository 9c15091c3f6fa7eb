"""A clock that jumped is noticed; one that is only late is not."""

from __future__ import annotations

from msgspec.structs import replace

from wai_node.tunnel.network import (
    ANY_ROUTE,
    JUMP_S,
    LOOK_EVERY_S,
    JumpDetector,
    NetworkRoute,
    RouteWatch,
)


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


CONNECTED = NetworkRoute("198.18.0.2", "203.0.113.1", 443)
WAITING = replace(CONNECTED, ours=None)


def test_a_changed_address_is_told_of_once() -> None:
    watch = RouteWatch()
    assert watch.observe(CONNECTED, "198.18.0.2") is None
    assert watch.observe(CONNECTED, "198.18.9.9") is not None
    assert watch.observe(WAITING, "198.18.9.9") is None
    assert watch.observe(replace(CONNECTED, ours="198.18.9.9"), "198.18.9.9") is None


def test_a_node_without_a_connection_hears_that_the_network_is_back() -> None:
    watch = RouteWatch()
    assert watch.observe(WAITING, None) is None
    assert watch.observe(WAITING, "198.18.0.2") is not None
    assert watch.observe(WAITING, "198.18.0.2") is None


def test_a_node_without_a_connection_hears_of_another_address() -> None:
    watch = RouteWatch()
    watch.observe(CONNECTED, "198.18.0.2")
    assert watch.observe(WAITING, "198.18.9.9") is not None


def test_a_network_that_goes_away_is_no_reason_to_dial() -> None:
    watch = RouteWatch()
    watch.observe(CONNECTED, "198.18.0.2")
    assert watch.observe(CONNECTED, None) is None
    assert watch.observe(CONNECTED, "198.18.0.2") is None  # its connection may have lived on


def test_a_node_that_has_never_connected_watches_its_default_route() -> None:
    watch = RouteWatch()
    watch.observe(ANY_ROUTE, None)
    assert watch.observe(ANY_ROUTE, "198.18.0.2") is not None
