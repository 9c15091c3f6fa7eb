"""The client's HTTP/1.1 parser against every way of cutting, and against bytes that lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault, LocalProtocolError, RemoteProtocolError
from wai_protocol.http1 import (
    LAST_CHUNK,
    MAX_CHUNK_LINE_BYTES,
    MAX_EXTENSION_BYTES,
    MAX_HEAD_BYTES,
    MAX_INTERIM_RESPONSES,
    MAX_TRAILER_BYTES,
    BodyFraming,
    ChunkedBody,
    FixedLengthBody,
    ResponseHead,
    ResponseHeadReader,
    UntilCloseBody,
    chunk,
    request_head,
)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(data) + 1) for p in points}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def read(body: BodyFraming, pieces: list[bytes]) -> bytes:
    return b"".join(body.receive_data(piece) for piece in pieces)


def head_of(data: bytes, method: str = "POST") -> ResponseHead:
    head = ResponseHeadReader(method).receive_data(data)
    assert head is not None
    return head


OK = b"HTTP/1.1 200 OK\r\n"
points = st.lists(st.integers(0, 1 << 16), max_size=12)


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=8), points, st.binary(max_size=9))
def test_chunks_come_out_the_same_however_they_are_cut(
    payloads: list[bytes], at: list[int], trailing: bytes
) -> None:
    wire = b"".join(chunk(p) for p in payloads) + b"0\r\nx-t: 1\r\n\r\n"
    for pieces in ([wire + trailing], cut(wire + trailing, at), [bytes([b]) for b in wire]):
        body = ChunkedBody()
        assert read(body, pieces) == b"".join(payloads)
        assert body.ended
        assert body.surplus == bool(trailing) or len(pieces) == len(wire)
        body.receive_eof()


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.integers(0, 9999))
def test_a_cut_chunked_body_is_never_a_clean_end(payloads: list[bytes], at: int) -> None:
    wire = b"".join(chunk(p) for p in payloads) + LAST_CHUNK
    body = ChunkedBody()
    body.receive_data(wire[: at % len(wire)])
    with pytest.raises(RemoteProtocolError) as caught:
        body.receive_eof()
    assert caught.value.fault is Fault.UPSTREAM_BROKE


def outcome(body: BodyFraming, pieces: list[bytes]) -> object:
    got = bytearray()
    try:
        for piece in pieces:
            got += body.receive_data(piece)
    except RemoteProtocolError:
        return "refused"
    return bytes(got), body.ended, body.surplus


@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("0123aF;\r\nx ", max_size=40).map(str.encode),
    ),
    points,
)
def test_garbage_is_judged_the_same_however_it_is_cut(data: bytes, at: list[int]) -> None:
    assert outcome(ChunkedBody(), [data]) == outcome(ChunkedBody(), cut(data, at))


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n",
        b" 1\r\n",
        b"3\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n",
        b"fffffffffffff\r\n",
        b"ffffffffffffffff\r\n",
        b"5\rhello",
        b"5\r\r\nhello",
        b"5;a\x00b\r\n",
        b"5;a\rb\r\n",
        b"5 ;a\r\n",
        b"0\r\n\n",
        b"0\r\n\r\r\n",
        b"0\r\n\rx",
        b"0\r\na: b\n\r\n",
        b"0\r\na: b\r\n c\r\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\nnonsense\r\n",
        b"0\r\na : b\r\n",
        b"0\r\na: b\rc\r\n",
        b"0\r\na: \x00\r\n",
        b"1;" + b"x" * 200 + b"\r\na\r\n" + (b"1;" + b"x" * 200 + b"\r\na\r\n") * 50,
        b"1;" + b"x" * MAX_CHUNK_LINE_BYTES,
        b"1;" + b"x" * MAX_CHUNK_LINE_BYTES + b"\r\na",
        b"0\r\n" + b"a: b\r\n" * MAX_TRAILER_BYTES,
        b"0\r\n" + b"a" * (MAX_TRAILER_BYTES + 1),
    ],
)
def test_chunk_framing_that_lies_is_refused(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ChunkedBody().receive_data(wire)


@pytest.mark.parametrize(
    "wire", [b"5\rh", b"g", b"5;\x00", b"5 x", b"0\r\n ", b"0\r\na ", b"0\r\na:\x00", b"0\r\n\rx"]
)
def test_a_line_that_can_not_become_one_is_refused_before_its_end(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(ChunkedBody(), [bytes([byte]) for byte in wire])


def test_a_chunk_that_goes_beyond_the_limit_is_refused_before_its_first_byte() -> None:
    body = ChunkedBody(limit_bytes=10, over_limit=Fault.BODY_TOO_LARGE)
    assert body.receive_data(b"6\r\nsix by\r\n") == b"six by"
    with pytest.raises(RemoteProtocolError) as caught:
        body.receive_data(b"5\r\n")
    assert caught.value.fault is Fault.BODY_TOO_LARGE
    with pytest.raises(RemoteProtocolError) as caught:
        ChunkedBody(10, Fault.BODY_TOO_LARGE).receive_data(b"F" * 40 + b"\r\n")
    assert caught.value.fault is Fault.BODY_TOO_LARGE


def test_padded_chunk_sizes_of_a_long_answer_are_read() -> None:
    body = ChunkedBody()
    for _ in range(2 * MAX_EXTENSION_BYTES // 6):
        assert body.receive_data(b"10      \r\n" + b"x" * 16 + b"\r\n") == b"x" * 16


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\nServer: x\n\n{}",
        OK + b"Server: x\n",
        OK + b"A: b\rC",
        OK + b"A: \x00",
        b"HTTP/1.1 200 OK\r\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_a_head_that_can_not_become_one_is_refused_before_its_end(wire: bytes, step: int) -> None:
    reader = ResponseHeadReader("GET")
    pieces = [wire[start : start + step] for start in range(0, len(wire), step)]
    with pytest.raises(RemoteProtocolError):
        list(map(reader.receive_data, pieces))


@given(st.binary(min_size=1, max_size=50), points, st.binary(max_size=5))
def test_a_body_of_known_length_ends_where_it_said(
    payload: bytes, at: list[int], more: bytes
) -> None:
    body = FixedLengthBody(len(payload))
    assert read(body, [payload + more]) == payload
    assert body.ended
    assert body.surplus == bool(more)
    body = FixedLengthBody(len(payload))
    assert read(body, cut(payload, at)) == payload
    assert body.ended
    body = FixedLengthBody(len(payload) + 1)
    body.receive_data(payload)
    with pytest.raises(RemoteProtocolError):
        body.receive_eof()


HEAD = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 All right\r\n"
    b"Server: llama.cpp\r\nX-Empty:\r\nTransfer-Encoding: Chunked\r\nKeep-Alive: timeout=5 \r\n\r\n"
)


@given(points)
def test_a_head_is_read_the_same_however_it_is_cut(at: list[int]) -> None:
    reader = ResponseHeadReader("GET")
    heads = [reader.receive_data(piece) for piece in cut(HEAD, at)]
    assert heads[:-1] == [None] * (len(heads) - 1)
    head = heads[-1]
    assert head is not None
    assert head.status == 200
    assert head.headers[:2] == [(b"server", b"llama.cpp"), (b"x-empty", b"")]
    assert isinstance(head.body, ChunkedBody)
    assert head.keep_alive


def test_the_bodys_first_bytes_are_kept_apart_from_the_head() -> None:
    reader = ResponseHeadReader("GET")
    assert reader.receive_data(HEAD + b"5\r\nhello\r\n") is not None
    assert reader.rest == b"5\r\nhello\r\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        OK + b"A: b\r\n folded\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b": b\r\n\r\n",
        OK + b"A\r\n\r\n",
        OK + b"A: \x00\r\n\r\n",
        OK + b"A: b\nC: d\r\n\r\n",
        OK + b"A: b\rC: d\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5, 5\r\n\r\n",
        OK + b"Content-Length: +5\r\n\r\n",
        OK + b"Content-Length: 9999999999999999\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM_RESPONSES + 1),
        OK + b"A: " + b"x" * MAX_HEAD_BYTES,
        OK + b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
)
def test_a_head_that_is_garbage_or_ambiguous_is_refused(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        ResponseHeadReader("GET").receive_data(wire)
    assert caught.value.fault is Fault.UPSTREAM_BROKE


@given(st.binary(max_size=200))
def test_no_bytes_make_the_head_reader_stumble(data: bytes) -> None:
    for wire in (data, OK + data, OK + data + b"\r\n\r\n"):
        try:
            ResponseHeadReader("GET").receive_data(wire)
        except RemoteProtocolError as error:
            assert error.fault is Fault.UPSTREAM_BROKE  # noqa: PT017 - any other error fails


@pytest.mark.parametrize(
    ("method", "wire", "kind", "keep_alive"),
    [
        ("GET", OK + b"Content-Length: 3\r\n\r\n", FixedLengthBody, True),
        ("GET", OK + b"Content-Length: 3\r\nConnection: Close\r\n\r\n", FixedLengthBody, False),
        ("GET", OK + b"\r\n", UntilCloseBody, False),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", FixedLengthBody, False),
        (
            "GET",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n",
            FixedLengthBody,
            True,
        ),
        ("HEAD", OK + b"Content-Length: 3\r\n\r\n", FixedLengthBody, True),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", FixedLengthBody, True),
    ],
)
def test_where_a_body_ends(method: str, wire: bytes, kind: type[object], keep_alive: bool) -> None:
    head = head_of(wire, method)
    assert isinstance(head.body, kind)
    assert head.keep_alive is keep_alive
    assert head.body.ended == (method == "HEAD" or head.status == 204)


def test_a_request_head_names_host_and_framing() -> None:
    head = request_head("POST", "/v1/x?a=b", [(b"accept", b"*/*")], authority=b"h:1", body_length=7)
    assert head == (
        b"POST /v1/x?a=b HTTP/1.1\r\nhost: h:1\r\naccept: */*\r\ncontent-length: 7\r\n\r\n"
    )
    chunked = request_head("POST", "/", [], authority=b"h", body_length=None)
    assert chunked.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert b"content-length" not in request_head("GET", "/", [], authority=b"h", body_length=0)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET /", "/", []),
        ("GET", "/a b", []),
        ("GET", "/a\r\nx: y", []),
        ("GET", "http://other/", []),
        ("GET", "/#", []),
        ("GET", "/\u00e9", []),
        ("GET", "/", [(b"a", b"b\r\nc: d")]),
        ("GET", "/", [(b"a", b"b\nc")]),
        ("GET", "/", [(b"a b", b"c")]),
        ("GET", "/", [(b"", b"c")]),
        ("GET", "/", [(b"Content-Length", b"3")]),
        ("GET", "/", [(b"host", b"other")]),
    ],
)
def test_a_request_can_smuggle_nothing(
    method: str, target: str, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(LocalProtocolError):
        request_head(method, target, headers, authority=b"h", body_length=0)
