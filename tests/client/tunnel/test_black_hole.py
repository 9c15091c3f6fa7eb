"""A black hole is told from a network that is gone, and from one that is only quiet."""

from __future__ import annotations

import socket

import pytest

from wai_node.tunnel.black_hole import (
    HEARD_S,
    REPEATED,
    UNANSWERED_S,
    PathState,
    is_black_hole,
    path_state,
)

PING_S = 10.0
GOOD = PathState(retransmits=0, unacknowledged=0, ack_age_s=0.1)
STUCK = PathState(retransmits=REPEATED, unacknowledged=9, ack_age_s=4.0)


def test_a_quiet_connection_is_none() -> None:
    assert not is_black_hole(GOOD, PING_S, None)


@pytest.mark.parametrize("silent_s", [12.9, 13.0, 14.9, 24.9, 60.0])
def test_silence_alone_is_none_however_late_our_ping_comes(silent_s: float) -> None:
    last_ack = PathState(0, 0, silent_s - 0.04)  # kernels acknowledge a little later
    assert not is_black_hole(last_ack, silent_s, None)
    assert not is_black_hole(PathState(0, 0, 0.1), silent_s, 0.2)


def test_our_large_segments_are_lost_while_the_peer_speaks() -> None:
    assert is_black_hole(STUCK, 0.5, None)


def test_a_network_that_is_gone_both_ways_is_none() -> None:
    assert not is_black_hole(STUCK, HEARD_S + 2, None)
    assert not is_black_hole(STUCK, PING_S + UNANSWERED_S + 2, UNANSWERED_S + 2)


def test_the_peers_large_segments_are_lost_while_its_kernel_acknowledges_our_ping() -> None:
    assert is_black_hole(PathState(0, 0, 2.9), PING_S + UNANSWERED_S, UNANSWERED_S)


def test_a_ping_that_nobody_acknowledged_tells_of_a_network_that_is_gone() -> None:
    assert not is_black_hole(PathState(2, 1, 12.0), PING_S + UNANSWERED_S, UNANSWERED_S)
    assert not is_black_hole(PathState(0, 0, 12.0), PING_S + UNANSWERED_S, UNANSWERED_S)


def test_the_kernel_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as sock:
            assert path_state(sock) is not None
        assert path_state(sock) is None  # closed
