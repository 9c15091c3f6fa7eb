"""A connection's earlier heads make the next one cheaper, and change nothing of what it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import RequestError
from wai_relay.http.heads import MAX_KNOWN, MAX_KNOWN_HEAD_BYTES, KnownLines, parse_head

LINES = st.sampled_from(
    [
        *(b"Host: a", b"Host: b", b"host:a", b"Content-Length: 5", b"Content-Length: 6"),
        *(b"Connection: close", b"Connection: keep-alive", b"Authorization: Bearer x"),
        *(b"X-A: 1", b"X-A: 2", b"X-A : 1", b" folded", b"nocolon", b"Transfer-Encoding: chunked"),
        *(b"X-B:", b"Expect: 100-continue", b""),
    ]
)
REQUEST_LINES = st.sampled_from([b"GET / HTTP/1.1", b"POST /p?q HTTP/1.1", b"GET  / HTTP/1.1", b""])
HEADS = st.builds(lambda first, rest: b"\r\n".join([first, *rest]), REQUEST_LINES, st.lists(LINES))


def _parsed(raw: bytes, known: KnownLines | None) -> object:
    try:
        return parse_head(raw, known)
    except RequestError as error:
        return str(error)


@given(st.lists(HEADS, max_size=8))
def test_a_head_means_the_same_whatever_came_before_it(heads: list[bytes]) -> None:
    known = KnownLines()
    for raw in heads:
        assert _parsed(raw, known) == _parsed(raw, None)


@given(HEADS, LINES, st.integers(0, 3), st.lists(st.integers(0, 1 << 70), min_size=2, max_size=4))
def test_a_head_that_differs_in_its_length_alone_means_what_it_says(
    head: bytes, extra: bytes, at: int, lengths: list[int]
) -> None:
    known = KnownLines()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-l")]
    lines.insert(at, extra)
    for length in lengths:
        raw = b"\r\n".join([lines[0], b"Host: a", b"Content-Length: %d" % length, *lines[1:]])
        assert _parsed(raw, known) == _parsed(raw, None)


def test_what_is_done_to_a_head_s_fields_does_not_change_the_next_one() -> None:
    known = KnownLines()
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d"
    for length in range(3):
        fields = parse_head(raw % length, known).headers
        assert fields == [(b"host", b"a"), (b"content-length", b"%d" % length)]
        fields.clear()


def test_a_long_head_is_not_remembered() -> None:
    known = KnownLines()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1" + b"\r\nX-N: 1" * 90
    parse_head(head + b"\r\nX-Long: " + b"x" * MAX_KNOWN_HEAD_BYTES, known)
    assert known._head is None


def test_a_connection_remembers_few_lines() -> None:
    known = KnownLines()
    for number in range(10 * MAX_KNOWN):
        parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nX-N: %d" % number, known)
    assert len(known._field_of) == MAX_KNOWN


@pytest.mark.parametrize("line", [b"Content-Length: 7", b"X-Long: " + b"x" * 300])
def test_what_is_another_each_time_or_long_is_not_remembered(line: bytes) -> None:
    known = KnownLines()
    parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + line, known)
    assert set(known._field_of) == {b"Host: a"}
