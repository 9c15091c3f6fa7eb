"""The frames that pass are read as they were meant, however they are cut; hostile ones cost little.
The frames are made by `websockets`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from wai_protocol.errors import RemoteProtocolError
from wai_protocol.http1 import ResponseHeadReader
from wai_protocol.websocket import (
    MAX_REASON_BYTES,
    CloseCode,
    MessageReader,
    accept_token,
    close_frame,
    is_key,
    new_key,
    protocols_in,
)

LIMIT = 1000
_OPCODES = {"text": Opcode.TEXT, "binary": Opcode.BINARY}


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, mask: bool = False) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=mask)


def in_frames(kind: str, data: bytes, cuts: int, dice: random.Random) -> bytes:
    """A message in several frames, with a ping between them."""
    at = sorted(dice.randrange(len(data) + 1) for _ in range(cuts))
    parts = [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]
    sent = b""
    for number, part in enumerate(parts):
        opcode = Opcode.CONT if number else _OPCODES[kind]
        sent += frame(opcode, part, fin=number == len(parts) - 1)
        sent += frame(Opcode.PING, b"are you there")
    return sent


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["text", "binary"]),
        st.binary(max_size=300) | st.binary(min_size=LIMIT - 1, max_size=LIMIT + 2),
        st.integers(0, 3),
    ),
    max_size=6,
)


@given(messages=MESSAGES, seed=st.integers(0, 1000), step=st.integers(1, 2000))
def test_text_messages_are_found_however_they_are_framed_and_cut(
    messages: list[tuple[str, bytes, int]], seed: int, step: int
) -> None:
    dice = random.Random(seed)
    sent = b"".join(in_frames(kind, data, cuts, dice) for kind, data, cuts in messages)
    reader, found = MessageReader(LIMIT), []
    for start in range(0, len(sent), step):
        found += reader.feed(sent[start : start + step])
    expected = [data for kind, data, _ in messages if kind == "text" and len(data) <= LIMIT]
    assert found == expected
    assert reader.readable
    assert reader.between_frames
    assert not reader.closed
    reader.feed(frame(Opcode.CLOSE, b"\x03\xe8"))
    assert reader.closed


@pytest.mark.parametrize(
    "bad",
    [
        frame(Opcode.TEXT, b"masked by a server", mask=True),
        b"\xc1\x01x",  # compressed, unasked
        b"\x83\x00",  # an opcode that is not there
    ],
    ids=["masked", "compressed", "reserved"],
)
def test_what_is_no_frame_of_a_server_is_read_no_further(bad: bytes) -> None:
    reader = MessageReader(LIMIT)
    assert reader.feed(frame(Opcode.TEXT, b"one") + bad + frame(Opcode.TEXT, b"two")) == [b"one"]
    assert not reader.readable
    assert not reader.between_frames
    assert reader.feed(frame(Opcode.TEXT, b"three")) == []


def test_an_announced_length_of_2_to_the_63_holds_nothing() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(b"\x81\x7f" + (2**63 - 1).to_bytes(8, "big"))
    for _ in range(100):
        reader.feed(bytes(64 * 1024))
    assert not reader.between_frames
    assert len(reader._message or b"") == 0


def test_a_message_of_endless_frames_is_left_out_and_the_next_one_read() -> None:
    reader = MessageReader(LIMIT)
    assert reader.feed(frame(Opcode.TEXT, b"", fin=False)) == []
    for _ in range(50):
        assert reader.feed(frame(Opcode.CONT, bytes(100), fin=False)) == []
        assert len(reader._message or b"") <= LIMIT
    assert reader.feed(frame(Opcode.CONT, b"") + frame(Opcode.TEXT, b"next")) == [b"next"]


def test_the_proof_of_a_handshake_is_that_of_the_rfc() -> None:
    assert accept_token(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert is_key(new_key())
    assert not any(map(is_key, (b"", b"short", b"AAAA", b"dGhlIHNhbXBsZSBub25jZQ=")))


def test_a_reason_that_is_too_long_is_cut_between_characters() -> None:
    sent = close_frame(CloseCode.POLICY, "é" * MAX_REASON_BYTES)
    assert sent[0] == 0x88
    assert len(sent) == 2 + sent[1] <= 127
    assert int.from_bytes(sent[2:4], "big") == 1008
    assert set(sent[4:].decode()) == {"é"}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (b"realtime, openai-beta.realtime-v1", [b"realtime", b"openai-beta.realtime-v1"]),
        (b"realtime,", []),
        (b"real time", []),
        (b"x" * 2000, []),
        (b"", []),
    ],
)
def test_subprotocols_are_tokens_or_none_are_taken(value: bytes, names: list[bytes]) -> None:
    assert protocols_in([(b"sec-websocket-protocol", value)]) == names


ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
)


def test_a_101_is_taken_only_by_who_asked_and_only_with_its_proof() -> None:
    accept = accept_token(new_key())
    reader = ResponseHeadReader("GET", accept)
    head = reader.receive_data(ACCEPTED + accept + b"\r\n\r\n\x81\x02hi")
    assert head is not None
    assert (head.status, head.keep_alive, reader.rest) == (101, False, b"\x81\x02hi")
    for asked, answer in (
        (b"", ACCEPTED + accept),
        (accept, ACCEPTED + accept_token(new_key())),
        (accept, ACCEPTED.replace(b"WebSocket", b"h2c") + accept),
        (accept, ACCEPTED + accept + b"\r\nSec-WebSocket-Extensions: permessage-deflate"),
    ):
        with pytest.raises(RemoteProtocolError):
            ResponseHeadReader("GET", asked).receive_data(answer + b"\r\n\r\n")
