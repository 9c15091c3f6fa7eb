"""Which segment size a node announces."""

from __future__ import annotations

from wai_node.tunnel.segments import SMALL_FOR_S, SMALLEST_BYTES, STALLS, USUAL_BYTES, Segments


def stalled(times: int, now: float = 0.0) -> Segments:
    """One that has seen so many connections stand without an answer."""
    segments = Segments()
    for _ in range(times):
        segments.stalled(now)
    return segments


def test_the_usual_size_passes_every_way_that_ipv6_can_use() -> None:
    assert Segments().limit_bytes(0.0) == USUAL_BYTES
    assert USUAL_BYTES + 20 + 40 <= 1280


def test_one_lost_network_makes_nothing_smaller() -> None:
    segments = stalled(STALLS - 1)
    segments.answered()
    assert not segments.stalled(0.0)
    assert segments.limit_bytes(0.0) == USUAL_BYTES


def test_connections_that_stand_without_an_answer_make_them_smaller_which_is_said_once() -> None:
    segments = stalled(STALLS - 1)
    assert segments.stalled(0.0)
    assert segments.limit_bytes(1.0) == SMALLEST_BYTES
    assert not segments.stalled(1.0)


def test_the_smaller_size_is_kept_for_a_while_after_it_has_helped() -> None:
    segments = stalled(STALLS, now=100.0)
    segments.answered()
    assert segments.limit_bytes(100.0 + SMALL_FOR_S - 1) == SMALLEST_BYTES
    assert segments.limit_bytes(100.0 + SMALL_FOR_S) == USUAL_BYTES


def test_another_network_begins_with_the_usual_size() -> None:
    segments = stalled(STALLS)
    segments.begin_anew()
    assert segments.limit_bytes(0.0) == USUAL_BYTES
