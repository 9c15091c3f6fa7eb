"""Our readers of HTTP/1.1 requests against h11's: whatever we accept, h11 reads in the same way.

h11 is kinder than we are, so it accepts more. What it refuses we must refuse too, and where both
accept, the request's parts, the body and what is left behind it must be the same.
"""

from __future__ import annotations

import itertools

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from wai_protocol.errors import RemoteProtocolError, RequestError
from wai_protocol.http1 import ChunkedBody
from wai_relay.http.heads import parse_head

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(data) + 1) for p in points}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def our_body(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """Body and rest; None if it is refused or not whole."""
    body, got = ChunkedBody(), bytearray()
    for number, piece in enumerate(pieces):
        try:
            got += body.receive_data(piece)
        except RemoteProtocolError:
            return None
        if body.ended:
            return bytes(got), body.rest + b"".join(pieces[number + 1 :])
    return None


def h11_body(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    connection, got = h11.Connection(h11.SERVER), bytearray()
    try:
        for piece in (HEAD, *pieces):
            connection.receive_data(piece)
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    got += event.data
                elif not isinstance(event, h11.Request):
                    break
        return (bytes(got), connection.trailing_data[0]) if _ended(connection) else None
    except h11.RemoteProtocolError:
        return None


def _ended(connection: h11.Connection) -> bool:
    return connection.their_state is h11.DONE


sizes = st.one_of(
    st.integers(1, 20).map(lambda n: (b"%x" % n, n)),
    st.integers(1, 20).map(lambda n: (b"%04X" % n, n)),
    st.sampled_from([(b"", 3), (b"+3", 3), (b"0x3", 3), (b"3_", 3), (b" 3", 3), (b"3 ", 3)]),
)
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"", b" \r\n", b"\x00\r\n"])
extensions = st.one_of(
    st.just(b""),
    st.sampled_from(
        [b";a", b";a=b", b'; a="b;c"', b" ;a", b"\t", b"  ", b";\x00", b";a\rb", b";\xff"]
    ),
    st.binary(max_size=6).map(lambda b: b";" + b),
)
chunks = st.tuples(sizes, extensions, ends, ends).map(
    lambda c: c[0][0] + c[1] + c[2] + b"x" * c[0][1] + c[3]
)
trailers = st.one_of(
    st.just(b""),
    st.sampled_from(
        [
            *(b"a: b\r\n", b"a: b\r\nc:d\r\n", b"a: b\r\n c\r\n", b" a: b\r\n", b"a\r\n"),
            *(b"a: \x00\r\n", b"a: b\n", b"a: b\rc\r\n", b": b\r\n", b"a:\xff\r\n", b"a : b\r\n"),
        ]
    ),
    st.binary(max_size=8).map(lambda b: b"x:" + b + b"\r\n"),
)
bodies = st.tuples(
    st.lists(chunks, max_size=4),
    st.sampled_from([b"0", b"000", b"0;a", b"-0", b""]),
    ends,
    trailers,
).flatmap(
    lambda t: st.tuples(ends, st.sampled_from([b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n"])).map(
        lambda e: b"".join(t[0]) + t[1] + t[2] + t[3] + e[0] + e[1]
    )
)


@given(st.one_of(bodies, st.binary(max_size=40)), st.lists(st.integers(0, 1 << 12), max_size=6))
@example(b"5\rhello\r\n0\r\n\r\n", [])
@example(b"5\r\nhello\r\n0\r\n\n", [])
@example(b"0\r\na: b\r\n c: d\r\n\r\n", [])
def test_a_chunked_body_that_we_accept_h11_reads_in_the_same_way(
    wire: bytes, at: list[int]
) -> None:
    ours = our_body([wire])
    assert our_body(cut(wire, at)) == ours
    if ours is not None:
        assert h11_body([wire]) == ours
    if h11_body([wire]) is None:
        assert ours is None


names = st.sampled_from(
    [
        *(b"Host", b"host", b"X", b"X-Y", b"Content-Length", b"Transfer-Encoding", b"Connection"),
        *(b"X Y", b"X ", b" X", b"", b"X\x00", b"\xff"),
    ]
)
values = st.one_of(
    st.sampled_from([b"a", b"", b"3", b"3, 3", b"+3", b"chunked", b"gzip, chunked", b"close"]),
    st.sampled_from([b" a ", b"\ta", b"a\x00b", b"a\rb", b"a\nb", b"\xff", b"a\x7f", b"a\x0bb"]),
    st.binary(max_size=6),
)
fields = st.lists(st.tuples(names, values).map(lambda f: f[0] + b":" + f[1]), max_size=4)
methods = st.sampled_from([b"GET", b"POST", b"get", b"G T", b"", b"G\x00", b"G@"])
targets = st.sampled_from(
    [b"/", b"/a?b", b"*", b"http://a/b", b"/a b", b"/\x00", b"/\xe9", b"", b"a"]
)
versions = st.sampled_from(
    [b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "]
)
heads = st.tuples(methods, targets, versions, st.booleans(), fields).map(
    lambda h: b"\r\n".join([b" ".join(h[:3]), *([b"Host: a"] if h[3] else []), *h[4]])
)


@given(st.one_of(heads, st.binary(max_size=60)))
@example(b"GET http://a/b HTTP/1.1")
def test_a_head_that_we_accept_h11_reads_in_the_same_way(raw: bytes) -> None:
    try:
        ours = parse_head(raw)
    except RequestError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw + b"\r\n\r\n")
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    assert theirs.method.decode() == ours.method
    assert theirs.http_version.decode() == ours.http_version
    if not ours.scheme:
        target = ours.path + (f"?{ours.query}" if ours.query else "")
        assert theirs.target.decode().removesuffix("?") == target
    framing = {n: v for n, v in theirs.headers if n in (b"content-length", b"transfer-encoding")}
    assert (framing.get(b"transfer-encoding") == b"chunked") is ours.chunked
    length = framing.get(b"content-length")
    assert (None if length is None else int(length)) == ours.content_length
    assert [n for n, _ in theirs.headers] == [n for n, _ in ours.headers]
