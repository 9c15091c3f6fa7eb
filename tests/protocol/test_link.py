"""The link: what is kept, what is sent again, and peers that send invalid offsets."""

from __future__ import annotations

import msgpack
import pytest

from wai_protocol.errors import RemoteProtocolError
from wai_protocol.limits import ACK_EVERY_BYTES, Limits
from wai_protocol.link import MEASURE_EVERY_S, Link

ACK, PING, PONG = 5, 6, 7
FRAMES = [b"a" * 10, b"b" * 20, b"c" * 30]


def sending() -> Link:
    """A link that has sent three frames: offsets 10, 30 and 60."""
    link = Link(Limits())
    link.attach(0, 0.0)
    for frame in FRAMES:
        link.record(frame)
    return link


def again(link: Link, received: int) -> list[bytes]:
    link.detach()
    link.attach(received, 1.0)
    return link.take_replay(1 << 20)


def test_a_new_connection_goes_on_where_the_peer_got_to() -> None:
    assert again(sending(), 0) == FRAMES
    assert again(sending(), 10) == FRAMES[1:]
    assert again(sending(), 60) == []


@pytest.mark.parametrize("offset", [61, 1, 9, 31, 1 << 61])
def test_a_peer_that_resumes_at_an_invalid_offset_is_refused_and_nothing_is_lost(
    offset: int,
) -> None:
    link = sending()
    link.detach()
    with pytest.raises(RemoteProtocolError):
        link.attach(offset, 1.0)
    assert not link.attached
    assert link.unacknowledged_bytes == 60
    assert again(link, 0) == FRAMES


def test_a_peer_that_goes_back_before_what_it_acknowledged_is_refused() -> None:
    link = sending()
    link.receive_link_frame([ACK, 30], 0.0)
    link.detach()
    with pytest.raises(RemoteProtocolError):
        link.attach(10, 1.0)
    assert again(link, 30) == FRAMES[2:]


@pytest.mark.parametrize("offset", [61, 5, 15])
def test_an_ack_of_what_was_not_sent_or_of_half_a_frame_is_refused(offset: int) -> None:
    link = sending()
    with pytest.raises(RemoteProtocolError):
        link.receive_link_frame([ACK, offset], 0.0)
    assert link.unacknowledged_bytes == 60


def test_an_ack_that_goes_back_is_refused() -> None:
    link = sending()
    link.receive_link_frame([ACK, 30], 0.0)
    link.receive_link_frame([ACK, 30], 0.0)  # said twice is nothing wrong
    with pytest.raises(RemoteProtocolError):
        link.receive_link_frame([ACK, 10], 0.0)


def test_an_ack_within_a_replay_reaches_no_further_than_the_replay() -> None:
    link = sending()
    link.detach()
    link.attach(0, 1.0)
    assert link.take_replay(1) == FRAMES[:1]
    assert link.replaying
    with pytest.raises(RemoteProtocolError):
        link.receive_link_frame([ACK, 30], 1.0)  # true on the last connection, not on this one
    link.receive_link_frame([ACK, 10], 1.0)
    assert link.take_replay(1 << 20) == FRAMES[1:]
    assert link.unacknowledged_bytes == 50


def test_a_replay_that_is_cut_begins_again() -> None:
    link = sending()
    for _ in range(3):
        link.detach()
        link.attach(10, 1.0)
        assert link.take_replay(1) == [FRAMES[1]]
    assert again(link, 30) == [FRAMES[2]]


def test_an_ack_is_due_after_enough_bytes_and_before_a_pong() -> None:
    link = Link(Limits())
    link.attach(0, 0.0)
    link.received = ACK_EVERY_BYTES - 1
    assert not link.link_frames_due
    link.receive_link_frame([PING, 3], 0.0)
    unpacker = msgpack.Unpacker()
    unpacker.feed(link.take_link_frames())
    assert list(unpacker) == [[ACK, ACK_EVERY_BYTES - 1], [PONG, 3]]
    assert not link.link_frames_due
    link.received += ACK_EVERY_BYTES
    assert link.link_frames_due
    assert msgpack.unpackb(link.take_link_frames()) == [ACK, 2 * ACK_EVERY_BYTES - 1]


def test_what_the_handshake_told_is_not_acknowledged_again() -> None:
    link = Link(Limits())
    link.received = 10 * ACK_EVERY_BYTES
    link.attach(0, 0.0)
    assert not link.link_frames_due


@pytest.mark.parametrize(
    "item", [[ACK], [ACK, "1"], [ACK, True], [PING, -1], [PING, None], [0, 1], [8, 1], [-1, 1]]
)
def test_an_invalid_link_frame_is_refused(item: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        sending().receive_link_frame(item, 0.0)


def test_silence_is_asked_about_and_then_counts_as_death() -> None:
    link = Link(Limits(ping_s=10, dead_s=25))
    link.attach(0, 0.0)
    assert link.next_deadline() == 10
    assert link.ping_due(10.0)
    link.ping(10.0)
    assert not link.ping_due(20.0)
    assert link.next_deadline() == 25
    assert not link.is_dead(24.9)
    assert link.is_dead(25.0)


def test_any_byte_is_a_sign_of_life() -> None:
    link = Link(Limits(ping_s=10, dead_s=25))
    link.attach(0, 0.0)
    link.ping(10.0)
    link.heard_at = 24.9
    assert not link.is_dead(25.0)
    assert link.next_deadline() == pytest.approx(34.9)


def test_a_late_timer_does_not_shorten_the_time_to_answer() -> None:
    """Idle after its first PONG, a timer armed for 25 s: found dead without having been asked."""
    link = Link(Limits(ping_s=10, dead_s=25))
    link.attach(0, 0.0)
    link.ping(0.0)
    link.heard_at = 0.0003
    link.receive_link_frame([PONG, 1], 0.0003)
    assert not link.is_dead(26.0)
    assert link.ping_due(26.0)
    link.ping(26.0)
    assert not link.is_dead(40.9)
    assert link.is_dead(41.0)


def test_a_detached_link_neither_asks_nor_dies() -> None:
    link = sending()
    link.detach()
    link.ping(1.0)
    assert link.next_deadline() is None
    assert not link.is_dead(1e9)
    assert not link.ping_due(1e9)
    link.attach(60, 2e9)
    assert not link.is_dead(2e9 + 1)


def test_only_the_answer_to_the_last_ping_measures_the_way() -> None:
    link = sending()
    link.ping(1.0)
    link.ping(2.0)
    link.receive_link_frame([PONG, 1], 2.1)
    assert link.rtt_s is None
    link.receive_link_frame([PONG, 2], 2.5)
    assert link.rtt_s == 0.5
    link.receive_link_frame([PONG, 2], 9.0)  # said twice
    assert link.rtt_s == 0.5


def test_queues_on_a_busy_way_do_not_count_as_its_length() -> None:
    link = sending()
    for sent_at, took_s in ((1.0, 0.5), (2.0, 0.2), (3.0, 0.9)):
        link.ping(sent_at)
        link.receive_link_frame([PONG, int(sent_at)], sent_at + took_s)
    assert link.rtt_s == pytest.approx(0.2)
    link.attach(link._oldest, 5.0)
    assert link.rtt_s is None  # another connection may go another way


def test_a_busy_way_is_looked_at_again_but_not_while_an_answer_is_out() -> None:
    link = sending()
    link.ping(1.0)
    assert not link.measure_due(9.0)
    link.receive_link_frame([PONG, 1], 1.1)
    assert not link.measure_due(1.0 + MEASURE_EVERY_S / 2)
    assert link.measure_due(1.0 + MEASURE_EVERY_S)
