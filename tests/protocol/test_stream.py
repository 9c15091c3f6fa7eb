"""What a stream sends: within its credit, in pieces of a frame, and big writes without copies."""

from __future__ import annotations

from wai_protocol import frames as f
from wai_protocol.limits import MAX_DATA_BYTES
from wai_protocol.stream import Stream


def stream(window_out: int) -> Stream:
    return Stream(1, window_in=1000, window_out=window_out, now=0.0)


def test_no_more_is_sent_than_the_peer_takes() -> None:
    sender = stream(window_out=10)
    sender.queue(b"0123456789abcdef")
    assert sender.take(MAX_DATA_BYTES) == b"0123456789"
    assert sender.take(MAX_DATA_BYTES) == b""
    assert not sender.sendable
    sender.credit_out += 3
    assert sender.take(2) == b"ab"
    assert sender.take(2) == b"c"
    assert sender.pending_bytes == 3


def test_the_end_needs_no_credit_but_waits_for_its_data() -> None:
    sender = stream(window_out=0)
    sender.end_queued = True
    assert sender.sendable
    sender.queue(b"x")
    assert not sender.sendable


def test_a_big_write_is_cut_once_and_not_copied_again_for_each_frame() -> None:
    sender = stream(window_out=1 << 30)
    data = bytes(range(256)) * 4096
    sender.queue(data)
    assert all(len(f.encode_data(1 << 30, piece)) <= MAX_DATA_BYTES for piece in sender.pending)
    assert all(isinstance(piece, memoryview) for piece in sender.pending)
    out = b""
    while piece := sender.take(MAX_DATA_BYTES - 1):
        out += piece
    assert out == data
