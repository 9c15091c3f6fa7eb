"""Decoding frames: the same result for any splitting, and a bounded cost for invalid bytes."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol import frames as f
from wai_protocol.errors import Fault, LocalProtocolError, RemoteProtocolError
from wai_protocol.limits import (
    MAX_DATA_BYTES,
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_METHOD_CHARS,
    MAX_REASON_CHARS,
)

WRONG_NAMES = (
    *(b"Set-Cookie", b"Content-Length", b":status", b"", b"a b", b" a", b"a:", b"a\r\nb", b"a\n"),
    *(b"a\x00", b"n\xc3\xa9"),
)
WRONG_VALUES = (
    *(b"a\rb", b"a\nb", b"a\r\nset-cookie: b", b"a\x00", b"\x7f", b"\x1b[2J", b"\n", b"a\n"),
    *(b" a", b"a ", b"\ta", b"a\t", b" "),
)
WRONG_PATHS = (
    "",
    "v1",
    "*",
    "http://other/",
    "/a b",
    "/a#b",
    "/a\r\nhost: b",
    "/\x00",
    "/é",
    "/a\n",
)
NUMBERS = st.integers(0, (1 << 62) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.text("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
VALUE_BYTES = st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
FIELD_VALUES = st.lists(VALUE_BYTES, max_size=40).map(lambda some: bytes(some).strip(b" \t"))
HEADERS = st.lists(st.tuples(NAMES.map(str.encode), FIELD_VALUES), max_size=6)
METHODS = st.sampled_from(["GET", "POST", "X-1"])
TARGETS = st.text(st.characters(codec="ascii", min_codepoint=0x24, max_codepoint=0x7E)).map(
    lambda text: "/" + text
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS | st.binary(max_size=20)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=8
)
MAPS = st.dictionaries(TEXTS, VALUES, max_size=4)
FRAMES: st.SearchStrategy[f.SessionFrame] = st.one_of(
    st.builds(f.Open, NUMBERS, METHODS, TARGETS, HEADERS, TEXTS, st.booleans()),
    st.builds(f.HeadersFrame, NUMBERS, NUMBERS, HEADERS),
    st.builds(f.End, NUMBERS),
    st.builds(f.Reset, NUMBERS, NUMBERS, TEXTS),
    st.builds(f.Credit, NUMBERS, NUMBERS),
    st.builds(f.Status, MAPS),
    st.builds(f.Call, NUMBERS, TEXTS, MAPS),
    st.builds(f.Reply, NUMBERS, st.booleans(), VALUES),
    st.builds(f.Event, NUMBERS, TEXTS, VALUES),
    st.builds(f.GoAway, NUMBERS, TEXTS, st.none() | NUMBERS),
)


def read_all(pieces: list[bytes], max_frame_bytes: int = MAX_FRAME_BYTES) -> list[Any]:
    """Everything that a decoder finds in `pieces`; its refusal, if any, comes last."""
    decoder, out = f.FrameDecoder(max_frame_bytes), []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (item := decoder.next_frame()) is not None:
                out.append(f.decode(item))
    except RemoteProtocolError:
        return [*out, "refused"]
    return out


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(0, 10_000), max_size=6))
def test_a_frame_is_the_same_however_its_bytes_come(
    frames: list[f.SessionFrame], cuts: list[int]
) -> None:
    data = b"".join(map(f.encode, frames))
    assert read_all([data]) == frames
    assert read_all([data[at : at + 1] for at in range(len(data))]) == frames
    assert read_all(split(data, cuts)) == frames
    assert read_all([data + b"\x93\x10"]) == frames  # the next one's first bytes


@given(st.lists(st.tuples(FRAMES, st.integers(0, 10_000)), min_size=1, max_size=6))
def test_decoders_whose_bytes_come_in_turn_do_not_mix_them(
    sessions: list[tuple[f.SessionFrame, int]],
) -> None:
    decoders = [f.FrameDecoder() for _ in sessions]
    pieces = [split(f.encode(frame) * 2, [cut]) for frame, cut in sessions]
    found: list[list[Any]] = [[] for _ in sessions]
    for turn in range(max(map(len, pieces))):
        for decoder, own, out in zip(decoders, pieces, found, strict=True):
            if turn < len(own):
                decoder.feed(own[turn])
                while (item := decoder.next_frame()) is not None:
                    out.append(f.decode(item))
    assert found == [[frame, frame] for frame, _ in sessions]


def test_a_decoder_that_has_no_part_of_a_frame_holds_no_unpacker() -> None:
    decoder, frame = f.FrameDecoder(), f.encode(f.End(1))
    decoder.feed(frame + frame[:1])
    assert decoder.next_frame() is not None
    assert decoder.next_frame() is None
    assert decoder._unpacker is not None
    decoder.feed(frame[1:])
    assert decoder.next_frame() is not None
    assert decoder.next_frame() is None
    assert decoder._unpacker is None


@given(st.lists(FRAMES, min_size=1, max_size=3), st.data())
def test_bytes_that_were_changed_are_refused_or_read_alike_in_any_pieces(
    frames: list[f.SessionFrame], data: st.DataObject
) -> None:
    raw = bytearray(b"".join(map(f.encode, frames)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    whole = read_all([bytes(raw)])
    pieces = [bytes(raw[at : at + 1]) for at in range(len(raw))]
    assert repr(read_all(pieces)) == repr(whole)


@given(st.binary(max_size=200))
def test_garbage_is_only_ever_refused(data: bytes) -> None:
    read_all([data])


@given(st.integers(-5, 300), st.lists(VALUES | st.floats(), max_size=8))
def test_fields_of_any_type_are_only_ever_refused(kind: int, fields: list[Any]) -> None:
    read_all([msgpack.packb([kind, *fields])])


@pytest.mark.parametrize(
    "item",
    [
        [19],
        [19, True],
        [19, -1],
        [19, 1 << 62],
        [19, 1.0],
        [19, None],
        [19, "1"],
        [20, 1, 2, b"bytes"],
        [16, 1, "GET", "/", [b"name"], "m", False],
        [16, 1, "GET", "/", [b"name", "text"], "m", False],
        [16, 1, "GET", "/", {b"name": b"value"}, "m", False],
        [16, 1, "GET", "/", [], "m", 0],
        [16, 1, "GET", "/" * (MAX_HEAD_BYTES + 1), [], "m", False],
        [17, 1, 200, [b"n", b"v"] * (MAX_HEADERS + 1)],
        [17, 1, 200, [b"n", b"v" * MAX_HEAD_BYTES]],
        *([17, 1, 200, [name, b"v"]] for name in WRONG_NAMES),
        *([17, 1, 200, [b"a", b"b", b"n", value]] for value in WRONG_VALUES),
        *([16, 1, "GET", "/", [name, b"v"], "m", False] for name in WRONG_NAMES),
        *([16, 1, "GET", "/", [b"n", value], "m", False] for value in WRONG_VALUES),
        *([16, 1, method, "/", [], "m", False] for method in ("", "G T", "GET\r\n", "GÉT")),
        *([16, 1, "GET", path, [], "m", False] for path in WRONG_PATHS),
        [20, 1, 2, "x" * (MAX_REASON_CHARS + 1)],
        [26, 1, "x" * (MAX_REASON_CHARS + 1), None],
        [23, 1, "x" * (MAX_METHOD_CHARS + 1), {}],
        [25, 1, "x" * (MAX_METHOD_CHARS + 1), None],
        [22, []],
        [24, 1, 1, None],
        [26, 1, "", True],
        [26, 1, "", -1],
        [27, 1],
        [99],
    ],
)
def test_a_field_that_is_wrong_is_refused(item: list[Any]) -> None:
    assert read_all([msgpack.packb(item)]) == ["refused"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",  # no array
        b"\x90",  # an empty one
        b"\x91\xa1a",  # no number first
        b"\x91\xc3",
        b"\x92\x13\xc1",  # a byte that msgpack never uses
        b"\x92\x13\xd4\x05\x00",  # an ext
        b"\x92\x13\xc7\x0c\xff" + b"\x00" * 12,  # a timestamp
        b"\x92\x16\x81\x01\x02",  # a map with a number for a key
        b"\x92\x14\xa2\xff\xfe",  # a string that is no UTF-8
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\xff\xff\xff\xff",
        b"\x92\x13\xdb\xff\xff\xff\xff" + b"x" * MAX_FRAME_BYTES,  # a string of 4 GB, begun
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    assert read_all([data]) == ["refused"]


def test_elements_of_a_newer_version_are_ignored() -> None:
    assert read_all([msgpack.packb([19, 7, "new", {"more": 1}])]) == [f.End(7)]


@pytest.mark.parametrize("piece", [1 << 20, 1 << 14, 1000])
def test_a_frame_over_its_bound_is_refused_also_when_it_comes_whole(piece: int) -> None:
    data = msgpack.packb([25, 0, "x", ["y" * 1000] * 300])
    assert len(data) > MAX_FRAME_BYTES
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert read_all(pieces) == ["refused"]


@pytest.mark.parametrize(
    "data", [b"\xdc\x10\x00" * 90_000, b"\xde\x10\x00" * 90_000, b"\x91" * 300_000]
)
def test_nesting_costs_a_bounded_amount_of_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert read_all([data[:MAX_FRAME_BYTES], data[MAX_FRAME_BYTES:]]) == ["refused"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.parametrize(
    "headers", [[(b"n", b"v")] * (MAX_HEADERS + 1), [(b"n", b"v" * MAX_HEAD_BYTES)]]
)
def test_a_head_that_the_peer_would_refuse_never_leaves(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(LocalProtocolError) as refusal:
        f.encode(f.Open(1, "GET", "/", headers, "", end=True))
    assert refusal.value.fault is Fault.HEAD_TOO_LARGE
    with pytest.raises(LocalProtocolError):
        f.encode(f.HeadersFrame(1, 200, headers))


@pytest.mark.parametrize("field", [(b"Date", b"x"), (b"n", b"a\r\nb"), (b"n", b"v ")])
def test_a_header_that_the_peer_would_refuse_never_leaves(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        f.encode(f.Open(1, "GET", "/", [(b"a", b"b"), field], "", end=True))
    with pytest.raises(LocalProtocolError):
        f.encode(f.HeadersFrame(1, 200, [field]))


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_a_path_that_the_peer_would_refuse_never_leaves(path: str) -> None:
    with pytest.raises(LocalProtocolError):
        f.encode(f.Open(1, "GET", path, [], "", end=True))


def test_an_event_that_the_peer_would_refuse_never_leaves() -> None:
    large = f.Event(0, "deployment", "x" * MAX_EVENT_BYTES)
    with pytest.raises(LocalProtocolError):
        f.encode(large)
    item = [25, 0, "deployment", large.value]
    with pytest.raises(RemoteProtocolError):
        f.decode(item, len(msgpack.packb(item)))


@pytest.mark.parametrize("size", [1, 255, 256, 4096, MAX_DATA_BYTES])
@pytest.mark.parametrize("stream", [1, 127, 128, 70_000, 1 << 33])
def test_a_long_data_frame_is_what_msgpack_would_write(stream: int, size: int) -> None:
    data = bytes(size)
    assert f.encode_data(stream, memoryview(data)) == msgpack.packb((18, stream, data))
