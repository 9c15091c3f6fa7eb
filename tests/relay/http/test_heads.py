"""A head that two parsers could read in two ways is refused, and the refusal names the fault."""

from __future__ import annotations

import pytest

from wai_protocol.errors import Fault, RequestError
from wai_relay.http.heads import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    check_fields,
    check_partial,
    is_clean,
    parse_head,
)

GET = b"GET / HTTP/1.1\r\nHost: a"

MALFORMED = {
    "both content-length and transfer-encoding": GET
    + b"\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
    "more than one content-length": GET + b"\r\nContent-Length: 3\r\nContent-Length: 3",
    "content-length '+3' is not one plain number": GET + b"\r\nContent-Length: +3",
    "content-length '3, 3'": GET + b"\r\nContent-Length: 3, 3",
    "content-length '' is": GET + b"\r\nContent-Length:",
    "content-length '99999999999999999999'": GET + b"\r\nContent-Length: " + b"9" * 20,
    "obs-fold": GET + b"\r\nX: 1\r\n more",
    "folded": GET + b"\r\n X: 1",
    "bare LF": GET + b"\nX: 1",
    "bare CR": GET + b"\r\nX: 1\r2",
    "NUL": GET + b"\r\nX: 1\x002",
    "control character": GET + b"\r\nX: 1\x1b2",
    "not allowed in HTTP/1.0": b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked",
    "transfer-encoding 'gzip, chunked'": GET + b"\r\nTransfer-Encoding: gzip, chunked",
    "transfer-encoding 'identity'": GET + b"\r\nTransfer-Encoding: identity",
    "transfer-encoding 'chunked\\x0b'|control": GET + b"\r\nTransfer-Encoding: chunked\x0b",
    "more than one transfer-encoding": GET + b"\r\nTransfer-Encoding: chunked" * 2,
    "more than one host": GET + b"\r\nHost: b",
    "no host": b"GET / HTTP/1.1\r\nX: 1",
    "no host |field": b"GET http://a/b HTTP/1.1\r\nX: 1",
    "host 'a, b'": b"GET / HTTP/1.1\r\nHost: a, b",
    "host 'u@a'": b"GET / HTTP/1.1\r\nHost: u@a",
    "white space between the field name 'X' and its colon": GET + b"\r\nX : 1",
    "field name 'X Y'": GET + b"\r\nX Y: 1",
    "field name ''": GET + b"\r\n: 1",
    "has no colon": GET + b"\r\nnonsense",
    "single spaces": b"GET  / HTTP/1.1\r\nHost: a",
    "is not METHOD TARGET VERSION": b"GET /\r\nHost: a",
    "method 'G@T'": b"G@T / HTTP/1.1\r\nHost: a",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443",
    "does not begin with /": b"GET evil HTTP/1.1\r\nHost: a",
    "percent-encoded": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a",
    "'/a#b'": b"GET /a#b HTTP/1.1\r\nHost: a",
    "names no host": b"GET http:///x HTTP/1.1\r\nHost: a",
    "HTTP/2.0 is not supported": b"GET / HTTP/2.0\r\nHost: a",
    "not in an HTTP version": b"GET / http/1.1\r\nHost: a",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_head_is_refused_by_name(fault: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_head(MALFORMED[fault])
    assert refused.value.fault is Fault.BAD_REQUEST
    assert any(part in str(refused.value) for part in fault.split("|"))
    assert str(refused.value).isprintable()


def test_an_unknown_expectation_is_417_and_names_the_one_that_is_met() -> None:
    with pytest.raises(RequestError, match=r"expectation 'magic' .* 100-continue") as refused:
        parse_head(GET + b"\r\nExpect: magic")
    assert refused.value.fault.row.http_status == 417


def test_too_many_or_too_long_fields_are_431() -> None:
    for raw in (GET + b"\r\nX: 1" * MAX_HEADERS, GET + b"\r\n" + b"x" * 200 + b": 1"):
        with pytest.raises(RequestError) as refused:
            parse_head(raw)
        assert refused.value.fault.row.http_status == 431


def test_a_partial_head_that_can_not_become_one_is_refused_at_once() -> None:
    check_partial(b"GET / HTTP/1.1\r", 0)
    with pytest.raises(RequestError, match="bare LF"):
        check_partial(b"GET / HTTP/1.1\n", 0)
    check_partial(b"a\r\n", 2)  # the CR came with the bytes before
    with pytest.raises(RequestError) as refused:
        check_partial(b"x" * (MAX_HEAD_BYTES + 1), 0)
    assert refused.value.fault is Fault.HEAD_TOO_LARGE


def test_a_good_head_is_read_to_the_letter() -> None:
    head = parse_head(
        b"POST /v1/x%20y?a=b?c HTTP/1.1\r\nHost: h:1\r\nContent-Length: 12\r\nX-Odd:\t a  b \r\n"
        b"Connection: keep-alive, Close\r\nExpect: 100-Continue\r\nX-Text: \xff"
    )
    assert (head.method, head.path, head.query) == ("POST", "/v1/x%20y", "a=b?c")
    assert (head.authority, head.content_length, head.chunked) == ("h:1", 12, False)
    assert (b"x-odd", b"a  b") in head.headers
    assert (b"x-text", b"\xff") in head.headers
    assert head.expects_continue
    assert not head.keep_alive


def test_an_absolute_target_overrules_host() -> None:
    head = parse_head(b"GET https://b:2?q HTTP/1.1\r\nHost: a")
    assert (head.scheme, head.authority, head.path, head.query) == ("https", "b:2", "/", "q")


def test_upgrade_counts_only_where_connection_names_it() -> None:
    assert parse_head(GET + b"\r\nUpgrade: wai/1").upgrade == b""
    assert parse_head(GET + b"\r\nUpgrade: WAI/1\r\nConnection: upgrade").upgrade == b"wai/1"


def test_clean_counts_pairs_not_characters() -> None:
    assert is_clean(b"a\r\nb\r\n", 2)
    assert not is_clean(b"a\rb\n", 0)
    assert not is_clean(b"a\r\nb", 0)


PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")]
MALFORMED_H2 = {
    "name different hosts": [*PSEUDO, (b"host", b"b")],
    "'connection' is not allowed": [*PSEUDO, (b"connection", b"close")],
    "'te' is not allowed": [*PSEUDO, (b"te", b"gzip")],
    "'transfer-encoding' is not allowed": [*PSEUDO, (b"transfer-encoding", b"chunked")],
    "not in lower case": [*PSEUDO, (b"X-Y", b"1")],
    "is not a token": [*PSEUDO, (b"x y", b"1")],
    "control character": [*PSEUDO, (b"x", b"1\r\ny: 2")],
    "blank edge": [*PSEUDO, (b"x", b" 1")],
    "comes after ordinary": [*PSEUDO[:3], (b"x", b"1"), PSEUDO[3]],
    "is repeated": [*PSEUDO, PSEUDO[0]],
    "must have :method": PSEUDO[1:],
    "no other pseudo-header": [*PSEUDO, (b":protocol", b"websocket")],
    "neither :authority nor host": PSEUDO[:3],
    "does not begin with /": [*PSEUDO[:2], (b":path", b"x"), PSEUDO[3]],
    "more than one content-length": [*PSEUDO, *[(b"content-length", b"1")] * 2],
    "the field 'content-length'|content-length '-1'": [*PSEUDO, (b"content-length", b"-1")],
}


@pytest.mark.parametrize("fault", MALFORMED_H2)
def test_malformed_h2_fields_are_refused_by_name(fault: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_fields(MALFORMED_H2[fault])
    assert any(part in str(refused.value) for part in fault.split("|"))


def test_h2_cookie_crumbs_become_one_field() -> None:
    head = check_fields([*PSEUDO, (b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")])
    assert (b"cookie", b"a=1; b=2") in head.headers
