"""PROXY protocol headers: read in any pieces, to the byte; what is malformed is refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import RemoteProtocolError
from wai_relay.http.proxy_header import MAX_REST_BYTES, SIGNATURE, ProxyHeaderReader


def binary(source: str, *, extra: bytes = b"", command: int = 0x21, family: int = 0) -> bytes:
    address = ipaddress.ip_address(source)
    family = family or (0x11 if address.version == 4 else 0x21)
    rest = address.packed * 2 + b"\x12\x34\x01\xbb" + extra
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


def text(line: str) -> bytes:
    return b"PROXY " + line.encode("latin-1") + b"\r\n"


def read(stream: bytes, step: int = 1 << 16) -> tuple[ProxyHeaderReader, bytes]:
    """Return the reader, and the bytes that it left."""
    reader, position = ProxyHeaderReader(), 0
    while not reader.over and position < len(stream):
        size = min(step, reader.wanted)
        assert size > 0
        reader.receive(stream[position : position + size])
        position += size
    return reader, stream[position:]


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("header", "address"),
    [
        (binary("192.0.2.1"), "192.0.2.1"),
        (binary("2001:db8::1"), "2001:db8::1"),
        (binary("::ffff:192.0.2.1"), "192.0.2.1"),
        (binary("192.0.2.1", extra=b"\x04\x00\x03abc"), "192.0.2.1"),
        (binary("192.0.2.1", command=0x20), None),
        (binary("192.0.2.1", family=0x31), None),
        (binary("192.0.2.1", family=0x12), None),
        (SIGNATURE + b"\x20\x00\x00\x00", None),
        (text("TCP4 192.0.2.1 198.51.100.1 4660 443"), "192.0.2.1"),
        (text("TCP6 2001:db8::1 2001:db8::2 4660 443"), "2001:db8::1"),
        (text("UNKNOWN"), None),
        (text("UNKNOWN whatever this is"), None),
    ],
)
def test_a_header_names_the_caller_and_nothing_behind_it_is_taken(
    header: bytes, address: str | None, step: int
) -> None:
    reader, rest = read(header + b"\x16\x03\x01", step)
    assert (reader.over, reader.present, reader.address) == (True, True, address)
    assert rest == b"\x16\x03\x01"


@pytest.mark.parametrize(
    "stream", [b"POST / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"PROXYX", b"\r\nGET / HTTP/1.1\r\n"]
)
def test_other_bytes_are_given_back(stream: bytes) -> None:
    reader, rest = read(stream)
    assert (reader.over, reader.present) == (True, False)
    assert reader.data + rest == stream


@pytest.mark.parametrize(
    "header",
    [
        text("TCP4 192.0.2.1 198.51.100.1 4660"),
        text("TCP4 192.0.2.1 198.51.100.1 4660 443 1"),
        text("TCP4 2001:db8::1 2001:db8::2 4660 443"),
        text("TCP4 192.0.2.1 198.51.100.1 4660 65536"),
        text("TCP4 192.0.2.1 198.51.100.1 -1 443"),
        text("TCP4 192.0.2.300 198.51.100.1 4660 443"),
        text("TCP5 192.0.2.1 198.51.100.1 4660 443"),
        text(""),
        text("UNKNOWN" + "x" * 120),
        binary("192.0.2.1", command=0x31),
        binary("192.0.2.1", command=0x22),
        binary("192.0.2.1", family=0x21),
        binary("192.0.2.1", extra=b"x" * MAX_REST_BYTES),
    ],
)
def test_a_malformed_header_is_refused(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="PROXY header"):
        read(header)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_a_refusal(rest: bytes) -> None:
    for begin in (b"", b"PROXY ", SIGNATURE):
        try:
            reader, left = read(begin + rest)
        except RemoteProtocolError:
            continue
        assert reader.over or not left
