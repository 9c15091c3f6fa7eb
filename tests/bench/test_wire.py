"""The bench's own framing: a stamp or an event that is lost would make any tunnel look faster."""

import json

import pytest

from bench.wire import (
    EVENT_BYTES,
    EVENT_END,
    LAST_CHUNK,
    ChunkDecoder,
    Wish,
    chat_body,
    event_chunk,
    speech_body,
    stamps_ns,
    wish_from_body,
)

WIRE = event_chunk(1) + event_chunk(2**60 // 8) + b"5\r\nhello\r\n" + LAST_CHUNK


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, len(WIRE)])
def test_chunk_framing_cut_anywhere_gives_the_same_body(size: int) -> None:
    decoder = ChunkDecoder()
    body = b"".join(decoder.feed(WIRE[at : at + size]) for at in range(0, len(WIRE), size))
    assert decoder.ended
    assert stamps_ns(body) == [1, 2**60 // 8]
    assert body.count(EVENT_END) == 2
    assert body.endswith(b"hello")


def test_what_follows_a_body_is_not_lost() -> None:
    decoder = ChunkDecoder()
    decoder.feed(WIRE + b"HTTP/1.1 200 OK")
    assert decoder.take_rest() == b"HTTP/1.1 200 OK"


def test_a_cut_stamp_is_not_read_as_an_earlier_moment() -> None:
    text = ChunkDecoder().feed(event_chunk(123_456))
    assert stamps_ns(text[:-12]) == []


def test_an_event_is_as_long_as_a_real_chunk_and_no_longer_with_time() -> None:
    assert 190 <= EVENT_BYTES <= 260
    assert len(event_chunk(1)) == len(event_chunk(10**17))


def test_a_wish_survives_the_prompt() -> None:
    wish = Wish(rate=20, events=400, bytes=7)
    assert wish_from_body(chat_body(wish, stream=True)) == wish
    assert wish_from_body(speech_body(wish)) == wish
    assert json.loads(chat_body(wish, stream=False))["stream"] is False


def test_an_unknown_word_in_a_wish_is_left_out() -> None:
    assert wish_from_body(b"bench: rate=5 colour=3") == Wish(rate=5)
    assert wish_from_body(b"no wish at all") == Wish()
